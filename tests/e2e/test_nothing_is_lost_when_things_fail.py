"""Killed processes, frozen brokers and databases, invalid events: nothing is lost and nothing happens twice."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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


def test_an_event_reaches_kafka_after_an_outage_of_the_broker(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=2)
    with shop.kafka.frozen():
        order = shop.create_order((product, 1))
        assert order.status == PENDING

    assert shop.order_events(order.id, "ORDER_CREATED", within_seconds=90) == ["ORDER_CREATED"]
    shop.stock_events(product, "STOCK_RESERVED", within_seconds=90)


@pytest.mark.parametrize("name", PROCESSES)
def test_after_a_kill_nothing_is_lost_or_done_twice(shop: ShopDriver, name: str) -> None:
    """Buyers keep buying while a process is killed and restarted. Then every unit and every event is counted."""
    process: Process = PROCESSES[name](shop.stack)
    product = shop.stocked_product(units=1000)
    with buyers(shop, product) as purchases:
        shop.eventually(lambda: len(purchases.confirmed) >= 5)
        process.kill()
        process.start()
        so_far = len(purchases.confirmed)
        shop.eventually(lambda: len(purchases.confirmed) >= so_far + 10, within_seconds=90)
    shop.wait_ready()

    for number, order_id in enumerate(purchases.confirmed):
        if number % 2:
            shop.change_status(order_id, CANCELLED)
        else:
            shop.change_status(order_id, PROCESSING, SHIPPED)
    shipped, cancelled = purchases.confirmed[::2], purchases.confirmed[1::2]

    # Reservations of interrupted calls expire. After that, only the shipped units are missing.
    shop.eventually(lambda: shop.available(product) == 1000 - len(shipped) == shop.on_hand(product), within_seconds=60)
    shop.assert_consistent(product, stocked=1000)
    events = shop.stock_events(product, "STOCK_FULFILLED", count=len(shipped), within_seconds=90)
    fulfilled = [data["order_id"] for event_type, data in events if event_type == "STOCK_FULFILLED"]
    assert sorted(fulfilled) == sorted(shipped)
    for order_id in cancelled[:3]:
        order_events = shop.order_events(order_id, "ORDER_CANCELLED")
        assert order_events == ["ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_CANCELLED"]


class Purchases:
    """Ids of the orders whose confirmation returned OK, and errors that no buyer may get."""

    def __init__(self) -> None:
        self.confirmed: list[str] = []
        self.unexpected: list[ShopError] = []


def buy_one(shop: ShopDriver, product: int) -> str:
    request_id = str(uuid4())
    order = retry_while_unavailable(lambda: shop.create_order((product, 1), ttl_seconds=8, request_id=request_id))
    retry_while_unavailable(lambda: shop.change_status(order.id, CONFIRMED))
    return order.id


def retry_while_unavailable(call: Callable[[], _T], within_seconds: float = 60) -> _T:
    """Repeat the call while it fails with UNAVAILABLE. Returns its result."""
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            return call()
        except Unavailable:
            if time.monotonic() > deadline:
                raise


@contextmanager
def buyers(shop: ShopDriver, product: int, count: int = 4) -> Iterator[Purchases]:
    """Buyers that create and confirm orders of one unit until the block ends, and retry as documented."""
    purchases, done = Purchases(), threading.Event()

    def buy() -> None:
        while not done.is_set():
            try:
                purchases.confirmed.append(buy_one(shop, product))
            except Refused:
                continue  # the reservation expired while a process was down
            except ShopError as error:
                purchases.unexpected.append(error)

    threads = [threading.Thread(target=buy) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield purchases
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert purchases.unexpected == []


def test_with_a_frozen_database_calls_fail_within_their_deadline_and_processes_stay_alive(
    shop: ShopDriver, database_server: PostgresServer | None
) -> None:
    product = shop.stocked_product(units=5)
    order = shop.create_order((product, 1))
    # Plain channels, so that the client retries nothing.
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
            orders.CreateOrder.future(order_of_one(product), timeout=2),
            orders.UpdateOrderStatus.future(
                order_pb2.UpdateOrderStatusRequest(id=order.id, status=CONFIRMED), timeout=2
            ),
        ]
        codes = [call.code() for call in calls]
        assert set(codes) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
        for address in (shop.stack.inventory_address, shop.stack.orders_address):
            assert health(address, "liveness") == "SERVING"

    shop.wait_ready()
    # Each of the two calls that reserve a unit has taken effect as a whole or not at all.
    assert shop.available(product) in (2, 3, 4)
    assert shop.change_status(order.id, CONFIRMED).status == CONFIRMED
    shop.assert_consistent(product, stocked=5)


def order_of_one(product: int) -> order_pb2.CreateOrderRequest:
    price = Money(currency_code="EUR", units=1)
    return order_pb2.CreateOrderRequest(
        user_id=1, items=[order_pb2.CreateOrderItem(product_id=product, quantity=1, price=price)]
    )


def test_an_invalid_event_becomes_a_dead_letter_and_blocks_no_other_event(shop: ShopDriver) -> None:
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


def test_a_redriven_dead_letter_has_its_effect_once(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=3)
    cancelled, expired = shop.create_order((product, 1)), shop.create_order((product, 2))
    data = {"id": cancelled.id, "items": [{"product_id": product, "quantity": 1}]}
    order_event = set_aside(shop, "order-events", cancelled.id, "ORDER_CANCELLED", data)
    lost = {"order_id": expired.id, "product_id": product}
    stock_event = set_aside(shop, "inventory-events", str(product), "STOCK_RELEASED", lost)

    for _ in range(2):
        shop.api.call(
            shop.api.inventory.RedriveDeadLetters,
            inventory_pb2.RedriveDeadLettersRequest(letters=[inventory_pb2.DeadLetterPosition(**order_event)]),
        )
        shop.api.call(
            shop.api.orders.RedriveDeadLetters,
            order_pb2.RedriveDeadLettersRequest(letters=[order_pb2.DeadLetterPosition(**stock_event)]),
        )

    # inventory-api handles the first event, and order-api the second. Each then emits events for the other one.
    shop.eventually(lambda: shop.order(cancelled.id).status == shop.order(expired.id).status == CANCELLED)
    shop.eventually(lambda: shop.available(product) == 3)
    shop.assert_consistent(product, stocked=3)


def set_aside(shop: ShopDriver, topic: str, key: str, kind: str, data: Mapping[str, object]) -> dict[str, int]:
    """Write a dead letter as a consumer would. Returns its position."""
    event_id = str(uuid4())
    body = {"event_type": kind, "timestamp": "2024-01-15T10:30:00Z", "data": data}
    event = {"ce_id": event_id, "ce_type": kind, "ce_tenant": "default"}
    origin = {"dlq_topic": topic, "dlq_partition": "0", "dlq_offset": "0", "dlq_reason": "FAILED"}
    shop.kafka.produce(f"{topic}.dlq", key, json.dumps(body), event | origin)
    records = shop.kafka.consume(f"{topic}.dlq", lambda found: any(r.headers.get("ce_id") == event_id for r in found))
    (letter,) = [record for record in records if record.headers.get("ce_id") == event_id]
    return {"partition": letter.partition, "offset": letter.offset}


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
    # The repeats are handled before the events of a later order, unless these are in another partition. So look at the
    # lag.
    other = shop.create_order((product, 1))
    shop.change_status(other.id, CANCELLED)

    shop.eventually(lambda: shop.available(product) == 1 == shop.on_hand(product))
    shop.eventually(lambda: shop.kafka.lag("inventory-api", "order-events") == 0)
    events = shop.stock_events(product, "STOCK_RELEASED")
    assert [event_type for event_type, _ in events].count("STOCK_FULFILLED") == 1
    shop.assert_consistent(product, stocked=2)


def test_running_calls_finish_after_sigterm(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=100)
    process = shop.stack.inventory_api
    acknowledged: list[int] = []
    with grpc.insecure_channel(shop.stack.inventory_address) as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        calls = [
            stub.ReserveStock.future(
                inventory_pb2.ReserveStockRequest(product_id=product, quantity=1, order_id="drain"), timeout=10
            )
            for _ in range(50)
        ]
        process.terminate()
        acknowledged = [call.result().reservation.quantity for call in calls if call.code() is grpc.StatusCode.OK]
    assert process.wait(20) == 0
    process.start()
    shop.wait_ready()

    held = sum(reservation.quantity for reservation in shop.reservations(product))
    assert held >= sum(acknowledged)
    shop.assert_consistent(product, stocked=100)


def test_order_api_serves_what_it_can_while_inventory_api_is_down(shop: ShopDriver) -> None:
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
