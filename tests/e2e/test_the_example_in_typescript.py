"""examples/typescript builds from the protos as its README says, and orders from a running system."""

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
EXAMPLE = Path("examples", "typescript")
REQUIRE_VARIABLE = "TEST_REQUIRE_NODE"
OLDEST_NODE = 18
BUILD_SECONDS = 600
"""npm fetches the packages, unless it has done so before."""
RUN_SECONDS = 120

pytestmark = [pytest.mark.xdist_group("typescript"), pytest.mark.timeout(4 * BUILD_SECONDS)]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled example. Without Node.js and npm, the test is skipped, or fails if TEST_REQUIRE_NODE=1."""
    if node_version() < OLDEST_NODE or shutil.which("npm") is None:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"there is no npm with Node.js {OLDEST_NODE} or newer, and {REQUIRE_VARIABLE} is set")
        pytest.skip(f"there is no npm with Node.js {OLDEST_NODE} or newer")
    repository = tmp_path_factory.mktemp("typescript")
    folder = repository / EXAMPLE
    shutil.copytree(ROOT / EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "gen", "build"))
    (repository / "proto").mkdir()
    shutil.copy(ROOT / "proto" / "baseline.binpb", repository / "proto")
    for command in (("npm", "ci"), ("npm", "run", "generate"), ("npm", "run", "build")):
        assert " ".join(command) in (folder / "README.md").read_text()
        run(*command, folder=folder)
    return folder / "build" / "main.js"


def node_version() -> int:
    """The major version of the installed Node.js, such as 20. Without Node.js, 0."""
    if shutil.which("node") is None:
        return 0
    printed = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.", printed)
    return int(found[1]) if found else 0


def run(*command: str, folder: Path) -> None:
    environment = os.environ | {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def order(
    program: Path, target: str, product: int, quantity: int = 1, request_id: str = "", timeout_seconds: str = "60"
) -> subprocess.CompletedProcess[str]:
    options = ["--target", target, "--product", str(product), "--quantity", str(quantity)]
    options += ["--timeout-seconds", timeout_seconds, "--request-id", request_id or str(uuid4())]
    return subprocess.run(["node", program, *options], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


def test_it_creates_one_order_for_a_request_id_and_confirms_it(program: Path, shop: ShopDriver, stack: Stack) -> None:
    product, request_id = shop.stocked_product(units=3), str(uuid4())

    first, second = (order(program, stack.orders_address, product, 2, request_id) for _ in range(2))

    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    order_id, status = first.stdout.split()
    assert status == "ORDER_STATUS_CONFIRMED"
    assert shop.order(order_id).status == CONFIRMED
    assert shop.available(product) == 1


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


def test_it_waits_for_a_server_and_names_the_request_id_if_there_is_none(program: Path) -> None:
    done = order(program, "127.0.0.1:1", 1, request_id="kept", timeout_seconds="1")

    assert done.returncode == 1
    assert "DEADLINE_EXCEEDED" in done.stderr
    assert "try again with --request-id kept" in done.stderr


def test_its_lock_file_names_no_registry() -> None:
    lock = (ROOT / EXAMPLE / "package-lock.json").read_text()

    assert '"resolved"' not in lock
    assert '"integrity"' in lock
