"""The words of the inventory: items, reservations, allocations, and why a request is refused."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from shop_common.errors import Conflict, NotFound, Refused

DEFAULT_LOCATION = "WAREHOUSE_A"
ITEM_QUANTITY_MAX = 9 * 10**15
"""Safe as a JSON number everywhere."""
LOCATIONS_MAX = 500
"""Of a product, and so of a reservation: what tells of one must fit into an event."""
ORDER_RESERVATIONS_MAX = 1_000
"""Of an order that have not ended: confirming them is one transaction."""
ORDER_ALLOCATIONS_MAX = 10_000
"""Of all these together."""


class State(StrEnum):
    """Of a reservation; docs/states.md draws the transitions."""

    HELD = "HELD"
    CONFIRMED = "CONFIRMED"
    EXPIRED = "EXPIRED"
    RELEASED = "RELEASED"
    FULFILLED = "FULFILLED"


ENDED = frozenset({State.EXPIRED, State.RELEASED, State.FULFILLED})


@dataclass(frozen=True, slots=True)
class Item:
    """Stock of one product at one location. `due` is held past its time and so is free."""

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
    """So many units of a reservation are drawn from this item."""

    item_id: int
    location: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units of one product held, or kept, for an order. `allocations` add up to `quantity`."""

    id: str
    product_id: int
    quantity: int
    order_id: str
    state: State
    created_at: datetime
    expires_at: datetime | None
    allocations: tuple[Allocation, ...]

    def is_due(self, now: datetime) -> bool:
        """Whether it is a hold past its time."""
        return self.state is State.HELD and self.expires_at is not None and self.expires_at <= now

    def as_of(self, now: datetime) -> "Reservation":
        """As callers see it: a hold past its time is expired, whether or not anyone has written that down."""
        return replace(self, state=State.EXPIRED) if self.is_due(now) else self


@dataclass(frozen=True, slots=True)
class Line:
    """So many units of a product, at a location or wherever they are."""

    product_id: int
    quantity: int
    location: str | None = None


@dataclass(frozen=True, slots=True)
class OrderLines:
    """What one order wants held, all of it or nothing. `ttl_seconds` None means the service's default."""

    order_id: str
    lines: tuple[Line, ...]
    ttl_seconds: float | None = None
    request_id: str | None = None
    traceparent: str | None = field(default=None, compare=False)


class ItemNotFound(NotFound):
    """No item has this id."""

    reason: ClassVar[str] = "ITEM_NOT_FOUND"

    def __init__(self, item_id: int) -> None:
        super().__init__(f"there is no inventory item {item_id}")
        self.item_id = item_id

    def metadata(self) -> dict[str, str]:
        return {"id": str(self.item_id)}


class ReservationNotFound(NotFound):
    """No reservation has this id, or the order has none."""

    reason: ClassVar[str] = "RESERVATION_NOT_FOUND"

    def __init__(self, *, reservation_id: str = "", order_id: str = "") -> None:
        super().__init__(
            f"there is no reservation {reservation_id}" if reservation_id else f"order {order_id} has no reservation"
        )
        self._metadata = {"reservation_id": reservation_id} if reservation_id else {"order_id": order_id}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class InsufficientStock(Refused):
    """Less is free than was asked for; holds past their time count as free."""

    reason: ClassVar[str] = "INSUFFICIENT_STOCK"

    def __init__(self, product_id: int, requested: int, available: int, location: str | None = None) -> None:
        where = f" at {location}" if location else ""
        super().__init__(f"product {product_id}{where}: {requested} requested, {available} available")
        self.product_id = product_id
        self.requested = requested
        self.available = available
        self.location = location

    def metadata(self) -> dict[str, str]:
        found = {
            "product_id": str(self.product_id),
            "requested": str(self.requested),
            "available": str(self.available),
        }
        return {**found, "location": self.location} if self.location else found


class _OrderRefused(Refused):
    def __init__(self, order_id: str, message: str) -> None:
        super().__init__(message)
        self.order_id = order_id

    def metadata(self) -> dict[str, str]:
        return {"order_id": self.order_id}


class ReservationsLimit(_OrderRefused):
    """The order has, or would have, more active reservations, or allocations of them, than an order may."""

    reason: ClassVar[str] = "RESERVATIONS_LIMIT"

    def __init__(self, order_id: str, reservations: int, allocations: int) -> None:
        super().__init__(
            order_id,
            f"order {order_id} has {reservations} active reservations with {allocations} allocations; an order has at "
            f"most {ORDER_RESERVATIONS_MAX} with {ORDER_ALLOCATIONS_MAX}",
        )
        self._counts = {"reservations": str(reservations), "allocations": str(allocations)}

    def metadata(self) -> dict[str, str]:
        return super().metadata() | self._counts


class ReservationExpired(_OrderRefused):
    """A hold of the order ran out before it was confirmed."""

    reason: ClassVar[str] = "RESERVATION_EXPIRED"

    def __init__(self, order_id: str) -> None:
        super().__init__(order_id, f"a hold of order {order_id} has expired")


class ReservationReleased(_OrderRefused):
    """Every hold of the order was given back."""

    reason: ClassVar[str] = "RESERVATION_RELEASED"

    def __init__(self, order_id: str) -> None:
        super().__init__(order_id, f"the holds of order {order_id} were released")


class BelowReserved(Refused):
    """The new quantity would be less than what is reserved."""

    reason: ClassVar[str] = "BELOW_RESERVED"

    def __init__(self, item_id: int, requested: int, reserved: int) -> None:
        super().__init__(f"item {item_id}: quantity {requested} is below the {reserved} reserved units")
        self._metadata = {"id": str(item_id), "requested": str(requested), "reserved": str(reserved)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class QuantityLimit(Refused):
    """The item would hold more than an item may."""

    reason: ClassVar[str] = "QUANTITY_LIMIT"

    def __init__(self, product_id: int, location: str, quantity: int) -> None:
        super().__init__(
            f"product {product_id} at {location} holds {quantity}; an item holds at most {ITEM_QUANTITY_MAX}"
        )
        self._metadata = {"product_id": str(product_id), "location": location, "quantity": str(quantity)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class LocationsLimit(Refused):
    """The product would be at more locations, or a reservation would draw on more, than either may."""

    reason: ClassVar[str] = "LOCATIONS_LIMIT"

    def __init__(self, product_id: int, message: str) -> None:
        super().__init__(message)
        self._metadata = {"product_id": str(product_id), "limit": str(LOCATIONS_MAX)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class VersionMismatch(Conflict):
    """The item has changed since the caller read it."""

    reason: ClassVar[str] = "VERSION_MISMATCH"

    def __init__(self, item_id: int, expected: int, actual: int) -> None:
        super().__init__(f"item {item_id} has version {actual}, not {expected}")
        self._metadata = {"id": str(item_id), "expected": str(expected), "actual": str(actual)}

    def metadata(self) -> dict[str, str]:
        return self._metadata
