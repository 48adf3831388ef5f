"""examples/go builds from the protos as its README says, and orders from a running system."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from uuid import uuid4

import pytest

from devstack.stack import Stack
from tests.e2e.shop_driver import CONFIRMED, ShopDriver

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "go"
REQUIRE_VARIABLE = "TEST_REQUIRE_GO"
OLDEST_GO = (1, 24)
"""The first version that reads tools from go.mod."""
BUILD_SECONDS = 600
"""Go fetches the modules and compiles gRPC, unless it has done so before."""
RUN_SECONDS = 120


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled example. Without a Go that is new enough, the test is skipped, or fails if TEST_REQUIRE_GO=1."""
    if go_version() < OLDEST_GO:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"there is no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer, and {REQUIRE_VARIABLE} is set")
        pytest.skip(f"there is no Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer")
    folder = tmp_path_factory.mktemp("go") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("gen"))
    buf = str(Path(sysconfig.get_path("scripts"), "buf"))
    run(buf, "generate", str(ROOT / "proto" / "baseline.binpb"), "--path", "shop", folder=folder)
    run("go", "vet", ".", folder=folder)
    run("go", "build", "-o", "program", ".", folder=folder)
    return folder / "program"


def go_version() -> tuple[int, int]:
    """The version of the installed Go, such as (1, 26). Without Go, (0, 0)."""
    if shutil.which("go") is None:
        return (0, 0)
    printed = subprocess.run(["go", "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go(\d+)\.(\d+)", printed)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def order(
    program: Path, target: str, product: int, quantity: int = 1, request_id: str = "", timeout: str = "60s"
) -> subprocess.CompletedProcess[str]:
    options = ["-target", target, "-product", str(product), "-quantity", str(quantity), "-timeout", timeout]
    options += ["-request-id", request_id or str(uuid4())]
    return subprocess.run([program, *options], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


@pytest.mark.timeout(2 * BUILD_SECONDS)
def test_it_creates_one_order_for_a_request_id_and_confirms_it(program: Path, shop: ShopDriver, stack: Stack) -> None:
    product, request_id = shop.stocked_product(units=3), str(uuid4())

    first, second = (order(program, stack.orders_address, product, 2, request_id) for _ in range(2))

    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    order_id, status = first.stdout.split()
    assert status == "ORDER_STATUS_CONFIRMED"
    assert shop.order(order_id).status == CONFIRMED
    assert shop.available(product) == 1


@pytest.mark.timeout(2 * BUILD_SECONDS)
def test_it_explains_each_refusal_by_its_reason(program: Path, shop: ShopDriver, stack: Stack) -> None:
    product, request_id, target = shop.stocked_product(units=3), str(uuid4()), stack.orders_address
    assert order(program, target, product, request_id=request_id).returncode == 0

    short = order(program, target, product, 3)
    reused = order(program, target, product, 2, request_id)
    invalid = order(program, target, product, 0)

    assert [done.returncode for done in (short, reused, invalid)] == [1, 1, 1]
    assert "only 2 left" in short.stderr
    assert f"{request_id} belongs to another order" in reused.stderr
    assert "items[0].quantity: " in invalid.stderr


@pytest.mark.timeout(2 * BUILD_SECONDS)
def test_it_names_the_request_id_if_no_server_responds(program: Path) -> None:
    done = order(program, "127.0.0.1:1", 1, request_id="kept", timeout="1s")

    assert done.returncode == 1
    assert "try again with -request-id kept" in done.stderr
