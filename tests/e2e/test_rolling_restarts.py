"""Every process restarted in turn, as a deployment does it, while buyers buy: they notice nothing."""

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
PAUSE_SECONDS = 0.1  # between a buyer's purchases: the embedded broker keeps only so many events
STOP_SECONDS = 30
READY_SECONDS = 120


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """Of its own: other stacks' consumers are of the same groups."""
    with kafka_brokers.provide(containers=True) as started:
        yield started


@pytest.fixture(scope="module")
def pair(postgres_server: PostgresServer, broker: Kafka) -> Iterator[tuple[Stack, Stack]]:
    """Two of each process, over the same two databases, each API called at the addresses of both of its processes.

    On PostgreSQL: SQLite's way to grow is WORKERS.
    """
    databases = Databases.on_server(postgres_server)
    ports = (Ports.free(), Ports.free())
    inventory_target, order_target = targets(ports)
    # A restarted relay gives its shards back; only a killed one makes the other wait for its lease.
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
    """Of inventory-api and order-api, both processes of each."""
    return target_of(*(each.inventory for each in ports)), target_of(*(each.orders for each in ports))


@dataclass
class Sales:
    """What the buyers were told: ids of orders and of reservations by how they ended, and what went wrong."""

    shipped: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    failures: list[ShopError] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.shipped) + len(self.cancelled) + len(self.held) + len(self.released)

    def wait_for(self, more: int, within_seconds: float = 60) -> None:
        """Until so many more have been made."""
        wanted, deadline = self.count + more, time.monotonic() + within_seconds
        while self.count < wanted:
            assert time.monotonic() < deadline, f"buyers are stuck at {self.count} purchases"
            threading.Event().wait(0.05)


@pytest.mark.timeout(600)  # 24 restarts, one after the other
def test_buyers_notice_no_restart_and_no_unit_or_event_is_lost_or_doubled(pair: tuple[Stack, Stack]) -> None:
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
        holds_made = sum(len(shop.reservations(product)) for product in products)
        assert holds_made == sales.count, "no hold was made twice"
        assert_each_event_once(shop, sales)


def restart(stack: Stack, name: str) -> None:
    """As a deployment does it: the old process drains and ends well; the next is touched when this one is ready."""
    (process,) = (each for each in stack.processes if each.name == name)
    process.terminate()
    assert process.wait(STOP_SECONDS) == 0, process.tail()
    process.start()
    process.wait_ready(READY_SECONDS)


@contextmanager
def buyers(shop: ShopDriver, products: list[int]) -> Iterator[Sales]:
    """For each product one who orders and ships or cancels, one who holds and keeps or gives back, until the end."""
    sales, done = Sales(), threading.Event()

    def again_and_again(buy: Callable[[ShopDriver, int, Sales, int], None], product: int) -> None:
        turn = 0
        while not done.wait(PAUSE_SECONDS):
            turn += 1
            try:
                buy(shop, product, sales, turn)
            except ShopError as error:
                sales.failures.append(error)

    each = [(buy, product) for product in products for buy in (order, hold)]
    threads = [threading.Thread(target=again_and_again, args=arguments) for arguments in each]
    for thread in threads:
        thread.start()
    try:
        yield sales
    finally:
        done.set()
        for thread in threads:
            thread.join()


def order(shop: ShopDriver, product: int, sales: Sales, turn: int) -> None:
    placed = shop.create_order((product, 1), request_id=str(uuid4()))
    shop.change_status(placed.id, CONFIRMED)
    if turn % 2:
        shop.change_status(placed.id, PROCESSING, SHIPPED)
        sales.shipped.append(placed.id)
    else:
        shop.change_status(placed.id, CANCELLED)
        sales.cancelled.append(placed.id)


def hold(shop: ShopDriver, product: int, sales: Sales, turn: int) -> None:
    reservation = shop.reserve(product, 1, request_id=str(uuid4()))
    if turn % 2:
        sales.held.append(reservation.id)
        return
    given_back = shop.api.call(
        shop.api.inventory.ReleaseStock, inventory_pb2.ReleaseStockRequest(reservation_id=reservation.id)
    )
    # A release that is sent again answers the same.
    assert given_back.released_quantity == 1
    sales.released.append(reservation.id)


def assert_each_event_once(shop: ShopDriver, sales: Sales) -> None:
    """Each order and each hold has told its story on Kafka, whole and in order; a repeat came under the same id."""
    stories = {order_id: ["ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_CANCELLED"] for order_id in sales.cancelled}
    stories |= {
        order_id: ["ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_PROCESSING", "ORDER_SHIPPED"]
        for order_id in sales.shipped
    }
    wanted = sum(map(len, stories.values()))
    found = first_occurrences(shop.kafka, "order-events", lambda record: record.key in stories, wanted)
    told: dict[str, list[str]] = {}
    for record in found:
        told.setdefault(record.key or "", []).append(record.headers["ce_type"])
    assert told == stories

    holds = {reservation_id: ["STOCK_RESERVED"] for reservation_id in sales.held}
    holds |= {reservation_id: ["STOCK_RESERVED", "STOCK_RELEASED"] for reservation_id in sales.released}
    wanted = sum(map(len, holds.values()))
    found = first_occurrences(
        shop.kafka, "inventory-events", lambda record: record.json()["data"].get("reservation_id") in holds, wanted
    )
    told = {}
    for record in found:
        told.setdefault(record.json()["data"]["reservation_id"], []).append(record.headers["ce_type"])
    assert told == holds


def first_occurrences(kafka: Kafka, topic: str, ours: Callable[[Record], bool], wanted: int) -> list[Record]:
    """Our events by their ids, each as it came first, in the order of its partition, once so many are there."""

    def unrepeated(records: list[Record]) -> dict[str, Record]:
        first: dict[str, Record] = {}
        for record in records:
            if ours(record):
                first.setdefault(record.headers["ce_id"], record)
        return first

    return list(unrepeated(kafka.consume(topic, lambda r: len(unrepeated(r)) >= wanted, within_seconds=60)).values())
