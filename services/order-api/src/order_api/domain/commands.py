"""Requests for a change of orders, after parsing."""

from dataclasses import dataclass
from decimal import Decimal

from order_api.domain.model import NewItem, Order, Status
from shop_common.api.command import Command
from shop_common.db.idempotency import Claim, fingerprint


@dataclass(frozen=True, slots=True)
class NewOrder(Command):
    """Create an order. `id` is derived from user and request_id, if there is a request_id; otherwise it is random.

    `ttl_seconds` None means the default of inventory-api.
    """

    id: str
    user_id: int
    items: tuple[NewItem, ...]
    total_amount: Decimal
    currency: str
    ttl_seconds: float | None

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        lines = [(item.product_id, item.quantity, str(item.price)) for item in self.items]
        content = fingerprint(self.user_id, self.currency, lines, self.ttl_seconds)
        return Claim("CreateOrder", str(self.user_id), self.request_id, content, (self.id,))

    def is_what_made(self, order: Order) -> bool:
        """Whether this request has the content of the one that created the order of the same id."""
        stored = [(item.product_id, item.quantity, item.price) for item in order.items]
        requested = [(item.product_id, item.quantity, item.price) for item in self.items]
        return stored == requested and self.user_id == order.user_id and self.currency == order.currency


@dataclass(frozen=True, slots=True)
class HeldOrder:
    """An order whose stock is reserved, for this long from the time of the reservation."""

    order: NewOrder
    hold_seconds: float
    reservation_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step(Command):
    """Change the status of an order."""

    order_id: str
    status: Status
    reason: str = ""

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.order_id, self.status.value, self.reason)
        return Claim("UpdateOrderStatus", "", self.request_id, content, (self.order_id,))
