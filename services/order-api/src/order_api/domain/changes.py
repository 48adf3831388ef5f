"""Decides how ChangeOrder changes an order. Needs no database.

No line is ever deleted, and the ordered units of a line never become fewer: units that a change takes away count as
cancelled. So the targets of every later event have all products that the order ever had (ADR 0025).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Self

from order_api.domain import units
from order_api.domain.buyer_limits import Purchase
from order_api.domain.commands import ChangeLines
from order_api.domain.errors import OrderItemNotFound, OrderNotChangeable, UnitsNotOpen, VersionMismatch
from order_api.domain.model import (
    CANCELLABLE,
    LINE_QUANTITY_MAX,
    LINES_MAX,
    Charge,
    ChargeKind,
    NewItem,
    Order,
    OrderItem,
)
from shop_common.api import money
from shop_common.errors import InvalidInput, ShopError, Violation


@dataclass(frozen=True, slots=True)
class AddedUnits:
    """Units that must be reserved before the order is changed, at the location if there is one."""

    product_id: int
    quantity: int
    location: str


@dataclass(frozen=True, slots=True)
class Change:
    """The result of a change: the order without its new lines, the new lines, and the units to reserve."""

    order: Order
    new_items: tuple[NewItem, ...]
    added: tuple[AddedUnits, ...]


@dataclass(frozen=True, slots=True)
class BegunChange:
    """A change that has begun. `change_id` is None if inventory-api need not be called.

    Otherwise `version` is the version that the order will have after the change, `added` are the units to reserve, and
    `ordered` are the ordered units of each product before the change. `purchase` is None if no added unit has a limit
    per buyer.
    """

    change_id: str | None = None
    version: int = 0
    is_confirmed: bool = False
    added: tuple[AddedUnits, ...] = ()
    ordered: Mapping[int, int] | None = None
    purchase: Purchase | None = None


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """A change that has begun, and the response of inventory-api: None if it reserved the units or was not called."""

    command: ChangeLines
    begun: BegunChange
    refusal: ShopError | None = None

    def folded(self, calls: int) -> Self:
        """Return a copy of this result that stands for `calls` equal calls."""
        return replace(self, command=self.command.folded(calls))

    @property
    def tenant(self) -> str:
        return self.command.tenant


def decide(order: Order, command: ChangeLines) -> Change | ShopError:
    """Decide a change, on the order that the caller has locked. Whether its stock can be reserved is not known yet."""
    if order.status not in CANCELLABLE:
        return OrderNotChangeable(order.id, order.status)
    if order.version != command.version:
        return VersionMismatch(order.id, command.version, order.version)
    if len(order.items) + len(command.new_items) > LINES_MAX:
        return _invalid("new_items", f"must not make the order longer than {LINES_MAX} lines")
    if command.currency not in (None, order.currency):
        field = "new_items[0].price.currency_code" if command.new_items else "charges.charges[0].amount.currency_code"
        return _invalid(field, f"must be that of the order: {order.currency}")
    lines = _changed_lines(order, command)
    if isinstance(lines, ShopError):
        return lines
    items, added = lines
    charges = order.charges if command.charges is None else command.charges
    changed = replace(order, items=items, charges=charges)
    total = _total(changed, command.new_items)
    if isinstance(total, ShopError):
        return total
    changed = replace(changed, total_amount=total)
    return Change(changed if command.new_items else units.settled(changed), command.new_items, added)


def _changed_lines(
    order: Order, command: ChangeLines
) -> tuple[tuple[OrderItem, ...], tuple[AddedUnits, ...]] | ShopError:
    """Return the lines of the order after the change, without the new ones, and all units that it adds."""
    items = {item.id: item for item in order.items}
    added = [AddedUnits(new.product_id, new.quantity, new.location) for new in command.new_items]
    taken_products: set[int] = set()
    for index, (item_id, quantity) in enumerate(command.quantities):
        item = items.get(item_id)
        if item is None:
            return OrderItemNotFound(order.id, item_id)
        more = quantity - units.kept(order, item)
        if more > 0:
            if item.quantity + more > LINE_QUANTITY_MAX:
                return _invalid(f"items[{index}].quantity", f"a line orders at most {LINE_QUANTITY_MAX} units in all")
            items[item_id] = replace(item, quantity=item.quantity + more)
            added.append(AddedUnits(item.product_id, more, item.location))
        elif more < 0:
            open_units = units.kept(order, item) - units.shipped(order, item)
            if -more > open_units:
                return UnitsNotOpen(order.id, item_id, -more, open_units)
            items[item_id] = replace(item, cancelled=item.cancelled - more)
            taken_products.add(item.product_id)
    if taken_products & {each.product_id for each in added}:
        # The targets of an event count units by product, not by line. So inventory-api could release the added units
        # instead.
        return _invalid("items", "must not take away units of a product of which the call adds units; make two calls")
    return tuple(items.values()), tuple(added)


def _total(order: Order, new_items: tuple[NewItem, ...]) -> Decimal | ShopError:
    lines = [(item.price, item.quantity - item.cancelled) for item in order.items]
    lines += [(item.price, item.quantity) for item in new_items]
    if money.total(lines) > money.UNITS_MAX:
        return _invalid("items", f"the lines must add up to at most {money.UNITS_MAX} units of their currency")
    total = money.total([*lines, *map(signed, order.charges)])
    if total < 0:
        return _invalid("charges", "must not have discounts above the sum of the lines and the other charges")
    if total > money.UNITS_MAX:
        return _invalid("charges", f"must not make the total more than {money.UNITS_MAX} units of its currency")
    return total


def signed(charge: Charge) -> tuple[Decimal, int]:
    """Return the amount of a charge, and the factor with which it counts in the total."""
    return charge.amount, -1 if charge.kind is ChargeKind.DISCOUNT else 1


def added_units(change: Change) -> dict[int, int]:
    """Return the units of each product that the change adds."""
    total: dict[int, int] = {}
    for each in change.added:
        total[each.product_id] = total.get(each.product_id, 0) + each.quantity
    return total


def with_new_items(order: Order, added: tuple[OrderItem, ...]) -> Order:
    """Return the order with lines that were stored."""
    return replace(order, items=(*order.items, *added))


def _invalid(field: str, description: str) -> InvalidInput:
    return InvalidInput([Violation(field, description)])
