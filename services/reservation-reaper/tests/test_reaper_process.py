"""The real process, beside a real inventory-api."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from devstack.ports import free_ports
from devstack.process import Process, health
from shop.inventory.v1 import inventory_pb2 as pb
from shop.inventory.v1.inventory_pb2_grpc import InventoryServiceStub

START_SECONDS = 30


@pytest.fixture
def at_the_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def inventory(tmp_path: Path, at_the_end: ExitStack) -> Process:
    """An inventory-api with a fresh database."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    environment = {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'inventory.db'}",
        "GRPC_PORT": address.rpartition(":")[2],
        "LISTEN_HOST": "127.0.0.1",
        "METRICS_PORT": "0",
        "DRAIN_SECONDS": "0",
        "CONSUMER_ENABLED": "false",
    }
    subprocess.run([sys.executable, "-m", "inventory_api", "migrate"], env=environment, check=True, timeout=60)
    process = Process("inventory-api", [sys.executable, "-m", "inventory_api"], environment, health_address=address)
    at_the_end.callback(process.stop)
    process.start().wait_ready(START_SECONDS)
    return process


@pytest.fixture
def reaper(inventory: Process, at_the_end: ExitStack) -> Process:
    """A reaper of that inventory-api, and of an order-api that is not there."""
    health_port, nobody = free_ports(2)
    environment = {
        "INVENTORY_TARGET": inventory.health_address or "",
        "ORDER_TARGET": f"127.0.0.1:{nobody}",
        "HEALTH_PORT": str(health_port),
        "LISTEN_HOST": "127.0.0.1",
        "METRICS_PORT": "0",
        "DRAIN_SECONDS": "0",
        "REAP_INTERVAL_SECONDS": "0.05",
        "CALL_SECONDS": "2",
        "LOG_FORMAT": "json",
    }
    process = Process(
        "reaper", [sys.executable, "-m", "reservation_reaper"], environment, health_address=f"127.0.0.1:{health_port}"
    )
    at_the_end.callback(process.stop)
    process.start().wait_ready(START_SECONDS, "liveness")
    return process


def test_an_api_that_is_away_does_not_hold_up_the_work_at_the_other(inventory: Process, reaper: Process) -> None:
    with grpc.insecure_channel(inventory.health_address or "") as channel:
        api = InventoryServiceStub(channel)
        api.CreateInventoryItem(pb.CreateInventoryItemRequest(product_id=1, quantity=3), timeout=10)
        for number in range(3):
            hold = pb.ReserveStockRequest(product_id=1, quantity=1, order_id=f"o-{number}", ttl=Duration(seconds=1))
            api.ReserveStock(hold, timeout=10)

    reaper.wait_for_line('"work":"expire-reservations"', START_SECONDS)
    reaper.wait_for_line('"work":"cancel-abandoned-orders"', START_SECONDS)
    assert health(reaper.health_address or "", "liveness") == "SERVING"
    assert health(reaper.health_address or "") == "NOT_SERVING"


def test_sigterm_is_followed_in_time_though_an_api_does_not_answer(inventory: Process, reaper: Process) -> None:
    with inventory.frozen():
        reaper.wait_for_line('"work":"expire-reservations"', START_SECONDS)  # failed, and soon tried again
        started_at = time.monotonic()

        assert reaper.stop(seconds=20) == 0

        assert time.monotonic() - started_at < 5
