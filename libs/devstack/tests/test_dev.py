import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from devstack import drain, postgres, runfile
from devstack.ports import free_ports
from devstack.process import Process
from devstack.runfile import RunFile
from devstack.stack import Databases
from shop.inventory.v1 import inventory_pb2, inventory_pb2_grpc

NAMES = ("inventory-api", "order-api", "reservation-reaper", "event-relay")
PORT_OPTIONS = ("--inventory-port", "--order-port", "--reaper-port", "--relay-port")
HEALTHY_SECONDS = 180
END_SECONDS = 90

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `dev` on ports of its own, in an empty folder; what still runs after the test is killed."""
    with _starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, RunFile, Start]]:
    """A `dev` that is healthy, and the means to start another beside it."""
    folder = tmp_path_factory.mktemp("dev")
    with _starting(folder) as start:
        dev = start()
        yield dev, _healthy(dev, folder), start


def test_it_says_where_each_listens(running: tuple[Process, RunFile, Start]) -> None:
    dev, run, _ = running

    for name in NAMES:
        assert re.search(rf"^ *{name} +{run.processes[name].address} +SERVING +off", dev.log, re.MULTILINE)


def test_each_line_of_the_log_says_who_speaks(running: tuple[Process, RunFile, Start]) -> None:
    dev, _, _ = running

    for name in NAMES:
        assert re.search(rf"^{name} +│ .*serving", dev.log, re.MULTILINE)


def test_a_second_one_says_at_once_which_ports_are_busy(running: tuple[Process, RunFile, Start]) -> None:
    _, run, start = running
    second = start()

    assert second.wait(HEALTHY_SECONDS) == 1
    (line,) = second.log.splitlines()
    for name in NAMES:
        assert run.processes[name].address.rpartition(":")[2] in line


def test_one_ctrl_c_ends_everything_and_loses_nothing(start: Start, tmp_path: Path) -> None:
    dev = start()
    run = _healthy(dev, tmp_path)
    _add_stock(run)
    everyone = _everyone(dev)

    os.killpg(dev.pid, signal.SIGINT)

    assert dev.wait(END_SECONDS) == 0, dev.tail()
    assert _left(everyone) == []
    assert not (tmp_path / runfile.PATH).exists()
    assert drain.backlog(run.databases.inventory) == 0
    assert drain.backlog(run.databases.orders) == 0

    with closing(sqlite3.connect(run.databases.inventory.removeprefix("sqlite:///"))) as database:
        assert database.execute("SELECT product_id, quantity FROM inventory_items").fetchall() == [(1, 5)]


def test_a_process_that_ends_by_itself_is_told_and_ends_the_rest(start: Start, tmp_path: Path) -> None:
    dev = start()
    run = _healthy(dev, tmp_path)
    everyone = _everyone(dev)

    os.kill(run.processes["event-relay"].pid, signal.SIGKILL)

    assert dev.wait(END_SECONDS) == 1
    assert "event-relay ended by itself with exit code -9" in dev.log
    assert _left(everyone) == []


def test_what_cannot_start_says_why_and_ends(start: Start) -> None:
    dev = start("--env", "LOG_LEVEL=loud")

    assert dev.wait(HEALTHY_SECONDS) == 1
    assert "LOG_LEVEL" in dev.log
    assert "ended with exit code" in dev.log


def test_a_ctrl_c_while_it_starts_ends_it_too(start: Start) -> None:
    dev = start()
    dev.wait_for_line("broker ready", HEALTHY_SECONDS)
    everyone = _everyone(dev)

    os.killpg(dev.pid, signal.SIGINT)

    assert dev.wait(END_SECONDS) == 0, dev.tail()
    assert _left(everyone) == []


def test_it_makes_its_databases_on_a_postgresql_server(start: Start, tmp_path: Path) -> None:
    with postgres.provide() as server:
        dev = start(f"--database={server.url}")
        run = _healthy(dev, tmp_path)
        _add_stock(run)
        dev.terminate()

        assert dev.wait(END_SECONDS) == 0, dev.tail()
        assert run.databases == Databases(
            *(server.url.rpartition("/")[0] + f"/{name}" for name in ("inventory", "orders"))
        )
        assert drain.backlog(run.databases.inventory) == 0


@contextmanager
def _starting(folder: Path) -> Iterator[Start]:
    ports = [f"{option}={port}" for option, port in zip(PORT_OPTIONS, free_ports(4), strict=True)]
    with ExitStack() as afterwards:

        def start(*options: str) -> Process:
            command = [sys.executable, "-m", "devstack.dev", "--no-metrics", *ports, *options]
            dev = Process("dev", command, folder=folder)
            afterwards.callback(dev.kill)
            return dev.start()

        yield start


def _healthy(dev: Process, folder: Path) -> RunFile:
    dev.wait_for_line("next: ", HEALTHY_SECONDS)
    return runfile.read(folder / runfile.PATH)


def _add_stock(run: RunFile) -> None:
    request = inventory_pb2.CreateInventoryItemRequest(product_id=1, quantity=5, location="WAREHOUSE_A")
    with grpc.insecure_channel(run.processes["inventory-api"].address) as channel:
        inventory_pb2_grpc.InventoryServiceStub(channel).CreateInventoryItem(request, timeout=5)


def _everyone(dev: Process) -> list[psutil.Process]:
    return psutil.Process(dev.pid).children(recursive=True)


def _left(processes: list[psutil.Process]) -> list[psutil.Process]:
    # The watchdog sees dev's end and ends a moment later.
    _, left = psutil.wait_procs(processes, timeout=5)
    return list(left)
