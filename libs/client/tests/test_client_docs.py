"""The programs of docs/client.md run as written, also where only the client's wheels are installed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from devstack.stack import Stack
from libs.client.tests.conftest import folder_of_this_repository
from shop_client import ShopError, errors
from shop_client.calls import Method
from shopctl.system import docker
from tests.markdown import code_blocks

ROOT = folder_of_this_repository()
PAGE = (ROOT / "docs" / "client.md").read_text()
IMAGE = "python:3.13-slim"
INSTALL_SECONDS = 300
PROGRAM_SECONDS = 120


def programs(apis: Stack) -> list[str]:
    """The Python blocks of the page, for the APIs of this test."""
    ports = {"localhost:50053": apis.inventory_address, "localhost:50054": apis.orders_address}
    return [re.sub("|".join(ports), lambda found: ports[found[0]], block) for block in code_blocks(PAGE, "python")]


def test_the_programs_of_the_page_run_in_sequence(apis: Stack, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text("\n".join(programs(apis)))

    output = run(sys.executable, str(program), folder=tmp_path)

    assert "CONFIRMED 39.98 EUR" in output
    for text in ("user_id must", "delivery-4711 belongs", "no item", "no order", "no reservation", "available"):
        assert text in output
    assert "the order can become CONFIRMED or CANCELLED" in output
    assert " reserved" in output


def test_every_class_of_a_reason_has_an_example() -> None:
    examples = "\n".join(code_blocks(PAGE, "python"))
    reasons = [kind.__name__ for kind in subclasses(ShopError) if kind.REASON]

    assert [name for name in reasons if f"errors.{name}" not in examples and name != errors.Cancelled.__name__] == []


def test_every_reason_of_the_readme_has_a_class() -> None:
    """The client does not manage API keys, so the reasons of those RPCs have no class."""
    section = (ROOT / "README.md").read_text().partition("## Errors and retries")[2].partition("## ")[0]
    reasons = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", section)) - {code.name for code in grpc.StatusCode}
    assert "INSUFFICIENT_STOCK" in reasons

    assert reasons - {kind.REASON for kind in subclasses(ShopError)} == {"API_KEYS_LIMIT", "API_KEY_NOT_FOUND"}


def test_every_method_and_rpc_is_in_the_table() -> None:
    table = PAGE.partition("## Methods")[2].partition("##")[0]

    from shop_client import Shop, calls  # noqa: PLC0415

    methods = [name for name in vars(Shop) if not name.startswith("_") and name != "close"]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == methods
    for method in vars(calls).values():
        if isinstance(method, Method):
            assert re.search(rf"\b{method.name}\b", table)


def interpreters() -> dict[str, str]:
    """Version → path of each Python of this machine on which the client must run. Includes the one of this test."""
    names = [f"python3.{minor}" for minor in range(11, 20)]
    found: dict[str, str] = {}
    for path in (*filter(None, map(shutil.which, names)), *in_home(".pyenv/versions/3.*/bin/python"), sys.executable):
        # A version manager leaves shims on the PATH for interpreters that do not run.
        command = [path, "-c", "import sys, ensurepip; print(*sys.version_info[:2], sep='.')"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        version = done.stdout.strip()
        if done.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 11):
            found[version] = path
    return found


def in_home(pattern: str) -> Iterator[str]:
    """The files that match a pattern in the user's home."""
    return map(str, Path.home().glob(pattern))


INTERPRETERS = interpreters()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The wheels of the client and of the generated code."""
    folder = tmp_path_factory.mktemp("wheels")
    for package in ("proto", "libs/client"):
        run(
            sys.executable,
            *("-m", "uv", "build", "--wheel", "--no-build-isolation", "--python", sys.executable),
            *("--out-dir", str(folder), str(ROOT / package)),
            folder=folder,
        )
    return sorted(map(str, folder.glob("*.whl")))


@pytest.mark.timeout(INSTALL_SECONDS)
@pytest.mark.parametrize("version", INTERPRETERS)
def test_the_wheels_are_all_that_a_program_needs(apis: Stack, wheels: list[str], tmp_path: Path, version: str) -> None:
    """Installs the wheels into an empty environment outside the repository, with every Python of this machine."""
    run(INTERPRETERS[version], "-m", "venv", "environment", folder=tmp_path)
    python = str(tmp_path / "environment" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *wheels, folder=tmp_path)
    (tmp_path / "page.py").write_text("\n".join(programs(apis)))

    output = run(python, "page.py", folder=tmp_path)

    assert "CONFIRMED 39.98 EUR" in output
    installed = run(python, "-m", "pip", "list", "--format=freeze", folder=tmp_path)
    assert {line.partition("==")[0] for line in installed.splitlines()} - {"pip", "setuptools", "wheel"} == {
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
        "shop-client",
        "shop-protos",
        "typing_extensions",
    }
    # The installed package has types: mypy finds them, and finds no fault in the program.
    run(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "page.py", folder=tmp_path)


@pytest.mark.timeout(2 * INSTALL_SECONDS)
def test_the_wheels_are_all_that_a_program_needs_in_a_container(
    apis: Stack, docker_engine: str, wheels: list[str], tmp_path: Path
) -> None:
    """Installs the wheels into an image that has Python 3.13 and nothing of this repository."""
    (tmp_path / "page.py").write_text("\n".join(programs(apis)))
    for wheel in wheels:
        shutil.copy(wheel, tmp_path)
    install = "python -m pip install --quiet --root-user-action=ignore --only-binary=:all: /test/*.whl"
    name = f"shop-tests-wheels-{uuid4().hex[:8]}"
    try:
        # On the host's network, where the APIs listen on loopback.
        output = docker.run(
            *("run", "--rm", "--name", name, "--network", "host", "--volume", f"{tmp_path}:/test:ro"),
            *("--workdir", "/tmp", IMAGE, "sh", "-ec", f"{install} && python --version && python /test/page.py"),
            seconds=INSTALL_SECONDS,
        )
    finally:
        # Also after a timeout, which ends docker's command but not the container.
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)

    assert "Python 3.13." in output
    assert "CONFIRMED 39.98 EUR" in output


def run(*command: str, folder: Path) -> str:
    """Run a command and return its output. The command must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def subclasses(kind: type[ShopError]) -> list[type[ShopError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]
