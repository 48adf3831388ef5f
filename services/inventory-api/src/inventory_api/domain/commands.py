"""Parsed requests, from callers and from events. An operation takes a list of requests."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from inventory_api.domain.model import (
    ItemKey,
    Line,
    LocationKey,
    OrderKey,
    ProductKey,
    ReservationKey,
    State,
    StockKey,
)
from inventory_api.domain.movements import MovementKind
from shop_common.api import command
from shop_common.api.command import Cause
from shop_common.db.idempotency import Claim, fingerprint


@dataclass(frozen=True, slots=True)
class Command(command.Command):
    """A request for a change of the caller's tenant."""

    @property
    def owner(self) -> str:
        """The owner of the reservations, and the scope of the request_id.

        Each owner has its own request_ids, so no caller can use up those of another.
        """
        return self.caller.reservation_owner

    @property
    def repeat_key(self) -> tuple[str, str, str] | None:
        """The key that repeats of this request share, or None if there is no request_id."""
        return None if self.request_id is None else (self.tenant, self.owner, self.request_id)


@dataclass(frozen=True, slots=True)
class AddStock(Command):
    """Add units to a product at a location."""

    product_id: int
    location: str
    quantity: int

    @property
    def stock_key(self) -> StockKey:
        return StockKey(self.tenant, self.product_id, self.location)

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.product_id, self.location, self.quantity)
        # A new item has no id yet when the key is claimed. Product and location also identify the item.
        resources = (str(self.product_id), self.location)
        return Claim("CreateInventoryItem", self.owner, self.request_id, content, resources, self.tenant)


@dataclass(frozen=True, slots=True)
class SetQuantity(Command):
    """Set the quantity of an item. A `quantity` of None changes nothing. A `version` of None matches any version."""

    item_id: int
    quantity: int | None
    version: int | None = None

    @property
    def item_key(self) -> ItemKey:
        return ItemKey(self.tenant, self.item_id)

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.item_id, self.quantity, self.version)
        return Claim("UpdateInventoryItem", self.owner, self.request_id, content, (str(self.item_id),), self.tenant)


TURN_CHANGES = 100
"""The most changes of stock in one transaction, unless they are atomic. It locks their items for about 20 ms."""


@dataclass(frozen=True, slots=True)
class StockChange:
    """A change of the quantity of one item. MOVED changes two items, and WITHHELD the withheld units of one.

    `quantity` is the difference, for COUNTED the new quantity, and for MOVED the units that move to `to_location`. For
    WITHHELD, `reason` is the reason of the withholding.
    `number` is its position in the call. A `version` of None matches any version. `occurred_at` is the time that the
    caller states, or None. Only COUNTED and ADJUSTED can have `release_shortfall`: reservations are released if the new
    quantity is too small for them.
    """

    number: int
    product_id: int
    location: str
    kind: MovementKind
    quantity: int
    version: int | None = None
    reason: str = ""
    reference: str = ""
    occurred_at: datetime | None = None
    to_location: str | None = None
    release_shortfall: bool = False

    @property
    def creates_item(self) -> bool:
        """Whether the change creates a missing item. A change that takes units or names a version does not."""
        takes_units = self.kind in (MovementKind.MOVED, MovementKind.WITHHELD)
        return self.quantity >= 0 and self.version is None and not takes_units

    @property
    def content(self) -> tuple[tuple[str, object], ...]:
        """The fields that are set, for the fingerprint, without the position."""
        values = ((name, getattr(self, name)) for name in self.__slots__ if name != "number")
        # False is compared by identity, because a quantity of 0 is equal to it.
        return tuple((name, str(value)) for name, value in values if value not in (None, "") and value is not False)


@dataclass(frozen=True, slots=True)
class ChangeStock(Command):
    """Make each change independently, or with `is_atomic`, make all of them or none."""

    changes: tuple[StockChange, ...]
    is_atomic: bool = False

    @property
    def parts(self) -> list[tuple[StockChange, ...]]:
        """The changes, divided into parts that are made or refused independently of each other."""
        return [self.changes] if self.is_atomic else [(change,) for change in self.changes]

    @property
    def turns(self) -> list["ChangeStock"]:
        """Smaller commands that make the same changes, one per transaction. Only for changes that are not atomic."""
        starts = range(0, len(self.changes), TURN_CHANGES)
        return [replace(self, changes=self.changes[start : start + TURN_CHANGES]) for start in starts]

    def stock_key(self, change: StockChange) -> StockKey:
        return StockKey(self.tenant, change.product_id, change.location)

    def target_key(self, change: StockChange) -> StockKey | None:
        """Return the stock key to which the units move, or None if the change is no move."""
        return None if change.to_location is None else StockKey(self.tenant, change.product_id, change.to_location)

    def claims(self) -> list[Claim | None]:
        """Return the claim of each part, whose key is the request_id and the position of its first change."""
        return [self._claim(part) for part in self.parts]

    def _claim(self, part: tuple[StockChange, ...]) -> Claim | None:
        if self.request_id is None:
            return None
        key = f"{self.request_id}#{part[0].number}"
        content = fingerprint(*(change.content for change in part))
        resources = tuple(
            name for change in part for name in (str(change.product_id), change.location, change.to_location or "")
        )
        return Claim("BatchChangeStock", self.owner, key, content, resources, self.tenant)


