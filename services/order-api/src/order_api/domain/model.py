"""The values of orders: an order, its lines, its statuses, and the legal status changes."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

LINES_MAX = 200
"""The maximum number of lines in an order."""


class Status(StrEnum):
    """The status of an order. docs/states.md draws the changes."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    PROCESSING = "PROCESSING"
    SHIPPED = "SHIPPED"
    DELIVERED = "DELIVERED"
    CANCELLED = "CANCELLED"


LEGAL_CHANGES: dict[Status, tuple[Status, ...]] = {
    Status.PENDING: (Status.CONFIRMED, Status.CANCELLED),
    Status.CONFIRMED: (Status.PROCESSING, Status.CANCELLED),
    Status.PROCESSING: (Status.SHIPPED, Status.CANCELLED),
    Status.SHIPPED: (Status.DELIVERED,),
    Status.DELIVERED: (),
    Status.CANCELLED: (),
}

CANCELLABLE = frozenset(status for status, changes in LEGAL_CHANGES.items() if Status.CANCELLED in changes)


class OrderKey(NamedTuple):
    """The tenant and the id of an order. No two tenants have orders with the same id."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class OrderItem:
    """A line of an order. `price` is per unit, in the order's currency. Lines never change."""

    id: int
    product_id: int
    quantity: int
    price: Decimal


@dataclass(frozen=True, slots=True)
class Order:
    """A stored order. `items` are in the order of the request."""

    tenant: str
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

    @property
    def key(self) -> OrderKey:
        return OrderKey(self.tenant, self.id)


@dataclass(frozen=True, slots=True)
class NewItem:
    """A line of an order to create. `price` is per unit."""

    product_id: int
    quantity: int
    price: Decimal


@dataclass(frozen=True, slots=True)
class OrderReservation:
    """The stock that inventory-api reserved for an order.

    `units` are the units that are still reserved, by product. `seconds` is the shortest time from the creation of a
    reservation to its expiry, or None if no reservation expires. It is a duration, because the clocks of two databases
    differ.
    """

    reservation_ids: tuple[str, ...]
    units: dict[int, int]
    seconds: float | None


def quantities(items: Iterable[NewItem | OrderItem]) -> dict[int, int]:
    """Return the units of each product, summed over all lines."""
    units: dict[int, int] = {}
    for item in items:
        units[item.product_id] = units.get(item.product_id, 0) + item.quantity
    return units
