"""Shoppers: each comes at its time, and takes the steps of an order with pauses between them, as people do."""

import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from shop_common.errors import ShopError
from shop_protos.inventory.v1 import inventory_pb2 as stock
from shop_protos.order.v1 import order_pb2 as orders
from shopctl.client import Shop

PRODUCTS = range(900_000_001, 900_000_051)
"""Reused by every run, so that runs do not fill a database with products."""

SCARCE = PRODUCTS[0]
"""The product that is restocked more slowly than it is ordered."""

CALLS_AT_ONCE = 16

UNDER_WAY_MAX = 5_000
"""Limit of scheduled steps. When the system cannot keep up, further shoppers are turned away."""

_SCARCE_SHARE = 0.15
_SCARCE_SHARE_DELIVERED = 0.25
_DELIVERY_EVERY_SECONDS = 5.0
_UNITS = 1_000
_FORGOTTEN_HOLD_SECONDS = 3
_PAUSE_SECONDS = (0.1, 1.5)

_CONFIRMED, _PROCESSING, _SHIPPED, _DELIVERED, _CANCELLED = (
    orders.ORDER_STATUS_CONFIRMED,
    orders.ORDER_STATUS_PROCESSING,
    orders.ORDER_STATUS_SHIPPED,
    orders.ORDER_STATUS_DELIVERED,
    orders.ORDER_STATUS_CANCELLED,
)

_FATES: dict[tuple["orders.OrderStatus.ValueType", ...], int] = {
    (_CONFIRMED, _PROCESSING, _SHIPPED, _DELIVERED): 60,
    (_CANCELLED,): 10,
    (_CONFIRMED, _CANCELLED): 10,
    (): 20,  # forgotten: its hold runs out
}
"""What becomes of an order, and how many of a hundred go that way."""


@dataclass(frozen=True)
class _Next:
    """The next step of a shopper and the pause before it. A step calls the APIs and may raise ShopError."""

    step: "Callable[[], _Next | None]"
    after_seconds: float


_Step = Callable[[], _Next | None]


@dataclass(order=True)
class _Due:
    at: float
    number: int
    step: _Step = field(compare=False)


class Shoppers:
    """Entering lets them in, at so many a second; leaving waits for the calls under way and takes no further step."""

    def __init__(self, shop: Shop, rate: float) -> None:
        self._shop = shop
        self._rate = rate
        wanted = rate * _SCARCE_SHARE * _DELIVERY_EVERY_SECONDS
        self._scarce_units = max(1, round(wanted * _SCARCE_SHARE_DELIVERED))
        self._due: list[_Due] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._work, name=f"shopper {number}") for number in range(CALLS_AT_ONCE)
        ]

    def __enter__(self) -> Self:
        for product in PRODUCTS:
            self._stock_up(product, self._scarce_units if product == SCARCE else _UNITS)
        self._put(_Next(self._arrive, 0))
        self._put(_Next(self._bring_stock, _DELIVERY_EVERY_SECONDS))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def told(self) -> str:
        """Return the counts so far in one line."""
        with self._changed:
            counts = dict(sorted(self._counts.items()))
        return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "nobody yet"

    # --- what they do ---

    def _arrive(self) -> _Next | None:
        with self._changed:
            is_full = len(self._due) >= UNDER_WAY_MAX
        if is_full:
            self._count("turned round at the door")
        else:
            self._put(_Next(self._order, 0))
        # Not at even times: what comes together is what the system has to be good at.
        return _Next(self._arrive, random.expovariate(self._rate))

    def _order(self) -> _Next | None:
        products = random.sample(PRODUCTS[1:], random.randint(1, 3))
        if random.random() < _SCARCE_SHARE:
            products[0] = SCARCE
        for product in products:
            question = stock.CheckStockRequest(product_id=product, required_quantity=1)
            self._shop.call(self._shop.inventory.CheckStock, question)
        (fate,) = random.choices(list(_FATES), list(_FATES.values()))
        price = Money(currency_code="EUR", units=19, nanos=990_000_000)
        order = self._shop.call(
            self._shop.orders.CreateOrder,
            orders.CreateOrderRequest(
                user_id=random.randint(1, 1_000),
                items=[orders.CreateOrderItem(product_id=each, quantity=1, price=price) for each in products],
                ttl=None if fate else Duration(seconds=_FORGOTTEN_HOLD_SECONDS),
                request_id=str(uuid4()),
            ),
        ).order
        self._count("ordered")
        return self._then(order.id, fate)

    def _then(self, order_id: str, fate: tuple["orders.OrderStatus.ValueType", ...]) -> _Next | None:
        if not fate:
            return None
        status, *rest = fate

        def move() -> _Next | None:
            request = orders.UpdateOrderStatusRequest(id=order_id, status=status)
            self._shop.call(self._shop.orders.UpdateOrderStatus, request)
            self._count(orders.OrderStatus.Name(status).removeprefix("ORDER_STATUS_").lower())
            return self._then(order_id, tuple(rest))

        return _Next(move, random.uniform(*_PAUSE_SECONDS))

    def _bring_stock(self) -> _Next | None:
        # First, so that a failure now does not end it for ever.
        self._put(_Next(self._bring_stock, _DELIVERY_EVERY_SECONDS))
        self._stock_up(SCARCE, self._scarce_units)
        self._stock_up(random.choice(PRODUCTS[1:]), _UNITS)
        return None

    def _stock_up(self, product: int, units: int) -> None:
        """Add units if fewer than that are available."""
        question = stock.CheckStockRequest(product_id=product, required_quantity=units)
        there = self._shop.call(self._shop.inventory.CheckStock, question)
        if not there.available:
            request = stock.CreateInventoryItemRequest(
                product_id=product, quantity=units, location=f"WAREHOUSE_{random.choice('ABC')}"
            )
            self._shop.call(self._shop.inventory.CreateInventoryItem, request)

    # --- the calendar ---

    def _put(self, what: _Next) -> None:
        with self._changed:
            heapq.heappush(self._due, _Due(time.monotonic() + what.after_seconds, next(self._numbers), what.step))
            self._changed.notify()

    def _take(self) -> _Step | None:
        """Wait for the next due step and return it; None after close."""
        with self._changed:
            while not self._closed:
                left = self._due[0].at - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._due).step
                self._changed.wait(left)
        return None

    def _work(self) -> None:
        while (step := self._take()) is not None:
            try:
                following = step()
            except ShopError as error:
                self._count(f"refused {error.reason}")
                continue
            if following is not None:
                self._put(following)

    def _count(self, what: str) -> None:
        with self._changed:
            self._counts[what] += 1
