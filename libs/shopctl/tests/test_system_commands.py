import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text

from devstack import kafka
from devstack.stack import Databases, Stack
from shop_common.db.database import Database
from shop_protos.inventory.v1.inventory_pb2 import CheckStockRequest
from shopctl.smoke import every_rpc, smoke_test
from shopctl.smoke.reporter import Reporter
from shopctl.system import runfile
from shopctl.system.runfile import Endpoint, RunFile
from testkit.eventually import eventually
from testkit.tasks import main

SMOKE_TEST_SECONDS_MAX = 30


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run file of a running system, as `dev` writes it."""
    folder = tmp_path_factory.mktemp("system")
    with kafka.provide() as broker, Stack(Databases.in_folder(folder / "data"), broker) as stack:
        endpoints = {
            process.name: Endpoint(process.pid, process.health_address or "", None, process.health_address or "")
            for process in stack.processes
        }
        me = psutil.Process()
        path = folder / runfile.PATH
        run = RunFile(me.pid, me.create_time(), broker.bootstrap, stack.databases, endpoints)
        runfile.write(replace(run, broker_pid=broker.pid), path)
        yield path


class Shell:
    """Runs commands in the folder of `dev`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self, command: str, *, code: int = 0) -> str:
        ended = main(command.split())
        output = self._capsys.readouterr()
        assert ended == code, output.err
        return output.err if code else output.out

    def shown(self, command: str, *, code: int) -> str:
        """Run a command that must end with this code, and return its output."""
        assert main(command.split()) == code
        return self._capsys.readouterr().out

    def lines(self, command: str, *, code: int = 0) -> list[Any]:
        return [json.loads(line) for line in self.shown(f"{command} --json", code=code).splitlines()]


@pytest.fixture
def shell(run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(run_file.parents[1])
    return Shell(capsys)


def test_health_is_asked_of_all_four(shell: Shell) -> None:
    (health,) = shell.lines("health")

    assert health["serving"] is True
    assert {one["name"] for one in health["processes"]} == {
        "inventory-api",
        "order-api",
        "reservation-reaper",
        "event-relay",
    }
    assert "SERVING" in shell.text("health")


def test_the_smoke_test_calls_every_rpc_and_can_be_repeated(shell: Shell) -> None:
    for _ in range(2):
        began = time.monotonic()
        lines = shell.lines("test-grpc")
        assert time.monotonic() - began < SMOKE_TEST_SECONDS_MAX
        assert all(line["right"] for line in lines)
    assert re.search(r"All checks passed: (\d+) of \1 RPCs called", shell.text("test-grpc"))


def test_the_smoke_test_fails_if_it_leaves_out_an_rpc(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke_test.SmokeTest, "_maintenance", lambda _: None)

    output = shell.text("test-grpc", code=1)

    assert "does not call shop.inventory.v1.InventoryMaintenanceService/ListReservedOrders, shop.inventory" in output


def test_the_smoke_test_ends_at_a_wrong_response_and_names_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke_test, "_TEN_YEARS", Duration(seconds=1))

    output = shell.text("test-grpc", code=1)

    assert output.startswith("test-grpc: InventoryMaintenanceService/PurgeHistory should succeed")
    assert "INVALID_FIELD" in output


