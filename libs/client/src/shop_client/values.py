"""The values that calls take and return. Amounts are Decimal, and times are datetime with UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum


class ReservationState(StrEnum):
    """The state of a reservation. UNKNOWN is a state of a newer server."""

    HELD = "HELD"
    CONFIRMED = "CONFIRMED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"
    FULFILLED = "FULFILLED"
    REPLACED = "REPLACED"
    UNKNOWN = "UNKNOWN"


class MovementKind(StrEnum):
    """Why the quantity of an item changed. UNKNOWN is a kind of a newer server."""

    RECEIVED = "RECEIVED"
    ADJUSTED = "ADJUSTED"
    COUNTED = "COUNTED"
    FULFILLED = "FULFILLED"
    RETURNED = "RETURNED"
    MOVED = "MOVED"
    WITHHELD = "WITHHELD"
    UNKNOWN = "UNKNOWN"


class OrderStatus(StrEnum):
    """The status of an order. UNKNOWN is a status of a newer server."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    PROCESSING = "PROCESSING"
    SHIPPED = "SHIPPED"
    DELIVERED = "DELIVERED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"


class ReturnTreatment(StrEnum):
    """What happens to returned units: they can be sold again, or not, or they are in stock but withheld from sale.

    UNKNOWN is a treatment of a newer server.
    """

    RESTOCK = "RESTOCK"
    DISCARD = "DISCARD"
    WITHHOLD = "WITHHOLD"
    UNKNOWN = "UNKNOWN"


class RedriveOutcome(StrEnum):
    """What became of a dead letter. UNKNOWN is an outcome of a newer server."""

    REDRIVEN = "REDRIVEN"
    """The event is on its way to its topic. If it cannot be handled again, it becomes a new dead letter."""
    ALREADY_REDRIVEN = "ALREADY_REDRIVEN"
    """The letter was redriven before, and was not sent again."""
    NOT_FOUND = "NOT_FOUND"
    """There is no such letter in the caller's tenant."""
    NOT_REDRIVABLE = "NOT_REDRIVABLE"
    """Only the command `dlq redrive` can redrive the letter: it has only a part of the event, or is not text, or too
    many letters of its partition were redriven one by one."""
    UNKNOWN = "UNKNOWN"


class ChargeKind(StrEnum):
    """Why a charge adds to the total of an order. A DISCOUNT reduces the total. UNKNOWN is a kind of a newer server."""

    SHIPPING = "SHIPPING"
    DISCOUNT = "DISCOUNT"
    TAX = "TAX"
    FEE = "FEE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Item:
    """The stock of one product at one location."""

    id: int
    product_id: int
    location: str
    quantity: int
    """Units in stock, reserved and withheld ones included."""
    reserved_quantity: int
    available_quantity: int
    """Units that can be reserved now."""
    version: int
    """Grows with every change of `quantity` or `withheld_quantity`."""
    created_at: datetime
    updated_at: datetime
    withheld_quantity: int
    """Units that are in stock but not for sale."""
    withholdings: Mapping[str, int]
    """The withheld units by reason. Only in the items of `get_item` and `list_items`."""


@dataclass(frozen=True, slots=True)
class Stock:
    """The response of `check_stock`."""

    is_available: bool
    """Whether the required quantity could be reserved now."""
    available_quantity: int


@dataclass(frozen=True, slots=True)
class LocationAvailability:
    """The stock of a product at one location."""

    location: str
    available_quantity: int
    """Units that can be reserved; 0 at an inactive location."""
    reserved_quantity: int
    withheld_quantity: int


@dataclass(frozen=True, slots=True)
class Availability:
    """The stock of a product at all locations together, at the time `read_at`."""

    product_id: int
    available_quantity: int
    """Units that can be reserved."""
    reserved_quantity: int
    withheld_quantity: int
    next_release_at: datetime | None
    """The earliest expiry of a HELD reservation; None if there is none."""
    locations: tuple[LocationAvailability, ...]
    """Sorted by location; empty unless the call has `by_location`."""
    read_at: datetime


