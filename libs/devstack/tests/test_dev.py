import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from pathlib import Path

import grpc
import psutil
import pytest

from devstack import postgres
from devstack.certificates import Files
from devstack.dev import drain
from devstack.dev.options import port_option
from devstack.ports import free_ports
from devstack.process import Process, inherited_environment
from devstack.stack import Databases, Ports
from shop_common.rpc.tls import channel_credentials
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2, order_pb2_grpc
from shopctl.system import log_book, runfile
from shopctl.system.grpc_health import health
from shopctl.system.log_book import Line
from shopctl.system.runfile import RunFile
from testkit.calls import outcome
from testkit.eventually import eventually
from testkit.tasks import main

NAMES = ("inventory-api", "order-api", "reservation-reaper", "event-relay")
PORTS = [port_option(field.name) for field in fields(Ports) if not field.name.endswith("_metrics")]
PORT_OPTIONS = [*PORTS, "--kafka-port"]
HEALTHY_SECONDS = 180
END_SECONDS = 120

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `dev` on its own ports, in an empty folder; kills what is still running after the test."""
    with _starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, RunFile, Start]]:
    """A healthy `dev`, and a function that starts another one beside it."""
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


def test_it_listens_on_the_loopback_only(running: tuple[Process, RunFile, Start]) -> None:
    dev, run, _ = running

    listening = {
        one.laddr[0].removeprefix("::ffff:")
        for process in [psutil.Process(dev.pid), *_everyone(dev)]
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }

    assert listening == {"127.0.0.1"}
    assert {endpoint.address.partition(":")[0] for endpoint in run.processes.values()} == {"127.0.0.1"}


def test_it_listens_where_it_is_told_to_and_says_that_it_is_open(start: Start, tmp_path: Path) -> None:
    dev = start("--listen", "0.0.0.0")
    run = _healthy(dev, tmp_path)

    relay = psutil.Process(run.processes["event-relay"].pid)
    listening = {one.laddr[0] for one in relay.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    assert listening & {"0.0.0.0", "::", "::ffff:0.0.0.0"}
    assert "other machines can reach these ports (0.0.0.0) without authentication" in dev.log


def test_with_secure_every_rpc_needs_a_certificate(start: Start, tmp_path: Path) -> None:
    dev = start("--secure")
    run = _healthy(dev, tmp_path)

    tested = subprocess.run(
        [sys.executable, "-m", "shopctl", "test-grpc"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    with pytest.raises(grpc.RpcError) as refused:
        _add_stock(run)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    certificate = Path("run/certificates/shopctl/tls.crt")
    assert f"-cert {certificate} " in dev.log
    assert (tmp_path / certificate).is_file()
    staff, shopper = ((tmp_path / f"run/identity/{user}.token").read_text().strip() for user in ("staff", "shopper"))
    assert _list_orders(run, tmp_path, staff) is grpc.StatusCode.OK
    assert _list_orders(run, tmp_path, shopper) is grpc.StatusCode.PERMISSION_DENIED


def test_with_secure_both_apis_accept_an_api_key(start: Start, tmp_path: Path) -> None:
    run = _healthy(start("--secure"), tmp_path)

    command = ["keys", "create", "--name", "a test", "--permissions", "inventory.read,orders.read,orders.any"]
    created = subprocess.run(
        [sys.executable, "-m", "shopctl", *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    key = created.stdout.strip()
    eventually(lambda: _list_orders(run, tmp_path, key) is grpc.StatusCode.OK)
    eventually(lambda: _check_stock(run, tmp_path, key) is grpc.StatusCode.OK)


def _list_orders(run: RunFile, folder: Path, token: str) -> grpc.StatusCode:
    """The status of a call that lists the orders of a user who is not `shopper`."""
    with grpc.secure_channel(run.apis[1], _credentials(folder)) as channel:
        list_orders = order_pb2_grpc.OrderServiceStub(channel).ListOrders
        request, metadata = order_pb2.ListOrdersRequest(user_id=2), (("authorization", f"Bearer {token}"),)
        return outcome(lambda: list_orders(request, metadata=metadata, timeout=60)).code


def _check_stock(run: RunFile, folder: Path, token: str) -> grpc.StatusCode:
    with grpc.secure_channel(run.apis[0], _credentials(folder)) as channel:
        check = inventory_pb2_grpc.InventoryServiceStub(channel).CheckStock
        request = inventory_pb2.CheckStockRequest(product_id=1, required_quantity=1)
        metadata = (("authorization", f"Bearer {token}"),)
        return outcome(lambda: check(request, metadata=metadata, timeout=60)).code


def _credentials(folder: Path) -> grpc.ChannelCredentials:
    return channel_credentials(Files(folder / "run/certificates/shopctl").for_clients.read())


def test_a_second_one_in_the_same_folder_is_refused_and_told_who_runs(running: tuple[Process, RunFile, Start]) -> None:
    dev, _, start = running
    second = start(*_port_options())

    assert second.wait(HEALTHY_SECONDS) == 1
    (line,) = second.log.splitlines()
    assert f"dev is already running here (pid {dev.pid}): ./task stop ends it" in line


def test_one_elsewhere_says_at_once_who_has_the_ports_and_how_to_choose_others(
    running: tuple[Process, RunFile, Start], tmp_path: Path
) -> None:
    _, run, _ = running
    ports = [run.processes[name].address.rpartition(":")[2] for name in NAMES]
    kafka_port = run.bootstrap.rpartition(":")[2]
    with _starting(tmp_path) as start:
        options = zip(PORTS, ports, strict=False)
        second = start(*(f"{option}={port}" for option, port in options), f"--kafka-port={kafka_port}")

        assert second.wait(HEALTHY_SECONDS) == 1
        (line,) = second.log.splitlines()
        for name, option, port in zip(NAMES, PORTS, ports, strict=False):
            assert f"{option} {port}: in use by pid {run.processes[name].pid} (" in line
        assert f"--kafka-port {kafka_port}: in use by pid {run.broker_pid} (" in line


def test_one_elsewhere_on_the_same_data_is_refused_and_told_who_uses_it(
    running: tuple[Process, RunFile, Start], tmp_path: Path
) -> None:
    dev, run, _ = running
    data = Path(run.databases.orders.removeprefix("sqlite:///")).parent
    with _starting(tmp_path) as start:
        second = start("--data-dir", str(data))

        assert second.wait(HEALTHY_SECONDS) == 1
        (line,) = second.log.splitlines()
        assert f"--data-dir {data}: in use by another dev (pid {dev.pid})" in line


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


def test_the_effects_of_clients_that_continue_to_call_are_finished_too(start: Start, tmp_path: Path) -> None:
    dev = start()
    run = _healthy(dev, tmp_path)
    load = Process("load", [sys.executable, "-m", "shopctl", "load", "--rate", "20"], folder=tmp_path).start()
    try:
        load.wait_for_line(" cancelled, ", HEALTHY_SECONDS)
        os.killpg(dev.pid, signal.SIGINT)
        assert dev.wait(END_SECONDS) == 0, dev.tail()
        assert load.alive
    finally:
        load.kill()

    assert "gave up" not in dev.log
    with closing(sqlite3.connect(run.databases.orders.removeprefix("sqlite:///"))) as orders:
        cancelled = set(orders.execute("SELECT id FROM orders WHERE status = 'CANCELLED'"))
    with closing(sqlite3.connect(run.databases.inventory.removeprefix("sqlite:///"))) as inventory:
        confirmed = inventory.execute("SELECT order_id FROM stock_reservations WHERE state = 'CONFIRMED'")
        assert cancelled
        assert cancelled.isdisjoint(confirmed)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_any_signal_that_ends_it_ends_all_of_it(start: Start, tmp_path: Path, signum: signal.Signals) -> None:
    dev = start()
    _healthy(dev, tmp_path)
    everyone = _everyone(dev)

    dev.send_signal(signum)

    assert dev.wait(END_SECONDS) == 0, dev.tail()
    assert _left(everyone) == []


def test_a_process_that_dies_is_started_again(start: Start, tmp_path: Path) -> None:
    dev = start()
    before = _healthy(dev, tmp_path).processes["event-relay"].pid

    os.kill(before, signal.SIGKILL)

    dev.wait_for_line("event-relay was ended by SIGKILL; restarting it", HEALTHY_SECONDS)
    dev.wait_for_line("event-relay serves again", HEALTHY_SECONDS)
    run = runfile.read(tmp_path / runfile.PATH)
    assert run.processes["event-relay"].pid != before
    assert health(run.processes["event-relay"].address) == "SERVING"


def test_a_process_that_can_never_start_again_is_tried_less_and_less_often(start: Start, tmp_path: Path) -> None:
    dev = start()
    run = _healthy(dev, tmp_path)
    data = Path(run.databases.orders.removeprefix("sqlite:///"))
    for file in data.parent.glob("orders.db*"):
        file.unlink()

    os.kill(run.processes["order-api"].pid, signal.SIGKILL)

    for delay in ("0.5 s", "1 s", "2 s"):
        dev.wait_for_line(f"restarting it in {delay}", HEALTHY_SECONDS)
    assert health(run.processes["inventory-api"].address) == "SERVING"


def test_a_broker_that_dies_ends_all_since_its_events_are_gone(start: Start, tmp_path: Path) -> None:
    dev = start()
    run = _healthy(dev, tmp_path)
    everyone = _everyone(dev)
    assert run.broker_pid

    os.kill(run.broker_pid, signal.SIGKILL)

    assert dev.wait(END_SECONDS) == 1
    assert "the broker was ended by SIGKILL; its events are lost, so everything ends" in dev.log
    assert _left(everyone) == []


def test_what_it_shows_may_go_nowhere(tmp_path: Path) -> None:
    """The system continues and stores its logs if the reader of its output ends, as with `| head`."""
    command = [sys.executable, "-m", "devstack.dev", *_port_options()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=inherited_environment(), cwd=tmp_path, start_new_session=True
    ) as dev:
        try:
            assert dev.stdout is not None
            dev.stdout.readline()
            dev.stdout.close()
            lines = _kept_lines(tmp_path, until="next: ")
            dev.send_signal(signal.SIGINT)
            assert dev.wait(END_SECONDS) == 0
        finally:
            if dev.poll() is None:
                os.killpg(dev.pid, signal.SIGKILL)
    assert {line.process for line in lines} >= {*NAMES, "broker", "dev"}


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


def test_stop_ends_one_that_is_still_starting(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dev = start()
    dev.wait_for_line("starting", HEALTHY_SECONDS)
    monkeypatch.chdir(tmp_path)

    assert main(["stop"]) == 0

    assert dev.wait(END_SECONDS) == 0, dev.tail()


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
    """Return options for its own ports, the same each time; the given options override them."""
    ports = _port_options()
    with ExitStack() as afterwards:

        def start(*options: str) -> Process:
            dev = Process("dev", [sys.executable, "-m", "devstack.dev", *ports, *options], folder=folder)
            afterwards.callback(dev.kill)
            return dev.start()

        yield start


def _port_options() -> list[str]:
    """Return the required ports, without metrics and without the console, which has tests of its own."""
    ports = zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True)
    return ["--no-metrics", "--no-console", *(f"{option}={port}" for option, port in ports)]


def _kept_lines(folder: Path, *, until: str) -> list[Line]:
    lines: list[Line] = []

    def has_line() -> bool:
        lines[:] = log_book.read(folder / log_book.PATH)
        return any(until in line.line for line in lines)

    eventually(has_line, HEALTHY_SECONDS, lambda: str(lines))
    return lines


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
    # The watchdog notices the end of dev and ends shortly afterwards.
    _, left = psutil.wait_procs(processes, timeout=5)
    return list(left)
