"""Parsed requests, from callers and from events. An operation takes a list of requests."""

from dataclasses import dataclass

from inventory_api.domain.model import Line, State
from shop_common.api.command import Command
from shop_common.db.idempotency import Claim, fingerprint


@dataclass(frozen=True, slots=True)
class AddStock(Command):
    """Add units to a product at a location."""

    product_id: int
    location: str
    quantity: int

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.product_id, self.location, self.quantity)
        # A new item has no id yet when the key is claimed. Product and location also identify the item.
        return Claim("CreateInventoryItem", "", self.request_id, content, (str(self.product_id), self.location))


@dataclass(frozen=True, slots=True)
class SetQuantity(Command):
    """Set the quantity of an item. A `quantity` of None changes nothing. A `version` of None matches any version."""

    item_id: int
    quantity: int | None
    version: int | None = None

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.item_id, self.quantity, self.version)
        return Claim("UpdateInventoryItem", "", self.request_id, content, (str(self.item_id),))


@dataclass(frozen=True, slots=True)
class OrderLines(Command):
    """Reserve all lines of an order, or none. A `ttl_seconds` of None means the default of the service."""

    order_id: str
    lines: tuple[Line, ...]
    ttl_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class OrderRequest(Command):
    """Confirm, release or fulfil the reservations of one order."""

    order_id: str


@dataclass(frozen=True, slots=True)
class ReleaseRequest(Command):
    """Release one reservation."""

    reservation_id: str


@dataclass(frozen=True, slots=True)
class StockQuestion:
    """Count the available units of a product: at one location, or at all locations if `location` is None."""

    product_id: int
    location: str | None


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """A filter for items. A field that is None matches any value."""

    product_id: int | None = None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class ReservationFilter:
    """A filter for reservations. A field that is None matches any value. Due reservations match the state EXPIRED."""

    order_id: str | None = None
    product_id: int | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """Delete idempotency keys and ended reservations that are older than this age, at most `max_count` of each."""

    older_than_seconds: float
    max_count: int
