"""The commands about orders: parsed and validated requests."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID, uuid5

from uuid_utils import uuid7

from order_api.domain.model import NewItem, Order, Status
from shop_common.api import money
from shop_common.api.command import Command
from shop_common.db.idempotency import Claim, fingerprint

# Never change this value. Order ids are derived from it, so that a repeated request_id always leads to the same order.
_ORDER_NAMESPACE = UUID("5b0c6d0e-6f5c-4f0b-9d5e-3a1f7c2e8b44")


@dataclass(frozen=True, slots=True)
class NewOrder(Command):
    """Create an order. `new_order` returns this command. If `ttl_seconds` is None, inventory-api uses its default."""

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
        """Return whether this request has the same content as the one that created the order with its id."""
        stored = [(item.product_id, item.quantity, item.price) for item in order.items]
        requested = [(item.product_id, item.quantity, item.price) for item in self.items]
        return stored == requested and self.user_id == order.user_id and self.currency == order.currency


def new_order(
    user_id: int,
    items: tuple[NewItem, ...],
    currency: str,
    *,
    ttl_seconds: float | None = None,
    request_id: str | None = None,
    traceparent: str | None = None,
) -> NewOrder:
    """Return an order to create, with the exact total of its lines.

    The order's id is derived from user and request_id, so that a repeat leads to the same order. Without a request_id
    the id is random.
    """
    order_id = str(uuid7()) if request_id is None else str(uuid5(_ORDER_NAMESPACE, f"{user_id}:{request_id}"))
    total = money.total([(item.price, item.quantity) for item in items])
    return NewOrder(
        order_id, user_id, items, total, currency, ttl_seconds, request_id=request_id, traceparent=traceparent
    )


@dataclass(frozen=True, slots=True)
class ReservedOrder:
    """An order to store. Its stock is reserved for this many seconds after the order is stored."""

    order: NewOrder
    reserved_seconds: float
    reservation_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeStatus(Command):
    """Change the status of an order."""

    order_id: str
    status: Status
    reason: str = ""

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.order_id, self.status.value, self.reason)
        return Claim("UpdateOrderStatus", "", self.request_id, content, (self.order_id,))


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """A filter for orders; None matches any order. `created_after` is inclusive, `created_before` exclusive."""

    user_id: int | None = None
    status: Status | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class CancelAbandoned:
    """Cancel up to `max_count` orders that are still PENDING `grace_seconds` after their reservations have ended."""

    grace_seconds: float
    max_count: int


@dataclass(frozen=True, slots=True)
class PurgeKeys:
    """Delete up to `max_count` idempotency keys that are older than `older_than_seconds`."""

    older_than_seconds: float
    max_count: int
