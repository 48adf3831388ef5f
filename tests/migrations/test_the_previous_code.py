"""The code of the previous commit works on the newest schema, since a rolling update migrates first."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devstack.kafka import Kafka
from devstack.process import Process
from devstack.stack import Databases, Options, Stack
from tests.migrations import previous

SMOKE_TEST_SECONDS = 180
IMPORT_SECONDS = 60


def test_the_previous_code_serves_every_rpc_on_the_newest_schema(
    new_database: Callable[[str], str], kafka: Kafka, tmp_path: Path
) -> None:
    revision = previous.revision()
    if revision is None:
        pytest.skip("git does not know the previous commit: in a shallow clone, run `git fetch --deepen=1`")
    source = tmp_path / "previous"
    path = {"PYTHONPATH": previous.check_out(revision, source)}
    assert_imported_from(source, path)
    databases = Databases(new_database("inventory"), new_database("orders"))
    Stack(databases, kafka).migrate()

    stack = Stack(databases, kafka, options=Options(environment=path))
    try:
        stack.start()
        # The smoke test, too, is of the previous commit: the current one may call RPCs that the previous code lacks.
        addresses = ["--inventory", stack.inventory_address, "--orders", stack.orders_address]
        tools = previous.package(source, "shopctl", "devstack")
        smoke_test = Process("test-grpc", [sys.executable, "-m", tools, "test-grpc", *addresses], path)
        try:
            assert smoke_test.start().wait(SMOKE_TEST_SECONDS) == 0, smoke_test.log
        finally:
            smoke_test.kill()
        ended = stack.stop()
    finally:
        stack.stop()

    assert set(ended.values()) == {0}


def assert_imported_from(source: Path, environment: dict[str, str]) -> None:
    """Fail if a package is imported from the installation: the test would then run the current code."""
    protos, tools = previous.package(source, "shop_protos", "shop"), previous.package(source, "shopctl", "devstack")
    packages = f"inventory_api, order_api, reservation_reaper, event_relay, shop_common, {protos}, {tools}"
    program = f"import {packages}\nfor module in ({packages}): print(module.__file__)"
    process = Process("imports", [sys.executable, "-c", program], environment).start()
    try:
        assert process.wait(IMPORT_SECONDS) == 0, process.log
    finally:
        process.kill()
    elsewhere = [line for line in process.log.splitlines() if not Path(line).is_relative_to(source)]
    assert not elsewhere
