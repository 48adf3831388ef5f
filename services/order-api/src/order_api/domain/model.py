"""The values of orders: an order, its lines, its statuses, and the legal status changes."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

LINES_MAX = 200
"""The maximum number of lines in an order."""

LINE_QUANTITY_MAX = 1_000_000_000
"""The maximum number of units that a line orders."""

SHIPMENTS_MAX = 100
"""The maximum number of shipments of an order."""

RETURN_ITEMS_MAX = 500
"""The maximum number of items in all returns of an order. It bounds the events, which have the sums of all returns."""

COUNTED_ORDERS_MAX = 500
"""The maximum number of open orders of a buyer whose units can be counted for a limit per buyer. It is also the number
of the newest SHIPPED orders that count, and of the newest DELIVERED ones.
"""

CHARGES_MAX = 16
LABELS_MAX = 16
"""The maximum number of charges and of labels of an order."""


class Status(StrEnum):
    """The status of an order. docs/states.md draws the changes."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    PROCESSING = "PROCESSING"
    SHIPPED = "SHIPPED"
    DELIVERED = "DELIVERED"
    CANCELLED = "CANCELLED"


LEGAL_CHANGES: dict[Status, tuple[Status, ...]] = {
    Status.PENDING: (Status.CONFIRMED, Status.CANCELLED),
    Status.CONFIRMED: (Status.PROCESSING, Status.CANCELLED),
    Status.PROCESSING: (Status.SHIPPED, Status.CANCELLED),
    Status.SHIPPED: (Status.DELIVERED,),
    Status.DELIVERED: (),
    Status.CANCELLED: (),
}

CANCELLABLE = frozenset(status for status, changes in LEGAL_CHANGES.items() if Status.CANCELLED in changes)


class ChargeKind(StrEnum):
    """The kind of a charge. A DISCOUNT reduces the total of its order, and every other charge adds to it."""

    SHIPPING = "SHIPPING"
    DISCOUNT = "DISCOUNT"
    TAX = "TAX"
    FEE = "FEE"


class Treatment(StrEnum):
    """What happens to returned units.

    They are added to the stock of a location, for sale or withheld from sale, or they are not added.
    """

    RESTOCK = "RESTOCK"
    DISCARD = "DISCARD"
    WITHHOLD = "WITHHOLD"


class OrderKey(NamedTuple):
    """The tenant and the id of an order. No two tenants have orders with the same id."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class OrderItem:
    """A line of an order. `price` is per unit, in the order's currency.

    Only the numbers of units change, and they never decrease: the ordered units, and those that calls about single
    units have shipped, cancelled and returned. See domain/units.py for the units of an order that was shipped or
    cancelled as a whole.

    `location` is the only one from which the line's stock may come. It is empty if the line named none.
    """

    id: int
    product_id: int
    quantity: int
    price: Decimal
    location: str = ""
    shipped: int = 0
    cancelled: int = 0
    returned: int = 0


@dataclass(frozen=True, slots=True)
class Shipment:
    """Units of an order that were shipped together. `units` are pairs of the id of a line and its units."""

    id: str
    carrier: str
    tracking_number: str
    units: tuple[tuple[int, int], ...]
    created_at: datetime


class ReturnedUnits(NamedTuple):
    """Units of a line that came back.

    `location` is where they are added to the stock, or empty if they are discarded. `withholding_reason` is empty
    unless they are withheld.
    """

    item_id: int
    quantity: int
    treatment: Treatment
    location: str = ""
    withholding_reason: str = ""

    @property
    def place(self) -> tuple[str, ...]:
        """The location, and if the units are withheld also the reason, for stored values and fingerprints.

        A process that does not know withheld returns can read the values of other returns.
        """
        return (self.location, self.withholding_reason) if self.withholding_reason else (self.location,)


@dataclass(frozen=True, slots=True)
class Return:
    """Units of an order that came back together."""

    id: str
    reason: str
    units: tuple[ReturnedUnits, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount besides the lines, in the order's currency. It is never negative, not even for a discount."""

    kind: ChargeKind
    label: str
    amount: Decimal


Labels = tuple[tuple[str, str], ...]
"""Pairs of name and value, sorted by name. No two pairs have the same name."""


@dataclass(frozen=True, slots=True)
class Order:
    """A stored order. `items` are in the order of the request.

    `shipments` are those by CreateShipment, and `returns` those by CreateReturn, the oldest first. Both are empty in
    lists of orders.

    `created_by` is the actor of the call that created it. It is empty if the actor is unknown.
    """

    tenant: str
    id: str
    user_id: int
    total_amount: Decimal
    currency: str
    status: Status
    status_reason: str
    reserved_until: datetime
    version: int
    created_at: datetime
    updated_at: datetime
    items: tuple[OrderItem, ...]
    created_by: str = ""
    external_reference: str = ""
    charges: tuple[Charge, ...] = ()
    labels: Labels = ()
    shipments: tuple[Shipment, ...] = ()
    returns: tuple[Return, ...] = ()

    @property
    def key(self) -> OrderKey:
        return OrderKey(self.tenant, self.id)


@dataclass(frozen=True, slots=True)
class NewItem:
    """A line of an order to create. `price` is per unit. With a `location`, the stock comes only from there.

    `buyer_limit` is the most units of the product that the buyer may have, or 0 if there is no limit.
    """

    product_id: int
    quantity: int
    price: Decimal
    location: str = ""
    buyer_limit: int = 0


@dataclass(frozen=True, slots=True)
class NewDetails:
    """The optional parts of an order to create."""

    charges: tuple[Charge, ...] = ()
    external_reference: str = ""
    labels: Labels = ()

    def content(self) -> tuple[object, ...]:
        """Return the content that a repeated request must share with the first one."""
        charges = [(each.kind.value, each.label, str(each.amount)) for each in self.charges]
        return (charges, self.external_reference, self.labels)


NO_DETAILS = NewDetails()


class VersionedStatus(NamedTuple):
    """The status of an order, and the version of the order with this status."""

    status: Status
    version: int


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A change of an order's status, as `version` of the order. `actor` is empty if it is unknown."""

    version: int
    status: Status
    time: datetime
    reason: str
    actor: str


class OrderHistory(NamedTuple):
    """An order, and the changes of its status, the oldest first."""

    order: Order
    changes: tuple[StatusChange, ...]


def history(order: Order, recorded: Iterable[StatusChange]) -> OrderHistory:
    """Return an order with its history. `recorded` are its stored changes of status after the creation, by version.

    A release without history recorded no changes. Only the latest of them is known, from the order itself.
    """
    changes = [StatusChange(1, Status.PENDING, order.created_at, "", order.created_by), *recorded]
    if changes[-1].status is not order.status:
        changes.append(StatusChange(order.version, order.status, order.updated_at, order.status_reason, ""))
    return OrderHistory(order, tuple(changes))


@dataclass(frozen=True, slots=True)
class OrderReservation:
    """The stock that inventory-api reserved for an order.

    `units` are the units that are still reserved, by product. `seconds` is the shortest time from the creation of a
    reservation to its expiry, or None if no reservation expires. It is a duration, because the clocks of two databases
    differ.
    """

    reservation_ids: tuple[str, ...]
    units: dict[int, int]
    seconds: float | None


def quantities(items: Iterable[NewItem | OrderItem]) -> dict[int, int]:
    """Return the units of each product, summed over all lines."""
    units: dict[int, int] = {}
    for item in items:
        units[item.product_id] = units.get(item.product_id, 0) + item.quantity
    return units
