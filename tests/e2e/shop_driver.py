"""The driver of the end-to-end tests: calls the APIs and reads the events as a client does."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any, Self, TypeVar
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money
from sqlalchemy import update

from devstack.kafka import Kafka, Record
from devstack.stack import Stack
from inventory_api.store import tables
from shop_common.db.database import Database
from shop_common.db.sql import now
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

_T = TypeVar("_T")

# Each test uses new product ids, so that tests can share the running system, and test runs can share a database.
_ids = itertools.count(random.SystemRandom().randrange(2**40) * 1000 + 1)


def new_id() -> int:
    """Return an id that no product and no user has."""
    return next(_ids)


class ShopDriver:
    """Connections to both APIs of a running stack."""

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
        """Wait until all four processes are ready and order-api has reconnected to inventory-api.

        A channel reconnects at most two seconds after its peer is back. Until then, calls on it fail with UNAVAILABLE.
        """
        self.stack.wait_ready(within_seconds)
        self.eventually(self._both_apis_respond, within_seconds)

    def _both_apis_respond(self) -> bool:
        unknown = self.new_id()
        try:
            self.items(unknown)
            self.create_order((unknown, 1))
        except Refused:
            return True  # inventory-api refused it, so order-api has reached inventory-api
        except ShopError:
            return False
        raise AssertionError("an order for an unknown product was accepted")

    # --- stock ---

    def new_id(self) -> int:
        return new_id()

    def stocked_product(self, units: int = 0, **by_location: int) -> int:
        """Create a product with this stock, at the default location or at the named ones. Returns its id."""
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
        request = inventory.CheckStockRequest(product_id=product_id, required_quantity=1)
        return self.api.call(self.api.inventory.CheckStock, request).available_quantity

    def items(self, product_id: int) -> list[inventory.InventoryItem]:
        request = inventory.ListInventoryItemsRequest(product_id=product_id, page_size=1000)
        return list(self.api.call(self.api.inventory.ListInventoryItems, request).items)

    def on_hand(self, product_id: int) -> int:
        """The quantity at all locations, reserved units included."""
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
        """All reservations of the product, from all pages."""
        reservations: list[inventory.Reservation] = []
        token = ""
        while True:
            request = inventory.ListReservationsRequest(product_id=product_id, page_size=1000, page_token=token)
            page = self.api.call(self.api.inventory.ListReservations, request)
            reservations += page.reservations
            token = page.next_page_token
            if not token:
                return reservations

    # --- orders ---

    def create_order(
        self,
        *lines: tuple[int, int],
        user_id: int = 1,
        ttl_seconds: float | None = None,
        request_id: str = "",
        buyer_limit: int = 0,
        timeout_seconds: float = 20,
    ) -> orders.Order:
        """Create an order with (product id, quantity) lines, each at a price of 19.99 EUR and with this limit."""
        request = orders.CreateOrderRequest(
            user_id=user_id,
            items=_lines(lines, buyer_limit),
            ttl=_duration(ttl_seconds),
            request_id=request_id,
        )
        return self.api.call(self.api.orders.CreateOrder, request, timeout_seconds=timeout_seconds).order

    def order(self, order_id: str) -> orders.Order:
        return self.api.call(self.api.orders.GetOrder, orders.GetOrderRequest(id=order_id)).order

    def change_status(
        self, order_id: str, *statuses: "orders.OrderStatus.ValueType", timeout_seconds: float = 20
    ) -> orders.Order:
        """Change the status to each of these, in turn. Returns the order after the last change."""
        *first, last = statuses
        if first:
            self.change_status(order_id, *first, timeout_seconds=timeout_seconds)
        request = orders.UpdateOrderStatusRequest(id=order_id, status=last)
        return self.api.call(self.api.orders.UpdateOrderStatus, request, timeout_seconds=timeout_seconds).order

    def ship(self, order_id: str, units: Mapping[int, int], *, request_id: str = "") -> orders.Order:
        """Ship units of an order. `units` are by the id of the line."""
        request = orders.CreateShipmentRequest(id=order_id, items=_units(units), carrier="DHL", request_id=request_id)
        return self.api.call(self.api.orders.CreateShipment, request).order

    def cancel_items(self, order_id: str, units: Mapping[int, int]) -> orders.Order:
        """Cancel units of an order. `units` are by the id of the line."""
        request = orders.CancelOrderItemsRequest(id=order_id, items=_units(units))
        return self.api.call(self.api.orders.CancelOrderItems, request).order

    def change_order(
        self, order: orders.Order, quantities: Mapping[int, int], *new_lines: tuple[int, int], request_id: str = ""
    ) -> orders.Order:
        """Change the order that was read. `quantities` are by the id of the line, and new lines as in create_order."""
        request = orders.ChangeOrderRequest(
            id=order.id,
            version=order.version,
            items=[orders.ChangedItem(item_id=item_id, quantity=quantity) for item_id, quantity in quantities.items()],
            new_items=_lines(new_lines),
            request_id=request_id,
        )
        return self.api.call(self.api.orders.ChangeOrder, request).order

    def take_back(self, order_id: str, *units: orders.ReturnedUnits, request_id: str = "") -> orders.Order:
        """Record that units of an order came back."""
        request = orders.CreateReturnRequest(id=order_id, items=units, request_id=request_id)
        return self.api.call(self.api.orders.CreateReturn, request).order

    def reinstate(self, order_id: str) -> orders.Order:
        request = orders.ReinstateOrderRequest(id=order_id, reason="paid late")
        return self.api.call(self.api.orders.ReinstateOrder, request).order

    def expire(self, order_id: str, *, ago_seconds: float) -> None:
        """Set the expiry of the order's reservations to `ago_seconds` ago, as if so much time had passed since."""
        table = tables.stock_reservations
        with closing(Database(self.stack.databases.inventory)) as database, database.write() as tx:
            expires_at = now(tx) - timedelta(seconds=ago_seconds)
            tx.execute(update(table).where(table.c.order_id == order_id).values(expires_at=expires_at))

    # --- events ---

    def eventually(self, condition: Callable[[], bool], within_seconds: float = 60) -> None:
        """Wait until the condition is true. Raises AssertionError if it is not in time."""
        eventually(condition, within_seconds)

    def order_events(self, order_id: str, until_type: str, within_seconds: float = 60) -> list[str]:
        """Wait for an event of type `until_type`. Returns the types of the order's events on Kafka, in order."""
        return [event_type for event_type, _ in self._events("order-events", order_id, until_type, within_seconds)]

    def stock_events(
        self, product_id: int, until_type: str, count: int = 1, within_seconds: float = 60
    ) -> list[tuple[str, dict[str, Any]]]:
        """Wait for `count` events of type `until_type`. Returns (type, data) of the product's events, in order."""
        return self._events("inventory-events", str(product_id), until_type, within_seconds, count)

    def _events(
        self, topic: str, key: str, until_type: str, within_seconds: float, count: int = 1
    ) -> list[tuple[str, dict[str, Any]]]:
        def of_key(records: Sequence[Record]) -> list[Record]:
            return [record for record in records if record.key == key]

        def has_arrived(records: list[Record]) -> bool:
            return sum(record.headers["ce_type"] == until_type for record in of_key(records)) >= count

        records = of_key(self.kafka.consume(topic, has_arrived, within_seconds))
        for record in records:
            validator().check(topic, record.key or "", record.headers, record.value)
        # Delivery is at least once. A repeat has the same id and counts once.
        first = {record.headers["ce_id"]: record for record in reversed(records)}
        return [
            (record.headers["ce_type"], record.json()["data"])
            for record in sorted(first.values(), key=lambda record: record.offset)
        ]

    # --- consistency ---

    def assert_consistent(self, product_id: int, *, stocked: int) -> None:
        """Check that quantity = stocked − shipped, and that reserved units = the sum of the active reservations."""
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
    """Call with the numbers 0 to count − 1, all at the same time. Returns one result or error each, by number."""
    barrier = threading.Barrier(count)

    def call_one(number: int) -> _T | ShopError:
        barrier.wait()
        try:
            return call(number)
        except ShopError as error:
            return error

    with ThreadPoolExecutor(count) as callers:
        return list(callers.map(call_one, range(count)))


def succeeded(outcomes: Sequence[_T | ShopError]) -> list[_T]:
    return [outcome for outcome in outcomes if not isinstance(outcome, ShopError)]


def reason_counts(outcomes: Sequence[object]) -> Mapping[str, int]:
    """The number of errors by reason."""
    return Counter(outcome.reason for outcome in outcomes if isinstance(outcome, ShopError))


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _units(units: Mapping[int, int]) -> list[orders.ItemUnits]:
    return [orders.ItemUnits(item_id=item_id, quantity=quantity) for item_id, quantity in units.items()]


def _lines(lines: Iterable[tuple[int, int]], buyer_limit: int = 0) -> list[orders.CreateOrderItem]:
    return [
        orders.CreateOrderItem(product_id=product_id, quantity=quantity, price=_price(), buyer_limit=buyer_limit)
        for product_id, quantity in lines
    ]


def _price() -> Money:
    return Money(currency_code="EUR", units=19, nanos=990_000_000)
