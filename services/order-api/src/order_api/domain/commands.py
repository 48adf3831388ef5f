"""The commands about orders: parsed and validated requests."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import ClassVar
from uuid import UUID, uuid5

from uuid_utils import uuid7

from order_api.domain.model import (
    NO_DETAILS,
    Charge,
    ChargeKind,
    NewDetails,
    NewItem,
    Order,
    OrderItem,
    OrderKey,
    ReturnedUnits,
    Status,
)
from shop_common.api import money
from shop_common.api.command import Command
from shop_common.db.idempotency import Claim, fingerprint
from shop_common.identity import tenant
from shop_common.identity.caller import ANYONE, Caller

# Never change this value. Order ids are derived from it, so that a repeated request_id always leads to the same order.
_ORDER_NAMESPACE = UUID("5b0c6d0e-6f5c-4f0b-9d5e-3a1f7c2e8b44")


CREATE_METHOD = "CreateOrder"
CHANGE_METHOD = "UpdateOrderStatus"
SHIP_METHOD = "CreateShipment"
CANCEL_ITEMS_METHOD = "CancelOrderItems"
RETURN_METHOD = "CreateReturn"
CHANGE_ORDER_METHOD = "ChangeOrder"
REINSTATE_METHOD = "ReinstateOrder"
ERASE_METHOD = "EraseUser"
EXTEND_METHOD = "ExtendOrder"
"""Names of RPCs, in the keys of their request_ids and in the audit log."""


@dataclass(frozen=True, slots=True)
class NewOrder(Command):
    """Create an order. `new_order` returns this command. If `ttl_seconds` is None, inventory-api uses its default."""

    id: str
    user_id: int
    items: tuple[NewItem, ...]
    total_amount: Decimal
    currency: str
    ttl_seconds: float | None
    details: NewDetails = NO_DETAILS

    @property
    def key(self) -> OrderKey:
        return OrderKey(self.tenant, self.id)

    @property
    def buyer_limits(self) -> dict[int, int]:
        """The most units of each product that the buyer may have. Products without a limit are missing."""
        return _buyer_limits(self.items)

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        lines = [_line(item, str(item.price)) for item in self.items]
        # Fields that are not set must not change the fingerprint: an earlier release stored it without these fields.
        details = () if self.details == NO_DETAILS else self.details.content()
        limits = _limits_content(self.buyer_limits)
        content = fingerprint(self.user_id, self.currency, lines, self.ttl_seconds, *details, *limits)
        return Claim(CREATE_METHOD, str(self.user_id), self.request_id, content, (self.id,), tenant=self.tenant)

    def is_what_made(self, order: Order) -> bool:
        """Return whether this request has the same content as the one that created the order with its id.

        The ttl and the limits are not compared, because they are not part of an order.
        """
        stored = [_line(item, item.price) for item in order.items]
        requested = [_line(item, item.price) for item in self.items]
        details = NewDetails(order.charges, order.external_reference, order.labels)
        return (
            stored == requested
            and self.details == details
            and self.user_id == order.user_id
            and self.currency == order.currency
        )


def _line(item: NewItem | OrderItem, price: object) -> tuple[object, ...]:
    line = (item.product_id, item.quantity, price)
    return (*line, item.location) if item.location else line


def _buyer_limits(items: Iterable[NewItem]) -> dict[int, int]:
    limits: dict[int, int] = {}
    for item in items:
        if item.buyer_limit:
            limits[item.product_id] = min(item.buyer_limit, limits.get(item.product_id, item.buyer_limit))
    return limits


def _limits_content(limits: dict[int, int]) -> tuple[object, ...]:
    """Return what the limits add to a fingerprint. Without limits this is nothing, as in releases before them."""
    return (sorted(limits.items()),) if limits else ()


def new_order(
    user_id: int,
    items: tuple[NewItem, ...],
    currency: str,
    *,
    ttl_seconds: float | None = None,
    details: NewDetails = NO_DETAILS,
    caller: Caller = ANYONE,
    request_id: str | None = None,
    traceparent: str | None = None,
) -> NewOrder:
    """Return an order to create, with the exact total of its lines and charges.

    The order's id is derived from tenant, user and request_id, so that a repeat leads to the same order. Without a
    request_id the id is random.
    """
    order_id = str(uuid7()) if request_id is None else _derived_id(caller.tenant, user_id, request_id)
    lines = [(item.price, item.quantity) for item in items]
    charges = [(each.amount, -1 if each.kind is ChargeKind.DISCOUNT else 1) for each in details.charges]
    total = money.total([*lines, *charges])
    return NewOrder(
        order_id,
        user_id,
        items,
        total,
        currency,
        ttl_seconds,
        details,
        caller=caller,
        request_id=request_id,
        traceparent=traceparent,
    )


def _derived_id(tenant_name: str, user_id: int, request_id: str) -> str:
    # Orders from before tenants existed must keep their ids, so the default tenant is not part of the name. There, a
    # name begins with digits and a colon. In other tenants it begins with the tenant and a slash, so no two names are
    # equal.
    return str(uuid5(_ORDER_NAMESPACE, tenant.qualified(tenant_name, f"{user_id}:{request_id}")))


@dataclass(frozen=True, slots=True)
class ReservedOrder:
    """An order to store. Its stock is reserved for this many seconds after the order is stored."""

    order: NewOrder
    reserved_seconds: float
    reservation_ids: tuple[str, ...] = ()

    @property
    def key(self) -> OrderKey:
        return self.order.key

    def folded(self, calls: int) -> "ReservedOrder":
        """Return a copy of this order that stands for `calls` equal calls."""
        return replace(self, order=self.order.folded(calls))

    @property
    def tenant(self) -> str:
        return self.order.tenant


@dataclass(frozen=True, slots=True)
class OrderCommand(Command):
    """A change of an existing order."""

    order_id: str

    @property
    def order_key(self) -> OrderKey:
        return OrderKey(self.tenant, self.order_id)

    @property
    def repeat_key(self) -> tuple[str, str, str] | None:
        """The key that repeats of this request share, or None if there is no request_id."""
        return None if self.request_id is None else (self.tenant, self._scope, self.request_id)

    @property
    def _scope(self) -> str:
        """The scope of the request_id: one caller cannot use up the request_ids of another.

        If callers are not identified, the scope is empty, as in the releases before tenants existed.
        """
        return "" if self.caller.name == ANYONE.name else self.caller.name

    def _claim(self, method: str, *content: object) -> Claim | None:
        if self.request_id is None:
            return None
        return Claim(
            method,
            self._scope,
            self.request_id,
            fingerprint(self.order_id, *content),
            (self.order_id,),
            tenant=self.tenant,
        )


@dataclass(frozen=True, slots=True)
class ChangeStatus(OrderCommand):
    """Change the status of an order."""

    status: Status
    reason: str = ""

    method: ClassVar[str] = CHANGE_METHOD

    def claim(self) -> Claim | None:
        return self._claim(self.method, self.status.value, self.reason)


@dataclass(frozen=True, slots=True)
class Reinstate(ChangeStatus):
    """Confirm a cancelled order whose reservation expired."""

    method: ClassVar[str] = REINSTATE_METHOD


@dataclass(frozen=True, slots=True)
class ExtendOrder(OrderCommand):
    """Hold the stock of an order until `ttl_seconds` from now."""

    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class ShipItems(OrderCommand):
    """Ship units of an order. `units` are pairs of the id of a line and its units; if empty, all open units."""

    units: tuple[tuple[int, int], ...]
    carrier: str = ""
    tracking_number: str = ""

    def claim(self) -> Claim | None:
        return self._claim(SHIP_METHOD, self.units, self.carrier, self.tracking_number)


@dataclass(frozen=True, slots=True)
class CancelItems(OrderCommand):
    """Cancel units of an order. `units` are pairs of the id of a line and its units."""

    units: tuple[tuple[int, int], ...]
    reason: str = ""

    def claim(self) -> Claim | None:
        return self._claim(CANCEL_ITEMS_METHOD, self.units, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeLines(OrderCommand):
    """Change the lines and the charges of an order that has this version.

    `quantities` are pairs of the id of a line and the units that it shall keep. A `charges` of None keeps the charges.
    `currency` is that of all amounts, or None if the command has no amount.
    """

    version: int
    quantities: tuple[tuple[int, int], ...] = ()
    new_items: tuple[NewItem, ...] = ()
    charges: tuple[Charge, ...] | None = None
    currency: str | None = None
    reason: str = ""

    def claim(self) -> Claim | None:
        return self._claim(CHANGE_ORDER_METHOD, self.content())

    @property
    def buyer_limits(self) -> dict[int, int]:
        """The most units of the products of new lines that the buyer may have. Products without a limit are missing."""
        return _buyer_limits(self.new_items)

    def content(self) -> str:
        """Return a digest of the content of the change."""
        lines = [_line(item, str(item.price)) for item in self.new_items]
        charges = None if self.charges is None else NewDetails(self.charges).content()
        limits = _limits_content(self.buyer_limits)
        return fingerprint(self.version, self.quantities, lines, charges, self.currency, self.reason, *limits)


@dataclass(frozen=True, slots=True)
class ReturnItems(OrderCommand):
    """Record that shipped units of an order came back."""

    units: tuple[ReturnedUnits, ...]
    reason: str = ""

    def claim(self) -> Claim | None:
        # The fingerprint must not depend on names in the code.
        units = tuple((each.item_id, each.quantity, each.treatment.value, *each.place) for each in self.units)
        return self._claim(RETURN_METHOD, units, self.reason)


@dataclass(frozen=True, slots=True)
class EraseUser(Command):
    """Erase a user from the user's orders that have ended."""

    user_id: int


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """A filter for the orders of a tenant. None, and an empty reference, match any order.

    `statuses` are sorted. An empty tuple matches no order. The first time of each range is inclusive, the second one
    exclusive. Some fields exclude each other: `conflicts` names them.
    """

    tenant: str = field(repr=False)  # page tokens contain a digest of the repr, and of the tenant
    user_id: int | None = None
    statuses: tuple[Status, ...] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    product_id: int | None = None
    external_reference: str = ""
    label: tuple[str, str] | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None

    @property
    def is_by_update(self) -> bool:
        """Whether the list is sorted by the last change of the orders, the oldest first."""
        return self.updated_after is not None or self.updated_before is not None

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield the names of each two fields that are set and that no index serves together."""
        for name, others in _CONFLICTS.items():
            if self._is_set(name):
                yield from ((name, other) for other in others if self._is_set(other))

    def _is_set(self, name: str) -> bool:
        return getattr(self, name) not in (None, "")


_CREATED = ("created_after", "created_before")
_ORDINARY = ("user_id", "statuses", *_CREATED)
_CONFLICTS: dict[str, tuple[str, ...]] = {
    "product_id": (*_ORDINARY, "external_reference", "label", "updated_after", "updated_before"),
    "external_reference": ("statuses", "label"),
    "label": ("statuses",),
    "updated_after": (*_ORDINARY, "external_reference", "label"),
    "updated_before": (*_ORDINARY, "external_reference", "label"),
}


@dataclass(frozen=True, slots=True)
class CancelAbandoned(Command):
    """Cancel up to `max_count` orders that are still PENDING `grace_seconds` after their reservations have ended.

    The orders are of all tenants.
    """

    grace_seconds: float
    max_count: int


@dataclass(frozen=True, slots=True)
class Reconcile(Command):
    """Compare a page of orders of all tenants with their reservations.

    Leaves alone orders whose status changed less than `grace_seconds` ago. The token is that of inventory-api.
    """

    grace_seconds: float
    page_size: int
    page_token: str


@dataclass(frozen=True, slots=True)
class PurgeKeys(Command):
    """Delete old idempotency keys and API keys of all tenants, up to `max_count` of each kind."""

    older_than_seconds: float
    max_count: int
