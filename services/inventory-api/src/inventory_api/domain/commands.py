"""Requests for a change of the stock, after parsing."""

from dataclasses import dataclass

from inventory_api.domain.model import Line
from shop_common.api.command import Command
from shop_common.db.idempotency import Claim, fingerprint


@dataclass(frozen=True, slots=True)
class AddStock(Command):
    """Add units of a product at a location."""

    product_id: int
    location: str
    quantity: int

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.product_id, self.location, self.quantity)
        # The item's id is not known before the claim; product and location name the item as well.
        return Claim("CreateInventoryItem", "", self.request_id, content, (str(self.product_id), self.location))


@dataclass(frozen=True, slots=True)
class SetQuantity(Command):
    """Set an item to a new absolute quantity, if it has this version. None: any version, or no change of quantity."""

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
    """Reserve all lines of an order, or none. `ttl_seconds` None means the service's default."""

    order_id: str
    lines: tuple[Line, ...]
    ttl_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class OrderRequest(Command):
    """Change all reservations of one order."""

    order_id: str


@dataclass(frozen=True, slots=True)
class ReleaseRequest(Command):
    """Release one reservation."""

    reservation_id: str
