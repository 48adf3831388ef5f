"""The load generator creates orders at a given rate, and then changes, confirms, ships, returns or cancels them.

Each order is changed in steps, with pauses.
"""

import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Self
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from shop_common.errors import ShopError
from shop_protos.inventory.v1 import inventory_pb2 as stock
from shop_protos.order.v1 import order_pb2 as orders
from shopctl.client import Shop

PRODUCTS = range(900_000_001, 900_000_051)
"""Every run uses the same products, so that repeated runs do not fill the database with products."""

SCARCE = PRODUCTS[0]
"""The product that is restocked more slowly than it is ordered."""

CONCURRENT_CALLS = 16

SCHEDULED_MAX = 5_000
"""Limit on scheduled steps. If the system is too slow for the rate, new orders are skipped and counted."""

_SCARCE_SHARE = 0.15
_SCARCE_RESTOCKED_SHARE = 0.25
_RESTOCK_EVERY_SECONDS = 5.0
_UNITS = 1_000
_ABANDONED_TTL_SECONDS = 3
_PAUSE_SECONDS = (0.1, 1.5)


class _Change(Enum):
    """A change of an order. The value is the word for it in the summary."""

    LINES = "changed"
    CONFIRM = "confirmed"
    PROCESS = "processing"
    SHIP_ONE_LINE = "partly shipped"
    SHIP = "shipped"
    DELIVER = "delivered"
    RETURN_ONE_LINE = "returned"
    CANCEL = "cancelled"


_STATUSES: "dict[_Change, orders.OrderStatus.ValueType]" = {
    _Change.CONFIRM: orders.ORDER_STATUS_CONFIRMED,
    _Change.PROCESS: orders.ORDER_STATUS_PROCESSING,
    _Change.SHIP: orders.ORDER_STATUS_SHIPPED,
    _Change.DELIVER: orders.ORDER_STATUS_DELIVERED,
    _Change.CANCEL: orders.ORDER_STATUS_CANCELLED,
}
"""The statuses that UpdateOrderStatus sets. Other changes are about single lines."""

_PAID = (_Change.CONFIRM, _Change.PROCESS)
_COURSES: dict[tuple[_Change, ...], int] = {
    (*_PAID, _Change.SHIP, _Change.DELIVER): 30,
    (_Change.LINES, *_PAID, _Change.SHIP, _Change.DELIVER): 5,
    (*_PAID, _Change.LINES, _Change.SHIP_ONE_LINE, _Change.SHIP, _Change.DELIVER): 5,
    (*_PAID, _Change.SHIP_ONE_LINE, _Change.SHIP, _Change.DELIVER): 10,
    (*_PAID, _Change.SHIP, _Change.DELIVER, _Change.RETURN_ONE_LINE): 10,
    (_Change.CANCEL,): 10,
    (_Change.CONFIRM, _Change.CANCEL): 10,
    (): 20,  # abandoned: its reservation expires
}
"""The possible series of changes of an order, with the percentage of orders that go through each series."""


@dataclass(frozen=True)
class _Next:
    """A step to schedule, and the pause before it. A step calls the APIs and may raise ShopError."""

    step: "Callable[[], _Next | None]"
    after_seconds: float


_Step = Callable[[], _Next | None]


@dataclass(order=True)
class _Due:
    at: float
    number: int
    step: _Step = field(compare=False)