@dataclass(frozen=True, slots=True)
class UpdateLocation(Command):
    """Change properties of a location. A property that is None does not change."""

    location: str
    is_active: bool | None = None
    priority: int | None = None
    region: str | None = None
    labels: tuple[tuple[str, str], ...] | None = None

    @property
    def key(self) -> LocationKey:
        return LocationKey(self.tenant, self.location)

    def claim(self) -> Claim | None:
        if self.request_id is None:
            return None
        content = fingerprint(self.location, self.is_active, self.priority, self.region, self.labels)
        return Claim("UpdateLocation", self.owner, self.request_id, content, (self.location,), self.tenant)


@dataclass(frozen=True, slots=True)
class OrderLines(Command):
    """Reserve all lines of an order, or none. A `ttl_seconds` of None means the default of the service.

    With `allow_partial`, reserve as many units of the lines as are available, but at least one.
    """

    order_id: str
    lines: tuple[Line, ...]
    ttl_seconds: float | None = None
    allow_partial: bool = False

    @property
    def order_key(self) -> OrderKey:
        return OrderKey(self.tenant, self.owner, self.order_id)


@dataclass(frozen=True, slots=True)
class OrderRequest(Command):
    """Confirm, release or fulfil the caller's reservations of one order."""

    order_id: str

    @property
    def order_key(self) -> OrderKey:
        return OrderKey(self.tenant, self.owner, self.order_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendRequest(OrderRequest):
    """Move the expiry of the caller's reservations of an order to `ttl_seconds` from now."""

    ttl_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RetakeRequest(OrderRequest):
    """Confirm the caller's reservations of an order, and reserve the units of the expired ones again.

    With `order_version`, events of the order with lower versions no longer change its reservations. Only order-api may
    set it.
    """

    order_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRequest(OrderRequest):
    """Reserve more units for an order of order-api, for a change that gives it this version.

    `ordered` are the units that the lines of the order ordered before the change, by product.
    """

    version: int
    change_id: str
    is_confirmed: bool
    lines: tuple[Line, ...]
    ordered: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class SettleRequest:
    """Release the reservations of cancelled orders, and fulfil those of shipped orders. No order is there twice.

    Each order has a caller of its tenant.
    """

    cancelled: tuple["SettledOrder", ...]
    shipped: tuple["SettledOrder", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledOrder(OrderRequest):
    """An order with a final status, and the version of the order with this status, or None if that is unknown."""

    version: int | None = None

    @property
    def cause(self) -> Cause:
        """The cause of the events. With the version, order-api knows that the order itself caused them."""
        return Cause(self.traceparent, self.caller.actor, self.version)


@dataclass(frozen=True, slots=True)
class ReleaseRequest(Command):
    """Release one reservation."""

    reservation_id: str

    @property
    def reservation_key(self) -> ReservationKey:
        return ReservationKey(self.tenant, self.reservation_id)


@dataclass(frozen=True, slots=True)
class StockQuestion:
    """Count the available units under a stock key."""

    key: StockKey

    @property
    def tenant(self) -> str:
        return self.key.tenant

    @property
    def product(self) -> ProductKey:
        return self.key.product


@dataclass(frozen=True, slots=True)
class PastItemQuestion:
    """Read the quantity that an item had at the time `as_of`."""

    key: ItemKey
    as_of: datetime

    @property
    def tenant(self) -> str:
        return self.key.tenant


@dataclass(frozen=True, slots=True)
class AvailabilityQuestion:
    """Read the stock of these products of a tenant. They are distinct."""

    tenant: str
    product_ids: tuple[int, ...]
    by_location: bool


@dataclass(frozen=True, slots=True)
class LocationFilter:
    """Matches all locations of a tenant."""

    tenant: str = field(repr=False)  # as in ItemFilter


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """A filter for the items of a tenant. A field that is None matches any value.

    With `as_of`, it matches the items that had a movement until this time.
    """

    tenant: str = field(repr=False)  # page tokens contain a digest of the repr, and of the tenant
    product_id: int | None = None
    location: str | None = None
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class MovementFilter:
    """A filter for the movements of a tenant. A field that is None matches any value.

    `created_after` is inclusive, `created_before` exclusive.
    """

    tenant: str = field(repr=False)  # as in ItemFilter
    product_id: int | None = None
    location: str | None = None
    order_id: str | None = None
    kind: MovementKind | None = None
    actor: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReservationFilter:
    """A filter for the reservations of a tenant. A field that is None matches any value.

    Due reservations match the state EXPIRED.
    """

    tenant: str = field(repr=False)  # as in ItemFilter
    order_id: str | None = None
    product_id: int | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class ExpireRequest(Command):
    """Expire at most `max_count` due reservations, of all tenants."""

    max_count: int


@dataclass(frozen=True, slots=True)
class PurgeRequest(Command):
    """Delete idempotency keys and ended reservations that are older than this age, at most `max_count` of each."""

    older_than_seconds: float
    max_count: int


@dataclass(frozen=True, slots=True)
class VerifyRequest(Command):
    """Verify at most `max_count` items of all tenants with ids above `after_item_id`. With `repair`, repair them."""

    after_item_id: int
    max_count: int
    repair: bool = False
