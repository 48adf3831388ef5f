"""The words of orders: an order, its items, the steps it may take, and why a step is refused."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar

from shop_common.errors import NotFound, Refused

LINES_MAX = 200
"""Of one order."""


class Status(StrEnum):
    """Where an order is in its life; docs/states.md draws the steps."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    PROCESSING = "PROCESSING"
    SHIPPED = "SHIPPED"
    DELIVERED = "DELIVERED"
    CANCELLED = "CANCELLED"


LEGAL_STEPS: dict[Status, tuple[Status, ...]] = {
    Status.PENDING: (Status.CONFIRMED, Status.CANCELLED),
    Status.CONFIRMED: (Status.PROCESSING, Status.CANCELLED),
    Status.PROCESSING: (Status.SHIPPED, Status.CANCELLED),
    Status.SHIPPED: (Status.DELIVERED,),
    Status.DELIVERED: (),
    Status.CANCELLED: (),
}

CANCELLABLE = frozenset(status for status, steps in LEGAL_STEPS.items() if Status.CANCELLED in steps)


@dataclass(frozen=True, slots=True)
class OrderItem:
    """A line of an order. `price` is of one unit, in the order's currency. Lines never change."""

    id: int
    product_id: int
    quantity: int
    price: Decimal


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it is stored; `items` are in the sequence in which they were ordered."""

    id: str
    user_id: int
    total_amount: Decimal
    currency: str
    status: Status
    status_reason: str
    reserved_until: datetime
    version: int
    created_at: datetime
    updated_at: datetime
    items: tuple[OrderItem, ...]


@dataclass(frozen=True, slots=True)
class NewItem:
    """A line of an order to place."""

    product_id: int
    quantity: int
    price: Decimal


def quantities(items: Iterable[NewItem | OrderItem]) -> dict[int, int]:
    """The units of each product, all lines of one product together."""
    found: dict[int, int] = {}
    for item in items:
        found[item.product_id] = found.get(item.product_id, 0) + item.quantity
    return found


class OrderNotFound(NotFound):
    """No order has this id."""

    reason: ClassVar[str] = "ORDER_NOT_FOUND"

    def __init__(self, order_id: str) -> None:
        super().__init__(f"there is no order {order_id}")
        self.order_id = order_id

    def metadata(self) -> dict[str, str]:
        return {"id": self.order_id}


class IllegalTransition(Refused):
    """The order can't take this step from where it is."""

    reason: ClassVar[str] = "ILLEGAL_TRANSITION"

    def __init__(self, order_id: str, present: Status, wanted: Status) -> None:
        legal = ",".join(LEGAL_STEPS[present])
        super().__init__(f"order {order_id} is {present} and can't become {wanted}; legal: {legal or 'none'}")
        self._metadata = {"id": order_id, "from": present.value, "to": wanted.value, "legal": legal}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class _HoldsLost(Refused):
    def __init__(self, order_id: str, message: str) -> None:
        super().__init__(message)
        self.order_id = order_id

    def metadata(self) -> dict[str, str]:
        return {"order_id": self.order_id}


class ReservationExpired(_HoldsLost):
    """An earlier try of this CreateOrder held the stock, never came to the order, and its hold has ended."""

    reason: ClassVar[str] = "RESERVATION_EXPIRED"

    def __init__(self, order_id: str) -> None:
        super().__init__(
            order_id, f"the hold of an earlier try for order {order_id} has ended; order anew, with a new request_id"
        )


class ReservationReleased(_HoldsLost):
    """Some of the order's holds were given back, so that not all of its lines can be confirmed."""

    reason: ClassVar[str] = "RESERVATION_RELEASED"

    def __init__(self, order_id: str) -> None:
        super().__init__(order_id, f"some of the stock held for order {order_id} was released")
