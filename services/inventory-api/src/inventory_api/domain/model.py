"""The values of the inventory: items, reservations and their allocations, and the limits on them."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

DEFAULT_LOCATION = "WAREHOUSE_A"
ITEM_QUANTITY_MAX = 9 * 10**15
"""The most units of an item. Every JSON parser reads whole numbers up to this one exactly."""
HELD_SECONDS_MAX = 7 * 24 * 3600
"""The longest time for which a reservation is held, extensions included."""
WITHHOLDINGS_MAX = 20
"""The most reasons for which units of an item are withheld at the same time, so that responses stay small."""
LOCATIONS_MAX = 500
"""The most locations of a product. A reservation has at most as many allocations, so its events stay small."""
ORDER_RESERVATIONS_MAX = 1_000
"""The most active reservations of an order. One transaction confirms all of them."""
ORDER_ALLOCATIONS_MAX = 10_000
"""The most allocations that all active reservations of an order have in total."""


class ProductKey(NamedTuple):
    """A product of a tenant. Tenants may use the same product ids."""

    tenant: str
    product_id: int


class StockKey(NamedTuple):
    """A product of a tenant at a location. A location of None means any location of the product."""

    tenant: str
    product_id: int
    location: str | None

    @property
    def product(self) -> ProductKey:
        return ProductKey(self.tenant, self.product_id)


class LocationKey(NamedTuple):
    """A location of a tenant. Tenants may use the same names of locations."""

    tenant: str
    location: str


class ItemKey(NamedTuple):
    """The id of an item, as a caller of this tenant may use it. Ids are unique over all tenants."""

    tenant: str
    id: int


class ReservationKey(NamedTuple):
    """The id of a reservation, as a caller of this tenant may use it. Ids are unique over all tenants."""

    tenant: str
    id: str


class OrderKey(NamedTuple):
    """An order for which a caller has reserved stock. Tenants and callers choose the ids of their orders freely.

    The owner is empty for the orders of order-api. See Caller.reservation_owner.
    """

    tenant: str
    owner: str
    order_id: str


class State(StrEnum):
    """State of a reservation. docs/states.md draws the transitions."""

    HELD = "HELD"
    CONFIRMED = "CONFIRMED"
    EXPIRED = "EXPIRED"
    RELEASED = "RELEASED"
    FULFILLED = "FULFILLED"
    REPLACED = "REPLACED"


ACTIVE = (State.HELD, State.CONFIRMED)
"""The states in which a reservation reserves units."""

ENDED = frozenset({State.EXPIRED, State.RELEASED, State.FULFILLED, State.REPLACED})


@dataclass(frozen=True, slots=True)
class Item:
    """Stock of one product at one location.

    `reserved_quantity` counts the units of all active reservations. `due` counts the units of due reservations. The
    database still counts these units as reserved, but they are available. `withheld_quantity` counts the units that
    are not for sale.
    """

    tenant: str
    id: int
    product_id: int
    location: str
    quantity: int
    reserved_quantity: int
    version: int
    created_at: datetime
    updated_at: datetime
    withheld_quantity: int = 0
    is_active: bool = True
    """Whether the location is active."""
    priority: int = 0
    """The priority of the location."""
    due: int = 0
    withholdings: tuple[tuple[str, int], ...] = ()
    """The withheld units by reason, sorted by reason. Also empty if they were not read."""

    @property
    def product(self) -> ProductKey:
        return ProductKey(self.tenant, self.product_id)

    @property
    def stock_key(self) -> StockKey:
        return StockKey(self.tenant, self.product_id, self.location)

    @property
    def free_quantity(self) -> int:
        """Units that can be reserved without expiring a due reservation first."""
        return units_available(self.quantity, self.withheld_quantity, self.reserved_quantity, self.is_active)

    @property
    def available_quantity(self) -> int:
        """Units that can be reserved."""
        return units_available(self.quantity, self.withheld_quantity, self.reserved_quantity, self.is_active, self.due)

    @property
    def bound_quantity(self) -> int:
        """Units that must stay in the item: it cannot have fewer."""
        return self.withheld_quantity + self.reserved_quantity


@dataclass(frozen=True, slots=True)
class PastItem:
    """An item at an earlier time. Only its quantity and its withheld units at that time are known."""

    item: Item
    quantity: int
    withheld_quantity: int


def units_available(
    quantity: int, withheld_quantity: int, reserved_quantity: int, is_active: bool, due: int = 0
) -> int:
    """Return the units of an item that can be reserved. Nothing can be reserved at an inactive location.

    No other code computes this number.
    """
    return quantity - withheld_quantity - reserved_quantity + due if is_active else 0


@dataclass(frozen=True, slots=True)
class LocationAvailability:
    """The stock of a product at one location. Units of due reservations are available, and not reserved."""

    location: str
    available_quantity: int
    reserved_quantity: int
    withheld_quantity: int


@dataclass(frozen=True, slots=True)
class Availability:
    """The stock of a product at all locations together, and at each location, sorted by location.

    `next_release_at` is the earliest expiry of its held reservations, or None if there are none.
    """

    product_id: int
    available_quantity: int
    reserved_quantity: int
    withheld_quantity: int
    next_release_at: datetime | None
    locations: tuple[LocationAvailability, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """The properties of a location. A location whose properties were never set has the default values."""

    tenant: str
    location: str
    is_active: bool = True
    priority: int = 0
    region: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    updated_at: datetime | None = None

    @property
    def key(self) -> "LocationKey":
        return LocationKey(self.tenant, self.location)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Units that a reservation takes from one item."""

    item_id: int
    location: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units of one product that are reserved for an order. The quantities of `allocations` add up to `quantity`.

    Product, quantity and allocations never change. To divide a reservation, other reservations replace it.
    Only the owner confirms and releases the reservation. The owner is empty if it is order-api.
    """

    tenant: str
    owner: str
    id: str
    product_id: int
    quantity: int
    order_id: str
    state: State
    created_at: datetime
    expires_at: datetime | None
    allocations: tuple[Allocation, ...]

    @property
    def key(self) -> ReservationKey:
        return ReservationKey(self.tenant, self.id)

    @property
    def product(self) -> ProductKey:
        return ProductKey(self.tenant, self.product_id)

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


class Strategy(StrEnum):
    """The order in which locations give their units. The comments of AllocationStrategy in the proto describe them."""

    FEWEST = "FEWEST"
    PRIORITY = "PRIORITY"
    AS_GIVEN = "AS_GIVEN"


@dataclass(frozen=True, slots=True)
class AllocationPolicy:
    """How the locations of a line are chosen. Only `locations` are allowed, or all if it is empty.

    A `max_locations` of None means the limit of a reservation.
    """

    strategy: Strategy = Strategy.FEWEST
    locations: tuple[str, ...] = ()
    excluded_locations: tuple[str, ...] = ()
    max_locations: int | None = None

    def allows(self, location: str) -> bool:
        return (not self.locations or location in self.locations) and location not in self.excluded_locations


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A product of which fewer units were reserved for an order than its lines request together."""

    product_id: int
    requested: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Line:
    """Units of a product that an order needs: from one location, or from any location if `location` is None.

    A line with a location has no policy.
    """

    product_id: int
    quantity: int
    location: str | None = None
    policy: AllocationPolicy | None = None
