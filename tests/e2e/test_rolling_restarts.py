"""Every process is restarted in turn, as in a rolling deployment: no call fails and nothing is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from devstack import kafka as kafka_brokers
from devstack.kafka import Kafka, Record
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Ports, Stack, target_of
from shop_common.errors import ShopError
from shop_protos.inventory.v1 import inventory_pb2
from shopctl import client
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, PROCESSING, SHIPPED, ShopDriver

ROUNDS = 3
UNITS = 10_000
PAUSE_SECONDS = 0.1  # between purchases of a buyer, because the embedded broker keeps a limited number of events
STOP_SECONDS = 30
READY_SECONDS = 120


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """A broker for this file alone: the consumer groups of two stacks have the same names."""
    with kafka_brokers.provide(containers=True) as started:
        yield started


@pytest.fixture(scope="module")
def pair(postgres_server: PostgresServer, broker: Kafka) -> Iterator[tuple[Stack, Stack]]:
    """Two processes of each kind over the same two databases. Clients of an API know the addresses of both processes.

    On PostgreSQL only: with SQLite, an API grows by WORKERS.
    """
    databases = Databases.on_server(postgres_server)
    ports = (Ports.free(), Ports.free())
    inventory_target, order_target = targets(ports)
    # A relay that stops releases its leases. After a kill, the other relay would have to wait until they expire.
    options = Options(
        drain_seconds=0.5,
        per_process={
            ORDER_API: {"INVENTORY_TARGET": inventory_target},
            REAPER: {"INVENTORY_TARGET": inventory_target, "ORDER_TARGET": order_target},
        },
    )
    first, second = (Stack(databases, broker, each, options) for each in ports)
    with first:
        try:
            yield first, second.start()
        finally:
            assert set(second.stop().values()) == {0}
        assert set(first.stop().values()) == {0}


def targets(ports: tuple[Ports, Ports]) -> tuple[str, str]:
    """The gRPC targets of inventory-api and of order-api, each with the addresses of both processes."""
    return target_of(*(each.inventory for each in ports)), target_of(*(each.orders for each in ports))


@dataclass
class Sales:
    """The acknowledged purchases: ids of orders and reservations by their last status; and the failed calls."""

    shipped: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    failures: list[ShopError] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.shipped) + len(self.cancelled) + len(self.held) + len(self.released)

    def wait_for(self, more: int, within_seconds: float = 60) -> None:
        """Wait for this many more purchases."""
        target, deadline = self.count + more, time.monotonic() + within_seconds
        while self.count < target:
            assert time.monotonic() < deadline, f"buyers are stuck at {self.count} purchases"
            threading.Event().wait(0.05)


@pytest.mark.timeout(600)  # 24 restarts, one after the other
def test_no_call_fails_and_no_unit_or_event_is_lost_or_duplicated(pair: tuple[Stack, Stack]) -> None:
    ports = (pair[0].ports, pair[1].ports)
    api = client.Shop.connect(*targets(ports))
    with ShopDriver(pair[0], api) as shop:
        shop.wait_ready()
        products = [shop.stocked_product(units=UNITS) for _ in range(3)]
        with buyers(shop, products) as sales:
            for _ in range(ROUNDS):
                for name in (INVENTORY_API, ORDER_API, REAPER, RELAY):
                    for stack in pair:
                        restart(stack, name)
                        sales.wait_for(10)

        assert sales.failures == []
        assert min(map(len, (sales.shipped, sales.cancelled, sales.held, sales.released))) > 20
        left = len(products) * UNITS - len(sales.shipped)
        shop.eventually(lambda: sum(map(shop.on_hand, products)) == left, within_seconds=60)
        shop.eventually(lambda: sum(map(shop.available, products)) == left - len(sales.held), within_seconds=60)
        for product in products:
            shop.assert_consistent(product, stocked=UNITS)
        reservations = sum(len(shop.reservations(product)) for product in products)
        assert reservations == sales.count, "no stock was reserved twice"
        assert_each_event_once(shop, sales)


def restart(stack: Stack, name: str) -> None:
    """Restart a process as a deployment does: send SIGTERM, expect exit code 0, start it, wait until it is ready."""
    (process,) = (each for each in stack.processes if each.name == name)
    process.terminate()
    assert process.wait(STOP_SECONDS) == 0, process.tail()
    process.start()
    process.wait_ready(READY_SECONDS)


@contextmanager
def buyers(shop: ShopDriver, products: list[int]) -> Iterator[Sales]:
    """Two buyers for each product: one ships or cancels orders, the other keeps or releases reservations."""
    sales, done = Sales(), threading.Event()

    def repeat(buy: Callable[[ShopDriver, int, Sales, int], None], product: int) -> None:
        turn = 0
        while not done.wait(PAUSE_SECONDS):
            turn += 1
            try:
                buy(shop, product, sales, turn)
            except ShopError as error:
                sales.failures.append(error)

    each = [(buy, product) for product in products for buy in (order, reserve)]
    threads = [threading.Thread(target=repeat, args=arguments) for arguments in each]
    for thread in threads:
        thread.start()
    try:
        yield sales
    finally:
        done.set()
        for thread in threads:
            thread.join()


def order(shop: ShopDriver, product: int, sales: Sales, turn: int) -> None:
    created = shop.create_order((product, 1), request_id=str(uuid4()))
    shop.change_status(created.id, CONFIRMED)
    if turn % 2:
        shop.change_status(created.id, PROCESSING, SHIPPED)
        sales.shipped.append(created.id)
    else:
        shop.change_status(created.id, CANCELLED)
        sales.cancelled.append(created.id)


def reserve(shop: ShopDriver, product: int, sales: Sales, turn: int) -> None:
    reservation = shop.reserve(product, 1, request_id=str(uuid4()))
    if turn % 2:
        sales.held.append(reservation.id)
        return
    response = shop.api.call(
        shop.api.inventory.ReleaseStock, inventory_pb2.ReleaseStockRequest(reservation_id=reservation.id)
    )
    # A repeated release returns the same quantity.
    assert response.released_quantity == 1
    sales.released.append(reservation.id)


def assert_each_event_once(shop: ShopDriver, sales: Sales) -> None:
    """Check that the events of each order and reservation are complete, in order, and distinct except for repeats."""
    order_events = {order_id: ["ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_CANCELLED"] for order_id in sales.cancelled}
    order_events |= {
        order_id: ["ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_PROCESSING", "ORDER_SHIPPED"]
        for order_id in sales.shipped
    }
    count = sum(map(len, order_events.values()))
    records = first_occurrences(shop.kafka, "order-events", lambda record: record.key in order_events, count)
    by_order: dict[str, list[str]] = {}
    for record in records:
        by_order.setdefault(record.key or "", []).append(record.headers["ce_type"])
    assert by_order == order_events

    reservation_events = {reservation_id: ["STOCK_RESERVED"] for reservation_id in sales.held}
    reservation_events |= {reservation_id: ["STOCK_RESERVED", "STOCK_RELEASED"] for reservation_id in sales.released}
    count = sum(map(len, reservation_events.values()))
    records = first_occurrences(
        shop.kafka,
        "inventory-events",
        lambda record: record.json()["data"].get("reservation_id") in reservation_events,
        count,
    )
    by_reservation: dict[str, list[str]] = {}
    for record in records:
        by_reservation.setdefault(record.json()["data"]["reservation_id"], []).append(record.headers["ce_type"])
    assert by_reservation == reservation_events


def first_occurrences(kafka: Kafka, topic: str, ours: Callable[[Record], bool], count: int) -> list[Record]:
    """Wait for `count` distinct events for which `ours` is true. Returns the first occurrence of each, in order."""

    def by_id(records: list[Record]) -> dict[str, Record]:
        first: dict[str, Record] = {}
        for record in records:
            if ours(record):
                first.setdefault(record.headers["ce_id"], record)
        return first

    return list(by_id(kafka.consume(topic, lambda found: len(by_id(found)) >= count, within_seconds=60)).values())