@dataclass(frozen=True, slots=True)
class Location:
    """The properties of a location. Nothing is reserved at a location that is not active."""

    location: str
    is_active: bool
    priority: int
    region: str
    labels: Mapping[str, str]
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Allocation:
    """The part of a reservation that comes from one item."""

    item_id: int
    location: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units of one product that are reserved for one order."""

    id: str
    product_id: int
    quantity: int
    order_id: str
    state: ReservationState
    created_at: datetime
    expires_at: datetime | None
    """When the reservation expires; None after it was confirmed."""
    allocations: tuple[Allocation, ...]


class AllocationStrategy(StrEnum):
    """The order in which locations give their units: as few locations as possible, by priority, or as given."""

    FEWEST = "FEWEST"
    PRIORITY = "PRIORITY"
    AS_GIVEN = "AS_GIVEN"


@dataclass(frozen=True, slots=True)
class AllocationPolicy:
    """How the server chooses the locations of a line: only `locations`, if there are any, and no excluded ones."""

    strategy: AllocationStrategy = AllocationStrategy.FEWEST
    locations: tuple[str, ...] = ()
    excluded_locations: tuple[str, ...] = ()
    max_locations: int | None = None


@dataclass(frozen=True, slots=True)
class Movement:
    """A change of the quantity of one item, or of its withheld units.

    The quantities of all movements of an item add up to its quantity, and their withheld units to its withheld ones.
    """

    item_id: int
    product_id: int
    location: str
    revision: int
    """The number of the movement among those of the item, without gaps."""
    kind: MovementKind
    quantity: int
    """The change; negative if units left the item."""
    quantity_after: int
    order_id: str
    reason: str
    reference: str
    actor: str
    occurred_at: datetime | None
    """When the change happened, as the caller stated it."""
    created_at: datetime
    withheld: int
    """The change of the withheld units; negative if units were given back."""
    withheld_after: int


@dataclass(frozen=True, slots=True)
class StockChange:
    """A change for `batch_change_stock`. Set exactly one of `received`, `adjusted`, `counted`, `moved` and `withheld`.

    `received` is the number of added units, `adjusted` the difference, `counted` the new quantity, and `moved` the
    number of units that were moved to `to_location`, which only a move has. `withheld` is the number of units that are
    not for sale, or if negative, that are for sale again; `reason` is then a word such as DAMAGED. With `version`, the
    change is made only if the item still has this version. `occurred_at` needs a time zone.

    With `release_shortfall`, a count or an adjustment that leaves too few units for the reservations is not refused:
    the newest reservations are released, held ones first, and their orders are cancelled. If those that may be released
    do not suffice, none is, and the change is refused.
    """

    product_id: int
    location: str | None = None
    received: int | None = None
    adjusted: int | None = None
    counted: int | None = None
    moved: int | None = None
    to_location: str | None = None
    version: int | None = None
    reason: str = ""
    reference: str = ""
    occurred_at: datetime | None = None
    withheld: int | None = None
    release_shortfall: bool = False


@dataclass(frozen=True, slots=True)
class PastItem:
    """The stock of one product at one location, at an earlier time."""

    id: int
    product_id: int
    location: str
    quantity: int
    created_at: datetime
    withheld_quantity: int


@dataclass(frozen=True, slots=True)
class ChangedStock:
    """A change that was made: the item, and after a move also the item to which the units were moved."""

    item: Item
    target: Item | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Units of a product to reserve, from `location` or, without one, from any location that `policy` allows."""

    product_id: int
    quantity: int
    location: str | None = None
    policy: AllocationPolicy | None = None


@dataclass(frozen=True, slots=True)
class OrderLines:
    """The lines of one order for `batch_reserve`. Either all of them are reserved, or none.

    With `allow_partial`, what is available is reserved; compare the quantities of the reservations with those of the
    lines. Without a `request_id`, the client makes one. `ttl_seconds` is the time for which the stock stays reserved;
    None is the server's default.
    """

    order_id: str
    lines: tuple[Line, ...]
    ttl_seconds: float | None = None
    request_id: str | None = None
    allow_partial: bool = False


