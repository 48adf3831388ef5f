import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from devstack import kafka
from devstack.ports import free_ports
from devstack.process import inherited_environment
from devstack.stack import Databases, Options, Ports, Stack
from shop_common.errors import Refused
from shop_protos.inventory.v1.inventory_pb2 import CheckStockRequest, CreateInventoryItemRequest, ReserveStockRequest
from shopctl.__main__ import main
from shopctl.client import Shop

SEEN_SECONDS = 90


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    databases = Databases.in_folder(tmp_path_factory.mktemp("top"))
    options = Options(environment={"LOG_LEVEL": "error"})
    with kafka.provide() as broker, Stack(databases, broker, Ports.free(metrics=True), options) as stack:
        yield stack


@pytest.fixture
def busy(stack: Stack) -> Iterator[None]:
    """A system with buyers, some of whose orders are refused."""
    with Shop.connect(stack.inventory_address, stack.orders_address) as shop, _repeating(lambda: _buy(shop)):
        yield


def test_it_shows_the_activity_of_the_interval(stack: Stack, busy: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--interval", "1.5", *_processes(stack)]) == 0

    shown = capsys.readouterr().out
    for name in ("inventory-api", "order-api", "reservation-reaper", "event-relay"):
        assert _row(shown, "processes", name)[2] == "up"
    assert _row(shown, "calls", "inventory-api", "InventoryService/CheckStock")[2].endswith("/s")
    assert _row(shown, "calls", "inventory-api", "InventoryService/CheckStock")[4] in ("ms", "s")
    refusal = _row(shown, "refused and failed calls", "inventory-api", "InventoryService/ReserveStock")
    assert refusal[2:4] == ["FAILED_PRECONDITION", "INSUFFICIENT_STOCK"]
    assert float(_row(shown, "batches", "inventory-api", "check-stock")[4]) >= 1
    for table, row in (
        ("outboxes and their relay", ("inventory",)),
        ("outboxes and their relay", ("orders",)),
        ("consumers", ("inventory-api", "order-events")),
        ("consumers", ("order-api", "inventory-events")),
        ("stock", ("held", "reservations", "running")),
        ("stock", ("units", "withheld")),
        ("reaper", ("expire-reservations",)),
    ):
        assert _row(shown, table, *row)
    assert "STOCK_UPDATED" in shown


def test_inactive_rows_are_shown_only_with_all(stack: Stack, busy: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["top", "--once", "--interval", "0.5", *_processes(stack)])
    assert "items-page" not in capsys.readouterr().out
    main(["top", "--once", "--interval", "0.5", "--all", *_processes(stack)])
    assert "check-stock" in capsys.readouterr().out


def test_an_unavailable_process_is_shown_as_such(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    (nobody,) = free_ports(1)
    assert main(["top", "--once", "--interval", "0.2", *_processes(stack), f"--process=late=localhost:{nobody}"]) == 1

    shown = capsys.readouterr().out
    assert shown.startswith("Trouble: late is unavailable: ")
    assert _row(shown, "processes", "late")[2] == "unavailable"
    assert _row(shown, "processes", "order-api")[2] == "up"


def test_a_process_that_answers_and_is_not_ready_is_named(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    with stack.inventory_api.frozen():
        shown = ""
        while "; reservation-reaper is not ready" not in shown:
            assert time.monotonic() < deadline, shown
            assert main(["top", "--once", "--interval", "0.2", *_processes(stack)]) == 1
            shown = capsys.readouterr().out.partition(".\n")[0]


def test_every_table_is_shown_even_if_its_process_is_unavailable(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    with stack.relay.frozen():
        assert main(["top", "--once", "--interval", "0.2", *_processes(stack)]) == 1

    shown = capsys.readouterr().out
    assert shown.startswith("Trouble: event-relay is unavailable: ")
    assert _row(shown, "outboxes and their relay", "event-relay", "is", "unavailable")
    assert _row(shown, "consumers", "order-api", "inventory-events")
    for table in ("refused and failed calls", "batches", "counters", "stock", "reaper"):
        assert table in map(str.strip, shown.splitlines())


def test_it_is_refreshed_in_place_until_ctrl_c(stack: Stack, busy: None) -> None:
    terminal, ours = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "shopctl", "top", "--interval", "0.2", *_processes(stack)],
        env=inherited_environment() | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        stdin=subprocess.DEVNULL,
        stdout=ours,
        stderr=ours,
    ) as top:
        os.close(ours)
        try:
            seen = _read(terminal, until=lambda seen: seen.count("processes") >= 3)
            top.send_signal(signal.SIGINT)
            seen += _read(terminal, until=lambda _: False)
            assert top.wait(SEEN_SECONDS) == 0, seen
        finally:
            top.kill()
            os.close(terminal)

    alternate_screen, normal_screen = "\x1b[?1049h", "\x1b[?1049l"
    assert seen.index(alternate_screen) < seen.index("processes") < seen.index(normal_screen)
    assert "CheckStock" in seen


def test_without_a_system_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["top", "--once"]) == 1
    assert capsys.readouterr().err == "top: dev is not running here; start it with ./task dev\n"


@pytest.mark.parametrize("interval", ["0", "-1", "soon", "nan", "1000"])
def test_an_interval_that_makes_no_sense_is_refused(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--once", f"--interval={interval}"])

    assert ended.value.code == 2
    assert "must be from 0.2 to 60" in capsys.readouterr().err


def _processes(stack: Stack) -> list[str]:
    ports = stack.ports
    metrics = (ports.inventory_metrics, ports.orders_metrics, ports.reaper_metrics, ports.relay_metrics)
    return [
        f"--process={process.name}=localhost:{port}" for process, port in zip(stack.processes, metrics, strict=True)
    ]


def _buy(shop: Shop) -> None:
    shop.call(shop.inventory.CreateInventoryItem, CreateInventoryItemRequest(product_id=1, quantity=1, location="A"))
    shop.call(shop.inventory.CheckStock, CheckStockRequest(product_id=1, required_quantity=1))
    with suppress(Refused):
        shop.call(shop.inventory.ReserveStock, ReserveStockRequest(product_id=2, quantity=1, order_id="order"))


@contextmanager
def _repeating(act: Callable[[], None]) -> Iterator[None]:
    """Repeat the action during the block; at its end, raise the first error."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:

        def run() -> None:
            while not stop.is_set():
                act()
                stop.wait(0.02)  # leave processor time to the others

        running = thread.submit(run)
        try:
            yield
        finally:
            stop.set()
        running.result()


def _row(shown: str, table: str, *names: str) -> list[str]:
    """Return the words of the row with these names in the table with this title."""
    lines = [line.rstrip() for line in shown.splitlines()]
    assert table in lines, shown
    for line in lines[lines.index(table) + 2 :]:
        cells = line.split()
        if not cells:
            break
        if cells[: len(names)] == list(names):
            return cells
    raise AssertionError(f"no row {names} in {table!r}:\n{shown}")


def _read(terminal: int, *, until: Callable[[str], bool]) -> str:
    """Read from the terminal until the condition is true or the writer has closed it."""
    seen, deadline = "", time.monotonic() + SEEN_SECONDS
    while not until(seen):
        assert time.monotonic() < deadline, seen
        try:
            seen += os.read(terminal, 65_536).decode(errors="replace")
        except OSError:
            break  # the other end is closed
    return seen
