"""The values of the inventory: items, reservations and their allocations, and the limits on them."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

DEFAULT_LOCATION = "WAREHOUSE_A"
ITEM_QUANTITY_MAX = 9 * 10**15
"""The most units of an item. Every JSON parser reads whole numbers up to this one exactly."""
LOCATIONS_MAX = 500
"""The most locations of a product. A reservation has at most as many allocations, so its events stay small."""
ORDER_RESERVATIONS_MAX = 1_000
"""The most active reservations of an order. One transaction confirms all of them."""
ORDER_ALLOCATIONS_MAX = 10_000
"""The most allocations that all active reservations of an order have in total."""

StockKey = tuple[int, str | None]
"""A product id and a location. A location of None means any location of the product."""


class State(StrEnum):
    """State of a reservation. docs/states.md draws the transitions."""

    HELD = "HELD"
    CONFIRMED = "CONFIRMED"
    EXPIRED = "EXPIRED"
    RELEASED = "RELEASED"
    FULFILLED = "FULFILLED"


ENDED = frozenset({State.EXPIRED, State.RELEASED, State.FULFILLED})


@dataclass(frozen=True, slots=True)
class Item:
    """Stock of one product at one location.

    `reserved_quantity` counts the units of all active reservations. `due` counts the units of due reservations. The
    database still counts these units as reserved, but they are available.
    """

    id: int
    product_id: int
    location: str
    quantity: int
    reserved_quantity: int
    version: int
    created_at: datetime
    updated_at: datetime
    due: int = 0

    @property
    def available_quantity(self) -> int:
        return self.quantity - self.reserved_quantity + self.due


@dataclass(frozen=True, slots=True)
class Allocation:
    """Units that a reservation takes from one item."""

    item_id: int
    location: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units of one product that are reserved for an order. The quantities of `allocations` add up to `quantity`."""

    id: str
    product_id: int
    quantity: int
    order_id: str
    state: State
    created_at: datetime
    expires_at: datetime | None
    allocations: tuple[Allocation, ...]

    def is_due(self, now: datetime) -> bool:
        """Return whether the reservation is held and past its expiry."""
        return self.state is State.HELD and self.expires_at is not None and self.expires_at <= now

    def as_of(self, now: datetime) -> "Reservation":
        """Return the reservation as callers see it: EXPIRED if it is due, even if the database still has HELD."""
        return replace(self, state=State.EXPIRED) if self.is_due(now) else self


@dataclass(frozen=True, slots=True)
class OrderSize:
    """The numbers of an order's active reservations and of their allocations.

    The database counts each of them only up to its limit plus one.
    """

    reservations: int
    allocations: int

    def plus(self, reservations: int, allocations: int) -> "OrderSize":
        return OrderSize(self.reservations + reservations, self.allocations + allocations)

    @property
    def is_too_large(self) -> bool:
        return self.reservations > ORDER_RESERVATIONS_MAX or self.allocations > ORDER_ALLOCATIONS_MAX


@dataclass(frozen=True, slots=True)
class Line:
    """Units of a product that an order needs: from one location, or from any location if `location` is None."""

    product_id: int
    quantity: int
    location: str | None = None
