"""The real reaper process, with a real inventory-api."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from devstack.ports import free_ports
from devstack.process import Process
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1.inventory_pb2_grpc import InventoryServiceStub
from shopctl.system.grpc_health import health
from testkit.eventually import eventually

START_SECONDS = 60
HOUR_SECONDS = 3600

# Python imports this module when it starts. It shifts the clock of the scheduler and of our code by the number of
# seconds in a file. Everything else uses the real clock, such as gRPC, which keeps its deadlines in C.
_CLOCK = """
import datetime
import pathlib
import sys
import time

FILE = pathlib.Path({file!r})
OURS = ("apscheduler", "reservation_reaper")
_time = time.time


def shift():
    ours = sys._getframe(2).f_globals.get("__name__", "").partition(".")[0] in OURS
    return int(FILE.read_text()) if ours else 0


class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        # An instance of this class: APScheduler takes any other for a date, and runs its task at once.
        return super().now(tz) + datetime.timedelta(seconds=shift())


time.time = lambda: _time() + shift()
datetime.datetime = Shifted
"""


@dataclass
class Clock:
    """The clock of a reaper. Tests can set it."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "sitecustomize.py").write_text(_CLOCK.format(file=str(self.folder / "seconds")))
        self.set(0)

    def set(self, seconds: int) -> None:
        """Shift the clock by this many seconds."""
        written = self.folder / "written"
        written.write_text(str(seconds))
        written.replace(self.folder / "seconds")


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def inventory(tmp_path: Path, cleanup: ExitStack) -> Process:
    """An inventory-api with a fresh database."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    environment = {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'inventory.db'}",
        "GRPC_PORT": address.rpartition(":")[2],
        "HEALTH_PORT": "0",
        "LISTEN_HOST": "127.0.0.1",
        "METRICS_PORT": "0",
        "DRAIN_SECONDS": "0",
        "CONSUMER_ENABLED": "false",
    }
    subprocess.run([sys.executable, "-m", "inventory_api", "migrate"], env=environment, check=True, timeout=60)
    process = Process("inventory-api", [sys.executable, "-m", "inventory_api"], environment, health_address=address)
    cleanup.callback(process.stop)
    process.start().wait_ready(START_SECONDS)
    return process


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def reaper(inventory: Process, clock: Clock, cleanup: ExitStack) -> Process:
    """A reaper that calls this inventory-api, and an order-api that does not run."""
    health_port, unused_port = free_ports(2)
    environment = {
        "INVENTORY_TARGET": inventory.health_address or "",
        "ORDER_TARGET": f"127.0.0.1:{unused_port}",
        "HEALTH_PORT": str(health_port),
        "LISTEN_HOST": "127.0.0.1",
        "METRICS_PORT": "0",
        "DRAIN_SECONDS": "0",
        "REAP_INTERVAL_SECONDS": "0.05",
        "CALL_SECONDS": "2",
        "LOG_FORMAT": "json",
        "PYTHONPATH": str(clock.folder),
    }
    process = Process(
        "reaper", [sys.executable, "-m", "reservation_reaper"], environment, health_address=f"127.0.0.1:{health_port}"
    )
    cleanup.callback(process.stop)
    process.start().wait_ready(START_SECONDS, "liveness")
    return process


def reserve(inventory: Process, *order_ids: str) -> None:
    """Reserve one unit for each order, for one second."""
    with grpc.insecure_channel(inventory.health_address or "") as channel:
        api = InventoryServiceStub(channel)
        api.CreateInventoryItem(pb.CreateInventoryItemRequest(product_id=1, quantity=len(order_ids)), timeout=10)
        for order_id in order_ids:
            request = pb.ReserveStockRequest(product_id=1, quantity=1, order_id=order_id, ttl=Duration(seconds=1))
            api.ReserveStock(request, timeout=10)


def expired(reaper: Process) -> int:
    """Return how many reservations the reaper has expired, from its log."""
    lines = [json.loads(line) for line in reaper.log.splitlines() if line.startswith("{")]
    return sum(line["rows"] for line in lines if line.get("task") == "expire-reservations" and "rows" in line)


def eventually_expired(reaper: Process, count: int) -> None:
    eventually(lambda: expired(reaper) >= count, START_SECONDS, reaper.tail)


def test_an_unavailable_api_does_not_delay_the_tasks_of_the_other(inventory: Process, reaper: Process) -> None:
    reserve(inventory, "o-1", "o-2", "o-3")

    reaper.wait_for_line('"task":"expire-reservations"', START_SECONDS)
    reaper.wait_for_line('"task":"cancel-abandoned-orders"', START_SECONDS)
    assert health(reaper.health_address or "", "liveness") == "SERVING"
    assert health(reaper.health_address or "") == "NOT_SERVING"


def test_tasks_continue_after_the_clock_is_set_back(inventory: Process, reaper: Process, clock: Clock) -> None:
    reserve(inventory, "o-1")
    eventually_expired(reaper, 1)

    clock.set(-HOUR_SECONDS)

    reserve(inventory, "o-2")
    eventually_expired(reaper, 2)
    reaper.wait_for_line("the clock was set back", START_SECONDS)


def test_tasks_continue_after_the_clock_jumps_ahead_by_fifty_years(
    inventory: Process, reaper: Process, clock: Clock
) -> None:
    reserve(inventory, "o-1")
    eventually_expired(reaper, 1)

    clock.set(50 * 365 * 24 * HOUR_SECONDS)

    reserve(inventory, "o-2")
    eventually_expired(reaper, 2)


def test_sigterm_ends_the_process_in_time_although_an_api_does_not_respond(inventory: Process, reaper: Process) -> None:
    with inventory.frozen():
        reaper.wait_for_line('"task":"expire-reservations"', START_SECONDS)  # it failed and will retry
        started_at = time.monotonic()

        assert reaper.stop(seconds=20) == 0

        assert time.monotonic() - started_at < 5
        assert "Traceback" not in reaper.log


def test_it_imports_no_client_of_a_database_or_of_kafka() -> None:
    program = (
        "import sys, reservation_reaper.main; print({'sqlalchemy', 'psycopg', 'confluent_kafka'} & set(sys.modules))"
    )

    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)

    assert printed.stdout == "set()\n"