def test_the_smoke_test_waits_for_a_limited_time(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    # The steps before it may take long on a busy machine.
    monkeypatch.setattr(every_rpc, "TEST_SECONDS_MAX", 120)
    monkeypatch.setattr(Reporter, "_begin", lambda _, request: (type(request).__name__, time.monotonic()))
    monkeypatch.setattr(smoke_test.SmokeTest, "_an_order_is_cancelled", _wait_forever)

    assert "never gave the right response: available is False, not True" in shell.text("test-grpc", code=1)


def _wait_forever(test: smoke_test.SmokeTest) -> None:
    request = CheckStockRequest(product_id=1, required_quantity=10**9)
    test._reporter._deadline = time.monotonic() + 1
    test._reporter.eventually(test._inventory.CheckStock, request, available=True)


def test_a_catalogue_is_added_once(shell: Shell) -> None:
    catalogue = "seed-data --products 20 --warehouses 2 --first-product 5001 --quantity 7"
    (first,) = shell.lines(catalogue)
    (again,) = shell.lines(f"{catalogue} --quantity 9")

    assert (first["created"], first["there_already"]) == (40, 0)
    assert (again["created"], again["there_already"]) == (0, 40)
    assert [item["quantity"] for item in shell.lines("query-inventory --product-id 5020")] == [7, 7]
    assert "0 items created, 40 already existed" in shell.text(catalogue)


def test_a_catalogue_is_completed(shell: Shell) -> None:
    shell.text("seed-data --products 3 --warehouses 1 --first-product 6001")

    (more,) = shell.lines("seed-data --products 4 --warehouses 2 --first-product 6001")

    assert (more["created"], more["there_already"]) == (5, 3)


def test_items_are_shown_by_filter_and_page_by_page(shell: Shell) -> None:
    shell.text("seed-data --products 1010 --warehouses 2 --first-product 7001")

    found = shell.lines("query-inventory --location WAREHOUSE_B --all")

    assert [item["id"] for item in found] == sorted(item["id"] for item in found)
    assert {item["location"] for item in found} == {"WAREHOUSE_B"}
    assert {item["product_id"] for item in found} >= set(range(7001, 8011))
    assert len(shell.lines("query-inventory --limit 3")) == 3
    table = shell.text("query-inventory --product-id 7005")
    assert "7005" in table
    assert "WAREHOUSE_B" in table


def test_damaged_stock_is_named_and_repaired(shell: Shell, run_file: Path) -> None:
    shell.text("seed-data --products 2 --warehouses 1 --first-product 9001 --quantity 7")
    (item,) = shell.lines("query-inventory --product-id 9002")
    assert shell.lines("verify") == []
    database = Database(runfile.read(run_file).databases.inventory)
    with database.write() as tx:
        tx.execute(text("UPDATE inventory_items SET reserved_quantity = 1 WHERE id = :id"), {"id": item["id"]})
    database.close()

    (found,) = shell.lines("verify", code=1)
    assert (found["kind"], found["item_id"]) == ("RESERVED_QUANTITY", item["id"])
    assert (found["expected"], found["actual"], found["repaired"]) == (0, 1, False)
    assert "RESERVED_QUANTITY" in shell.shown("verify", code=1)
    (repaired,) = shell.lines("verify --repair")
    assert repaired == found | {"repaired": True}
    assert shell.lines("verify") == []


def test_orders_are_shown_newest_first_and_by_filter(shell: Shell) -> None:
    shell.text("test-grpc")

    found = shell.lines("query-orders --limit 3")
    # The smoke test erases the user of the newest one.
    erased, cancelled = shell.lines("query-orders --status cancelled --limit 2")

    assert sorted((order["created_at"] for order in found), reverse=True) == [order["created_at"] for order in found]
    assert (cancelled["status"], erased["user_id"]) == ("CANCELLED", 0)
    (delivered,) = shell.lines(f"query-orders --user-id {cancelled['user_id']} --status delivered --since 1h")
    assert (delivered["total_amount"], delivered["currency"]) == ("300", "USD")
    assert [item["price"] for item in delivered["items"]] == ["20", "20"]
    assert all(item["shipped"] + item["cancelled"] == item["quantity"] for item in delivered["items"])
    product = delivered["items"][0]["product_id"]
    assert delivered["id"] in [order["id"] for order in shell.lines(f"query-orders --product-id {product}")]
    several = shell.lines("query-orders --status delivered --status cancelled --all")
    assert {cancelled["id"], delivered["id"]} <= {order["id"] for order in several}
    assert shell.lines("query-orders --reference unknown") == []
    assert shell.lines("query-orders --label channel=unknown") == []
    assert shell.lines("query-orders --updated-since 2999-01-01") == []
    assert shell.lines("query-orders --since 2999-01-01") == []
    assert delivered["id"] in shell.text(f"query-orders --user-id {cancelled['user_id']}")


def test_a_filter_that_the_api_refuses_shows_the_apis_message(shell: Shell) -> None:
    assert "user_id" in shell.text("query-orders --user-id -1", code=1)


def test_a_key_is_created_listed_and_revoked(shell: Shell) -> None:
    (created,) = shell.lines("keys create --name reports --permissions inventory.read,orders.read --expires-in 90d")

    assert created["key"].startswith(f"shop_live_{created['id']}_")
    (listed,) = shell.lines("keys list --limit 1")
    assert listed == {name: value for name, value in created.items() if name != "key"}
    assert (listed["name"], listed["state"]) == ("reports", "valid")
    assert listed["permissions"] == ["inventory.read", "orders.read"]
    assert datetime.fromisoformat(listed["expires_at"]) - datetime.fromisoformat(listed["created_at"]) == timedelta(90)
    assert created["id"] in shell.text(f"keys revoke {created['id']}")
    (revoked,) = shell.lines("keys list --limit 1")
    assert revoked["state"] == "revoked"
    assert "revoked" in shell.text("keys list")


def test_a_new_key_is_alone_on_standard_output(shell: Shell) -> None:
    assert re.fullmatch(
        r"shop_live_[a-z2-7]{16}_[a-z2-7]{52}\n", shell.text("keys create --name a --permissions admin")
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("keys revoke aaaaaaaaaaaaaaaa", "there is no API key aaaaaaaaaaaaaaaa"),
        ("keys revoke reports", "id: must be the id of an API key"),
        ("keys create --name a --permissions admin --expires-in 40000d", "expires_in: must be a duration"),
    ],
)
def test_the_apis_refusal_of_a_keys_command_is_shown(shell: Shell, command: str, message: str) -> None:
    assert message in shell.text(command, code=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--permissions inventory.reed", "'inventory.reed' is not a permission"),
        ("--permissions admin --expires-in tomorrow", "must be a number and a unit: 30m, 2h or 90d"),
        ("", "--permissions"),
    ],
)
def test_a_wrong_option_of_a_keys_command_is_named(
    shell: Shell, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        shell.text(f"keys create --name a {options}")
    assert message in capsys.readouterr().err


def test_the_status_shows_processes_databases_and_consumers(shell: Shell) -> None:
    shell.text("test-grpc")

    (status,) = shell.lines("status")

    assert [one["ready"] for one in status["processes"]] == ["SERVING"] * 4
    assert status["databases"]["inventory"]["rows"]["inventory_items"] > 0
    assert sum(status["databases"]["orders"]["leases"].values()) == 16
    assert {(one["group"], one["topic"], one["partition"]) for one in status["consumers"]} == {
        (group, topic, partition)
        for group, topic in (("inventory-api", "order-events"), ("order-api", "inventory-events"))
        for partition in range(3)
    }
    assert status["dead_letters"] == {"order-events.dlq": 0, "inventory-events.dlq": 0}
    assert status["away"] == {}
    table = shell.text("status")
    assert "stock_reservations" in table
    assert "unshipped" in table


@pytest.mark.parametrize("process", ["event-relay", "order-api"])
def test_a_frozen_process_is_called_so_and_hides_nothing(shell: Shell, run_file: Path, process: str) -> None:
    pid = runfile.read(run_file).processes[process].pid
    with _frozen(pid):
        (status,) = shell.lines("status", code=1)
        shown = shell.shown("status", code=1)

    assert f"{process} is frozen" in status["summary"]
    assert {one["name"]: one["state"] for one in status["processes"]}[process] == "frozen"
    assert status["databases"].keys() == {"inventory", "orders"}
    assert len(status["consumers"]) == 6
    _all_sections(shown)


def test_a_frozen_broker_hides_nothing(shell: Shell, run_file: Path) -> None:
    pid = runfile.read(run_file).broker_pid
    assert pid
    with _frozen(pid):
        (status,) = shell.lines("status", code=1)
        shown = shell.shown("status", code=1)

    assert status["summary"].startswith("Trouble: the broker is frozen")
    assert status["away"].keys() == {"consumers", "dead letters"}
    assert status["databases"]["orders"]["rows"]["orders"] >= 0
    assert shown.startswith("Trouble: the broker is frozen")
    assert "unavailable: Kafka does not respond" in shown
    _all_sections(shown)


def test_a_database_file_that_is_gone_is_named(shell: Shell, run_file: Path) -> None:
    file = Path(runfile.read(run_file).databases.orders.removeprefix("sqlite:///"))
    aside = file.rename(file.with_suffix(".aside"))
    try:
        (status,) = shell.lines("status", code=1)
        shown = shell.shown("status", code=1)
    finally:
        aside.rename(file)

    assert status["summary"].startswith(f"Trouble: the orders database is unavailable: its file {file} is missing")
    assert status["databases"].keys() == {"inventory"}
    assert len(status["consumers"]) == 6
    _all_sections(shown)


def _all_sections(shown: str) -> None:
    for title in ("processes", "rows", "outboxes", "consumers", "dead letters"):
        assert title in map(str.strip, shown.splitlines())


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.killpg(pid, signal.SIGSTOP)
    try:
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        yield
    finally:
        os.killpg(pid, signal.SIGCONT)


def test_a_reset_is_refused_while_it_runs(shell: Shell) -> None:
    assert shell.text("db-reset --yes", code=1).startswith("db-reset: dev is running; end it first")
