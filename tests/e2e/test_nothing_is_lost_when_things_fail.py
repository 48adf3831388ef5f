"""Killed processes, frozen brokers and databases, poisonous events: nothing is lost, nothing doubled."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import pytest
from google.type.money_pb2 import Money

from devstack.postgres import PostgresServer
from devstack.process import Process
from shop_common.errors import Refused, ShopError, Unavailable
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2, order_pb2_grpc
from shopctl.system.grpc_health import health
from tests.e2e.faults import databases_frozen
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, PENDING, PROCESSING, SHIPPED, ShopDriver

_T = TypeVar("_T")

PROCESSES = {
    "inventory-api": lambda stack: stack.inventory_api,
    "order-api": lambda stack: stack.order_api,
    "reservation-reaper": lambda stack: stack.reaper,
    "event-relay": lambda stack: stack.relay,
}


def test_an_event_reaches_kafka_though_the_broker_was_away_when_the_order_was_made(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=2)
    with shop.kafka.frozen():
        order = shop.create_order((product, 1))
        assert order.status == PENDING

    assert shop.order_events(order.id, "ORDER_CREATED", within_seconds=90) == ["ORDER_CREATED"]
    shop.stock_events(product, "STOCK_RESERVED", within_seconds=90)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_loses_nothing_and_doubles_nothing(shop: ShopDriver, name: str) -> None:
    """Buyers go on while one process is killed and started again; then each unit and each event is counted."""
    process: Process = PROCESSES[name](shop.stack)
    product = shop.stocked_product(units=1000)
    with buyers(shop, product) as bought:
        shop.eventually(lambda: len(bought.confirmed) >= 5)
        process.kill()
        process.start()
        so_far = len(bought.confirmed)
        shop.eventually(lambda: len(bought.confirmed) >= so_far + 10, within_seconds=90)
    shop.wait_ready()

    for number, order_id in enumerate(bought.confirmed):
        if number % 2:
            shop.change_status(order_id, CANCELLED)
        else:
            shop.change_status(order_id, PROCESSING, SHIPPED)
    shipped, cancelled = bought.confirmed[::2], bought.confirmed[1::2]

    # Holds of calls that died half-way run out by themselves; nothing but what was shipped is missing then.
    shop.eventually(lambda: shop.available(product) == 1000 - len(shipped) == shop.on_hand(product), within_seconds=60)
    shop.assert_consistent(product, stocked=1000)
    events = shop.stock_events(product, "STOCK_FULFILLED", count=len(shipped), within_seconds=90)
    fulfilled = [data["order_id"] for event_type, data in events if event_type == "STOCK_FULFILLED"]
    assert sorted(fulfilled) == sorted(shipped)
    for order_id in cancelled[:3]:
        created = shop.order_events(order_id, "ORDER_CANCELLED")
        assert created == ["ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_CANCELLED"]


class Bought:
    """What buyers did: an order is confirmed when its buyer was told so."""

    def __init__(self) -> None:
        self.confirmed: list[str] = []
        self.unexpected: list[ShopError] = []


def buy_one(shop: ShopDriver, product: int) -> str:
    request_id = str(uuid4())
    order = insistently(lambda: shop.create_order((product, 1), ttl_seconds=8, request_id=request_id))
    insistently(lambda: shop.change_status(order.id, CONFIRMED))
    return order.id


def insistently(call: Callable[[], _T], within_seconds: float = 60) -> _T:
    """Send the same call again for as long as nobody is there to answer it."""
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            return call()
        except Unavailable:
            if time.monotonic() > deadline:
                raise


@contextmanager
def buyers(shop: ShopDriver, product: int, count: int = 4) -> Iterator[Bought]:
    """Buyers who order one unit each time and confirm, again and again, with a client that retries as documented."""
    bought, done = Bought(), threading.Event()

    def buy() -> None:
        while not done.is_set():
            try:
                bought.confirmed.append(buy_one(shop, product))
            except Refused:
                continue  # the hold ran out while a process was down
            except ShopError as error:
                bought.unexpected.append(error)

    threads = [threading.Thread(target=buy) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield bought
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert bought.unexpected == []


def test_a_frozen_database_is_answered_within_the_deadline_while_the_process_lives(
    shop: ShopDriver, database_server: PostgresServer | None
) -> None:
    product = shop.stocked_product(units=5)
    order = shop.create_order((product, 1))
    # Plain channels: no retry makes an answer of several.
    with (
        grpc.insecure_channel(shop.stack.inventory_address) as inventory_channel,
        grpc.insecure_channel(shop.stack.orders_address) as orders_channel,
        databases_frozen(shop.stack, database_server),
    ):
        inventory = inventory_pb2_grpc.InventoryServiceStub(inventory_channel)
        orders = order_pb2_grpc.OrderServiceStub(orders_channel)
        calls: list[Any] = [
            inventory.ReserveStock.future(
                inventory_pb2.ReserveStockRequest(product_id=product, quantity=1, order_id="any"), timeout=2
            ),
            orders.CreateOrder.future(one_of(product), timeout=2),
            orders.UpdateOrderStatus.future(
                order_pb2.UpdateOrderStatusRequest(id=order.id, status=CONFIRMED), timeout=2
            ),
        ]
        codes = [call.code() for call in calls]
        assert set(codes) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
        for address in (shop.stack.inventory_address, shop.stack.orders_address):
            assert health(address, "liveness") == "SERVING"

    shop.wait_ready()
    # What was on its way when it froze may have happened, all of it or nothing.
    assert shop.available(product) in (2, 3, 4)
    assert shop.change_status(order.id, CONFIRMED).status == CONFIRMED
    shop.assert_consistent(product, stocked=5)


def one_of(product: int) -> order_pb2.CreateOrderRequest:
    price = Money(currency_code="EUR", units=1)
    return order_pb2.CreateOrderRequest(
        user_id=1, items=[order_pb2.CreateOrderItem(product_id=product, quantity=1, price=price)]
    )


def test_a_poisonous_event_is_set_aside_and_stops_nobody(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)
    order = shop.create_order((product, 1))
    poison = f"poison-{uuid4()}"
    headers = {"ce_id": str(uuid4()), "ce_type": "ORDER_CANCELLED"}
    shop.kafka.produce("order-events", order.id, "this is not JSON", headers | {"note": poison})

    shop.change_status(order.id, CANCELLED)

    shop.eventually(lambda: shop.available(product) == 1)
    (letter,) = [
        record
        for record in shop.kafka.consume(
            "order-events.dlq",
            lambda records: any(record.headers.get("note") == poison for record in records),
            within_seconds=30,
        )
        if record.headers.get("note") == poison
    ]
    assert letter.value == b"this is not JSON"
    assert letter.headers["ce_id"] == headers["ce_id"]
    assert letter.headers["dlq_topic"] == "order-events"
    assert letter.headers["dlq_reason"]


def test_a_repeated_event_has_its_effect_once(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=2)
    order = shop.create_order((product, 1))
    shop.change_status(order.id, CONFIRMED, PROCESSING, SHIPPED)
    records = shop.kafka.consume(
        "order-events",
        lambda records: any(r.key == order.id and r.headers["ce_type"] == "ORDER_SHIPPED" for r in records),
        within_seconds=20,
    )
    (shipped,) = [r for r in records if r.key == order.id and r.headers["ce_type"] == "ORDER_SHIPPED"]

    for _ in range(3):
        shop.kafka.produce("order-events", shipped.key, shipped.value, shipped.headers)
    # What comes after the repeats, for the same key's partition, shows that they were handled.
    other = shop.create_order((product, 1))
    shop.change_status(other.id, CANCELLED)

    shop.eventually(lambda: shop.available(product) == 1 == shop.on_hand(product))
    events = shop.stock_events(product, "STOCK_RELEASED")
    assert [event_type for event_type, _ in events].count("STOCK_FULFILLED") == 1
    shop.assert_consistent(product, stocked=2)


def test_a_call_that_runs_when_the_process_is_told_to_stop_is_finished(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=100)
    process = shop.stack.inventory_api
    answered: list[int] = []
    with grpc.insecure_channel(shop.stack.inventory_address) as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        calls = [
            stub.ReserveStock.future(
                inventory_pb2.ReserveStockRequest(product_id=product, quantity=1, order_id="drain"), timeout=10
            )
            for _ in range(50)
        ]
        process.terminate()
        answered = [call.result().reservation.quantity for call in calls if call.code() is grpc.StatusCode.OK]
    assert process.wait(20) == 0
    process.start()
    shop.wait_ready()

    held = sum(reservation.quantity for reservation in shop.reservations(product))
    assert held >= sum(answered)
    shop.assert_consistent(product, stocked=100)


def test_each_endpoint_answers_while_its_neighbour_is_away(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=5)
    order = shop.create_order((product, 1))
    shop.stack.inventory_api.kill()
    try:
        with grpc.insecure_channel(shop.stack.orders_address) as channel:
            stub = order_pb2_grpc.OrderServiceStub(channel)
            assert stub.GetOrder(order_pb2.GetOrderRequest(id=order.id), timeout=5).order.id == order.id
            with pytest.raises(grpc.RpcError) as refusal:
                stub.UpdateOrderStatus(order_pb2.UpdateOrderStatusRequest(id=order.id, status=CONFIRMED), timeout=8)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "INVENTORY_UNAVAILABLE" in str(refusal.value.trailing_metadata())
    finally:
        shop.stack.inventory_api.start()
        shop.wait_ready()
    assert shop.change_status(order.id, CONFIRMED).status == CONFIRMED