@dataclass(frozen=True, slots=True)
class NewItem:
    """A line of an order to create, or to add. `price` is the price of one unit, with at most nine decimals.

    With a `location`, the units are reserved only there. With a `buyer_limit`, the order is refused if its buyer would
    have more units of the product than that, together with all earlier orders that are not cancelled.
    """

    product_id: int
    quantity: int
    price: Decimal
    location: str | None = None
    buyer_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount that adds to the total of an order. A DISCOUNT reduces the total; its amount is positive, too."""

    kind: ChargeKind
    amount: Decimal
    label: str = ""
    """A name for people."""


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order for `batch_create_orders`. Without a `request_id`, the client makes one.

    `ttl_seconds` is the time for which the stock stays reserved; None is the server's default.
    """

    user_id: int
    items: tuple[NewItem, ...]
    currency: str
    ttl_seconds: float | None = None
    request_id: str | None = None
    charges: tuple[Charge, ...] = ()
    external_reference: str = ""
    """A reference of your own, such as the number of a cart. Several orders may have the same reference."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ItemUnits:
    """Units of a line of an order. `item_id` is the id of the line."""

    item_id: int
    quantity: int


@dataclass(frozen=True, slots=True)
class Shipment:
    """Units of an order that were shipped together. `carrier` and `tracking_number` may be empty."""

    id: str
    carrier: str
    tracking_number: str
    items: tuple[ItemUnits, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ReturnedUnits:
    """Units of a line that came back.

    RESTOCK and WITHHOLD need the location to whose stock the units are added. WITHHOLD also needs the reason, such as
    DAMAGED.
    """

    item_id: int
    quantity: int
    treatment: ReturnTreatment
    location: str | None = None
    withholding_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Return:
    """Units of an order that came back together. `reason` may be empty."""

    id: str
    reason: str
    items: tuple[ReturnedUnits, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A change of an order's status. `reason` and `actor` may be empty."""

    status: OrderStatus
    """The status after the change."""
    at: datetime
    reason: str
    actor: str
    """The caller that made the change."""


@dataclass(frozen=True, slots=True)
class OrderItem:
    """A line of an order, and how many of its units have been shipped, cancelled and returned."""

    id: int
    product_id: int
    quantity: int
    price: Decimal
    shipped: int = 0
    cancelled: int = 0
    returned: int = 0
    """Shipped units that came back. They still count as shipped."""
    location: str = ""
    """The location of `NewItem`; empty if it had none."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order. All its amounts are in `currency`."""

    id: str
    user_id: int
    """The buyer; 0 if the buyer was erased."""
    items: tuple[OrderItem, ...]
    total_amount: Decimal
    currency: str
    status: OrderStatus
    status_reason: str
    reserved_until: datetime
    """The time until which the stock of a PENDING order is reserved."""
    version: int
    created_at: datetime
    updated_at: datetime
    shipments: tuple[Shipment, ...] = ()
    """The shipments by `create_shipment`, the oldest first. Empty in the orders of `list_orders`."""
    returns: tuple[Return, ...] = ()
    """The returns by `create_return`, the oldest first. Empty in the orders of `list_orders`."""
    charges: tuple[Charge, ...] = ()
    external_reference: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    history: tuple[StatusChange, ...] = field(default=(), compare=False)
    """The changes of the status, the oldest first; the first one is the creation. Only `get_order` sets it, and it does
    not count when two orders are compared."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose credentials a client uses. `permissions` are sorted."""

    name: str
    tenant: str
    permissions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErasedUser:
    """The result of `erase_user`: how many orders it erased, and which orders of the user are left."""

    erased_orders: int
    has_more: bool
    """Whether more orders can be erased now. If so, call again."""
    has_open_orders: bool
    """Whether the user still has orders that are PENDING, CONFIRMED or PROCESSING. They were not erased."""


@dataclass(frozen=True, slots=True)
class RedrivenLetter:
    """What became of a dead letter, and the id of its event; empty if there is no such letter."""

    outcome: RedriveOutcome
    event_id: str
