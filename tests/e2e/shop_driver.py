"""The driver of the end-to-end tests: what a client of the system does and sees, in the words of a shop."""

import itertools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from devstack.kafka import Kafka, Record
from devstack.stack import Stack
from shop_common.errors import Refused, ShopError
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders
from shopctl import client
from testkit.contract import validator
from testkit.eventually import eventually

PENDING = orders.ORDER_STATUS_PENDING
CONFIRMED = orders.ORDER_STATUS_CONFIRMED
PROCESSING = orders.ORDER_STATUS_PROCESSING
SHIPPED = orders.ORDER_STATUS_SHIPPED
DELIVERED = orders.ORDER_STATUS_DELIVERED
CANCELLED = orders.ORDER_STATUS_CANCELLED

ACTIVE = (inventory.RESERVATION_STATE_HELD, inventory.RESERVATION_STATE_CONFIRMED)

_POLL_SECONDS = 0.05
_T = TypeVar("_T")

# Each test has products of its own, so that tests can share a shop, and runs can share a database.
_ids = itertools.count(random.SystemRandom().randrange(2**40) * 1000 + 1)


class ShopDriver:
    """One connection to the system under test."""

    def __init__(self, stack: Stack, api: client.Shop) -> None:
        self.stack = stack
        self.kafka: Kafka = stack.kafka
        self.api = api

    @classmethod
    def connect(cls, stack: Stack) -> Self:
        return cls(stack, client.Shop.connect(stack.inventory_address, stack.orders_address))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.__exit__()

    def wait_ready(self, within_seconds: float = 120) -> None:
        """Wait until all four processes are ready, and each that calls another has found it again.

        A channel whose peer was away looks for it every two seconds at most; until then calls on it are UNAVAILABLE.
        """
        self.stack.wait_ready(within_seconds)
        self.eventually(self._all_answer, within_seconds)

    def _all_answer(self) -> bool:
        unknown = self.new_id()
        try:
            self.items(unknown)
            self.create_order((unknown, 1))
        except Refused:
            return True  # order-api has asked inventory-api, which has none
        except ShopError:
            return False
        raise AssertionError("an unknown product was sold")

    # --- stock ---

    def new_id(self) -> int:
        """A product that nobody knows."""
        return next(_ids)

    def stocked_product(self, units: int = 0, **by_location: int) -> int:
        """A new product with so many units, at one place or at those named."""
        product_id = self.new_id()
        for location, quantity in (by_location or {"WAREHOUSE_A": units}).items():
            self.add_stock(product_id, quantity, location)
        return product_id

    def add_stock(self, product_id: int, quantity: int, location: str = "WAREHOUSE_A") -> inventory.InventoryItem:
        return self.api.call(
            self.api.inventory.CreateInventoryItem,
            inventory.CreateInventoryItemRequest(product_id=product_id, quantity=quantity, location=location),
        ).item

    def available(self, product_id: int) -> int:
        question = inventory.CheckStockRequest(product_id=product_id, required_quantity=1)
        return self.api.call(self.api.inventory.CheckStock, question).available_quantity

    def items(self, product_id: int) -> list[inventory.InventoryItem]:
        request = inventory.ListInventoryItemsRequest(product_id=product_id, page_size=1000)
        return list(self.api.call(self.api.inventory.ListInventoryItems, request).items)

    def on_hand(self, product_id: int) -> int:
        """Units in the house, reserved or not."""
        return sum(item.quantity for item in self.items(product_id))

    def reserve(
        self,
        product_id: int,
        quantity: int,
        *,
        order_id: str = "",
        ttl_seconds: float | None = None,
        request_id: str = "",
        timeout_seconds: float = 20,
    ) -> inventory.Reservation:
        request = inventory.ReserveStockRequest(
            product_id=product_id,
            quantity=quantity,
            order_id=order_id or f"order-{uuid4()}",
            ttl=_duration(ttl_seconds),
            request_id=request_id,
        )
        return self.api.call(self.api.inventory.ReserveStock, request, timeout_seconds=timeout_seconds).reservation

    def reservation(self, reservation_id: str) -> inventory.Reservation:
        request = inventory.GetReservationRequest(id=reservation_id)
        return self.api.call(self.api.inventory.GetReservation, request).reservation

    def reservations(self, product_id: int) -> list[inventory.Reservation]:
        found: list[inventory.Reservation] = []
        token = ""
        while True:
            request = inventory.ListReservationsRequest(product_id=product_id, page_size=1000, page_token=token)
            page = self.api.call(self.api.inventory.ListReservations, request)
            found += page.reservations
            token = page.next_page_token
            if not token:
                return found

    # --- orders ---

    def create_order(
        self,
        *lines: tuple[int, int],
        user_id: int = 1,
        ttl_seconds: float | None = None,
        request_id: str = "",
        timeout_seconds: float = 20,
    ) -> orders.Order:
        """Order (product, quantity) lines at 19.99 a piece."""
        request = orders.CreateOrderRequest(
            user_id=user_id,
            items=[
                orders.CreateOrderItem(product_id=product_id, quantity=quantity, price=_price())
                for product_id, quantity in lines
            ],
            ttl=_duration(ttl_seconds),
            request_id=request_id,
        )
        return self.api.call(self.api.orders.CreateOrder, request, timeout_seconds=timeout_seconds).order

    def order(self, order_id: str) -> orders.Order:
        return self.api.call(self.api.orders.GetOrder, orders.GetOrderRequest(id=order_id)).order

    def change_status(
        self, order_id: str, *statuses: "orders.OrderStatus.ValueType", timeout_seconds: float = 20
    ) -> orders.Order:
        """Take the steps, one after the other; the order after the last."""
        *first, last = statuses
        if first:
            self.change_status(order_id, *first, timeout_seconds=timeout_seconds)
        request = orders.UpdateOrderStatusRequest(id=order_id, status=last)
        return self.api.call(self.api.orders.UpdateOrderStatus, request, timeout_seconds=timeout_seconds).order

    # --- what others see ---

    def eventually(self, condition: Callable[[], bool], within_seconds: float = 60) -> None:
        """Wait until the condition holds. Fails when it does not in time."""
        eventually(condition, within_seconds)

    def order_events(self, order_id: str, until_type: str, within_seconds: float = 60) -> list[str]:
        """The types of the order's events on Kafka, in their order, once one of that type is there."""
        return [event_type for event_type, _ in self._events("order-events", order_id, until_type, within_seconds)]

    def stock_events(
        self, product_id: int, until_type: str, count: int = 1, within_seconds: float = 60
    ) -> list[tuple[str, dict[str, Any]]]:
        """Type and data of the product's events on Kafka, once so many of that type are there."""
        return self._events("inventory-events", str(product_id), until_type, within_seconds, count)

    def _events(
        self, topic: str, key: str, until_type: str, within_seconds: float, count: int = 1
    ) -> list[tuple[str, dict[str, Any]]]:
        def of_key(records: Sequence[Record]) -> list[Record]:
            return [record for record in records if record.key == key]

        def is_there(records: list[Record]) -> bool:
            return sum(record.headers["ce_type"] == until_type for record in of_key(records)) >= count

        found = of_key(self.kafka.consume(topic, is_there, within_seconds))
        for record in found:
            validator().check(topic, record.key or "", record.headers, record.value)
        # At least once: a repeat comes under the same id, and counts once.
        first = {record.headers["ce_id"]: record for record in reversed(found)}
        return [
            (record.headers["ce_type"], record.json()["data"])
            for record in sorted(first.values(), key=lambda record: record.offset)
        ]

    # --- the books ---

    def assert_consistent(self, product_id: int, *, stocked: int) -> None:
        """Every unit is accounted for: in stock = put in − shipped, reserved = sum of the active reservations."""
        items, reservations = self.items(product_id), self.reservations(product_id)
        shipped = sum(r.quantity for r in reservations if r.state == inventory.RESERVATION_STATE_FULFILLED)
        active = sum(r.quantity for r in reservations if r.state in ACTIVE)
        assert sum(item.quantity for item in items) == stocked - shipped
        assert sum(item.available_quantity for item in items) == stocked - shipped - active
        by_item: dict[int, int] = {}
        for reservation in reservations:
            assert sum(part.quantity for part in reservation.allocations) == reservation.quantity
            if reservation.state in ACTIVE:
                for part in reservation.allocations:
                    by_item[part.item_id] = by_item.get(part.item_id, 0) + part.quantity
        for item in items:
            assert item.quantity - item.available_quantity == by_item.get(item.id, 0)


def call_concurrently(count: int, call: Callable[[int], _T]) -> list[_T | ShopError]:
    """What so many callers get who all ask at the same moment: an answer or a refusal each."""
    together = threading.Barrier(count)

    def one(number: int) -> _T | ShopError:
        together.wait()
        try:
            return call(number)
        except ShopError as refusal:
            return refusal

    with ThreadPoolExecutor(count) as callers:
        return list(callers.map(one, range(count)))


def succeeded(outcomes: Sequence[_T | ShopError]) -> list[_T]:
    return [outcome for outcome in outcomes if not isinstance(outcome, ShopError)]


def reason_counts(outcomes: Sequence[object]) -> Mapping[str, int]:
    """How often each reason came."""
    found: dict[str, int] = {}
    for outcome in outcomes:
        if isinstance(outcome, ShopError):
            found[outcome.reason] = found.get(outcome.reason, 0) + 1
    return found


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _price() -> Money:
    return Money(currency_code="EUR", units=19, nanos=990_000_000)