class LoadGenerator:
    """Generates load while its `with` block runs. When the block ends, no further step starts and all calls finish.

    Calls `on_order` with the id of each order that it has created, from any of its threads.
    """

    def __init__(self, shop: Shop, rate: float, on_order: Callable[[str], None] = lambda _order_id: None) -> None:
        self._shop = shop
        self._rate = rate
        self._on_order = on_order
        ordered = rate * _SCARCE_SHARE * _RESTOCK_EVERY_SECONDS
        self._scarce_units = max(1, round(ordered * _SCARCE_RESTOCKED_SHARE))
        self._due: list[_Due] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._work, name=f"load-{number}") for number in range(CONCURRENT_CALLS)
        ]

    def __enter__(self) -> Self:
        for product in PRODUCTS:
            self._ensure_stock(product, self._scarce_units if product == SCARCE else _UNITS)
        self._schedule(_Next(self._start_order, 0))
        self._schedule(_Next(self._restock, _RESTOCK_EVERY_SECONDS))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def summary(self) -> str:
        """Return the counts so far in one line."""
        with self._changed:
            counts = dict(sorted(self._counts.items()))
        return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "no orders yet"

    # --- steps ---

    def _start_order(self) -> _Next | None:
        with self._changed:
            is_full = len(self._due) >= SCHEDULED_MAX
        if is_full:
            self._count("skipped")
        else:
            self._schedule(_Next(self._create_order, 0))
        # Orders start in a Poisson process and not at even intervals, because the system must also handle bursts.
        return _Next(self._start_order, random.expovariate(self._rate))

    def _create_order(self) -> _Next | None:
        products = random.sample(PRODUCTS[1:], random.randint(1, 3))
        if random.random() < _SCARCE_SHARE:
            products[0] = SCARCE
        for product in products:
            request = stock.CheckStockRequest(product_id=product, required_quantity=1)
            self._shop.call(self._shop.inventory.CheckStock, request)
        (course,) = random.choices(list(_COURSES), list(_COURSES.values()))
        price = Money(currency_code="EUR", units=19, nanos=990_000_000)
        order = self._shop.call(
            self._shop.orders.CreateOrder,
            orders.CreateOrderRequest(
                user_id=random.randint(1, 1_000),
                items=[orders.CreateOrderItem(product_id=each, quantity=1, price=price) for each in products],
                ttl=None if course else Duration(seconds=_ABANDONED_TTL_SECONDS),
                request_id=str(uuid4()),
            ),
        ).order
        self._count("ordered")
        self._on_order(order.id)
        return self._next_change(order.id, order.items[0].id, course)

    def _next_change(self, order_id: str, line_id: int, course: tuple[_Change, ...]) -> _Next | None:
        """Return the step that makes the first change of the course. Changes of one line concern the line `line_id`."""
        if not course:
            return None
        change, *rest = course

        def make_change() -> _Next | None:
            self._change(order_id, line_id, change)
            self._count(change.value)
            return self._next_change(order_id, line_id, tuple(rest))

        return _Next(make_change, random.uniform(*_PAUSE_SECONDS))

    def _change(self, order_id: str, line_id: int, change: _Change) -> None:
        api, request_id = self._shop.orders, str(uuid4())
        match change:
            case _Change.LINES:
                order = self._shop.call(api.GetOrder, orders.GetOrderRequest(id=order_id)).order
                self._shop.call(api.ChangeOrder, _other_lines(order, request_id))
            case _Change.SHIP_ONE_LINE:
                units = orders.ItemUnits(item_id=line_id, quantity=1)
                shipment = orders.CreateShipmentRequest(id=order_id, items=[units], request_id=request_id)
                self._shop.call(api.CreateShipment, shipment)
            case _Change.RETURN_ONE_LINE:
                returned = orders.ReturnedUnits(
                    item_id=line_id, quantity=1, treatment=orders.RETURN_TREATMENT_RESTOCK, location=_warehouse()
                )
                self._shop.call(
                    api.CreateReturn, orders.CreateReturnRequest(id=order_id, items=[returned], request_id=request_id)
                )
            case _:
                # An order with one line is SHIPPED after its line has shipped. Setting SHIPPED again changes nothing.
                status = orders.UpdateOrderStatusRequest(id=order_id, status=_STATUSES[change])
                self._shop.call(api.UpdateOrderStatus, status)

    def _restock(self) -> _Next | None:
        # Schedule the next restocking first: a failed call must not end the series.
        self._schedule(_Next(self._restock, _RESTOCK_EVERY_SECONDS))
        self._ensure_stock(SCARCE, self._scarce_units)
        self._ensure_stock(random.choice(PRODUCTS[1:]), _UNITS)
        return None

    def _ensure_stock(self, product: int, units: int) -> None:
        """Add units if fewer than `units` are available."""
        request = stock.CheckStockRequest(product_id=product, required_quantity=units)
        response = self._shop.call(self._shop.inventory.CheckStock, request)
        if not response.available:
            addition = stock.CreateInventoryItemRequest(product_id=product, quantity=units, location=_warehouse())
            self._shop.call(self._shop.inventory.CreateInventoryItem, addition)

    # --- the schedule ---

    def _schedule(self, planned: _Next) -> None:
        with self._changed:
            heapq.heappush(self._due, _Due(time.monotonic() + planned.after_seconds, next(self._numbers), planned.step))
            self._changed.notify()

    def _take_due(self) -> _Step | None:
        """Wait for the next due step and return it. Returns None after the end of the `with` block."""
        with self._changed:
            while not self._closed:
                left = self._due[0].at - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._due).step
                self._changed.wait(left)
        return None

    def _work(self) -> None:
        while (step := self._take_due()) is not None:
            try:
                following = step()
            except ShopError as error:
                self._count(f"refused {error.reason}")
                continue
            if following is not None:
                self._schedule(following)

    def _count(self, what: str) -> None:
        with self._changed:
            self._counts[what] += 1


def _other_lines(order: orders.Order, request_id: str) -> orders.ChangeOrderRequest:
    """Return a change of the order that gives a line one unit more or less, or adds a line. No unit was shipped yet.

    The first line keeps a unit, because later changes of the order may ship or return it.
    """
    request = orders.ChangeOrderRequest(id=order.id, version=order.version, request_id=request_id)
    line = random.choice([None, *order.items])
    if line is None:
        price = order.items[0].price
        request.new_items.add(product_id=random.choice(PRODUCTS[1:]), quantity=1, price=price)
        return request
    kept = line.quantity - line.cancelled
    fewest = 1 if line.id == order.items[0].id else 0
    less = kept > fewest and random.random() < 0.5
    request.items.add(item_id=line.id, quantity=kept - 1 if less else kept + 1)
    return request


def _warehouse() -> str:
    return f"WAREHOUSE_{random.choice('ABC')}"
