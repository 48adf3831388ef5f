"""Counts the units of an order's lines, and decides shipments, cancellations and returns. Needs no database.

Units are ordered, then shipped or cancelled. Cancelled units become open again only if the whole order is reinstated.
Shipped units may come back, and still count as shipped. A line stores how many were shipped, cancelled and returned by
calls about units. A status that concerns the whole order counts for all lines, and is not stored per line: all units of
a CANCELLED order are cancelled, and all others of a SHIPPED or DELIVERED order are shipped. The total of an order does
not change when units are cancelled or come back, but a change of the order (changes.py) computes it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from order_api.domain.commands import CancelItems, ReturnItems, ShipItems
from order_api.domain.errors import (
    IllegalTransition,
    OrderItemNotFound,
    ReturnsLimit,
    ShipmentsLimit,
    UnitsNotOpen,
    UnitsNotReturnable,
)
from order_api.domain.model import (
    CANCELLABLE,
    LEGAL_CHANGES,
    RETURN_ITEMS_MAX,
    SHIPMENTS_MAX,
    Order,
    OrderItem,
    Status,
    Treatment,
)
from shop_common.errors import ShopError

_SHIPPED = (Status.SHIPPED, Status.DELIVERED)


class Target(NamedTuple):
    """Units of a product since the order was created. The kept units include the shipped ones."""

    kept: int
    shipped: int


@dataclass(frozen=True, slots=True)
class UnitsChange:
    """An order after some units were shipped, cancelled or returned, and these units, by the id of their line."""

    order: Order
    units: Mapping[int, int]


def kept(order: Order, item: OrderItem) -> int:
    """Return the units of the line that are not cancelled, shipped units included."""
    return 0 if order.status is Status.CANCELLED else item.quantity - item.cancelled


def shipped(order: Order, item: OrderItem) -> int:
    """Return the units of the line that have been shipped."""
    return kept(order, item) if order.status in _SHIPPED else item.shipped


def has_shipped(order: Order) -> bool:
    """Return whether any unit of the order has been shipped."""
    return order.status in _SHIPPED or any(item.shipped for item in order.items)


def targets(order: Order) -> dict[int, Target]:
    """Return the kept and the shipped units of each product, summed over the lines."""
    totals: dict[int, Target] = {}
    for item in order.items:
        before = totals.get(item.product_id, _NONE)
        totals[item.product_id] = Target(before.kept + kept(order, item), before.shipped + shipped(order, item))
    return totals


_NONE = Target(0, 0)


def returned(order: Order) -> dict[int, dict[tuple[Treatment, str, str], int]]:
    """Return the returned units of each product that has any, by treatment, location and reason of the withholding."""
    if not order.returns:
        return {}  # most orders
    products = {item.id: item.product_id for item in order.items}
    totals: dict[int, dict[tuple[Treatment, str, str], int]] = {}
    for each in order.returns:
        for units in each.units:
            of_product = totals.setdefault(products[units.item_id], {})
            key = (units.treatment, units.location, units.withholding_reason)
            of_product[key] = of_product.get(key, 0) + units.quantity
    return totals


def kept_units(order: Order) -> dict[int, int]:
    """Return the units of each product that are not cancelled."""
    return {product_id: target.kept for product_id, target in targets(order).items()}


def uncancelled_units(order: Order) -> dict[int, int]:
    """Return the units of each product that no call about units has cancelled, also for a CANCELLED order."""
    return kept_units(replace(order, status=Status.CONFIRMED))


def legal_changes(order: Order) -> tuple[Status, ...]:
    """Return the statuses to which the order may change. An order with a shipment cannot be cancelled as a whole."""
    legal = LEGAL_CHANGES[order.status]
    return tuple(status for status in legal if status is not Status.CANCELLED) if has_shipped(order) else legal


def ship(order: Order, command: ShipItems) -> UnitsChange | ShopError:
    """Decide a shipment of some units, or of all open units if the command names none.

    The order stays PROCESSING while any unit is open, and is SHIPPED otherwise.
    """
    if order.status is not Status.PROCESSING:
        return IllegalTransition(order.id, order.status, Status.SHIPPED, legal_changes(order))
    if len(order.shipments) >= SHIPMENTS_MAX:
        return ShipmentsLimit(order.id)
    units = dict(command.units) or {item.id: units for item in order.items if (units := _open(order, item))}
    refusal = _refusal(order, units)
    if refusal is not None:
        return refusal
    items = tuple(replace(item, shipped=item.shipped + units.get(item.id, 0)) for item in order.items)
    return UnitsChange(settled(replace(order, items=items)), units)


def cancel(order: Order, command: CancelItems) -> UnitsChange | ShopError:
    """Decide a cancellation of some units. See `cancel_units` for the status of the order."""
    if order.status not in CANCELLABLE:
        return IllegalTransition(order.id, order.status, Status.CANCELLED, legal_changes(order))
    units = dict(command.units)
    return _refusal(order, units) or cancel_units(order, units)


def cancel_product(order: Order, product_id: int) -> UnitsChange:
    """Cancel the open units of a product, whose stock is lost. The result names no units if there are none."""
    units = {item.id: units for item in order.items if item.product_id == product_id and (units := _open(order, item))}
    return cancel_units(order, units)


def cancel_units(order: Order, units: Mapping[int, int]) -> UnitsChange:
    """Cancel open units.

    The order keeps its status while any unit is open. Otherwise it is SHIPPED if any unit has been shipped, and else
    CANCELLED.
    """
    items = tuple(replace(item, cancelled=item.cancelled + units.get(item.id, 0)) for item in order.items)
    return UnitsChange(settled(replace(order, items=items)), units)


def take_back(order: Order, command: ReturnItems) -> UnitsChange | ShopError:
    """Decide a return of shipped units. The order keeps its status, whatever it is."""
    if sum(len(each.units) for each in order.returns) + len(command.units) > RETURN_ITEMS_MAX:
        return ReturnsLimit(order.id)
    units: dict[int, int] = {}
    for each in command.units:
        units[each.item_id] = units.get(each.item_id, 0) + each.quantity
    items = {item.id: item for item in order.items}
    for item_id, count in units.items():
        if item_id not in items:
            return OrderItemNotFound(order.id, item_id)
        returnable = shipped(order, items[item_id]) - items[item_id].returned
        if count > returnable:
            return UnitsNotReturnable(order.id, item_id, count, returnable)
    changed = tuple(replace(item, returned=item.returned + units.get(item.id, 0)) for item in order.items)
    return UnitsChange(replace(order, items=changed), units)


def _open(order: Order, item: OrderItem) -> int:
    return kept(order, item) - shipped(order, item)


def _refusal(order: Order, units: Mapping[int, int]) -> OrderItemNotFound | UnitsNotOpen | None:
    items = {item.id: item for item in order.items}
    for item_id, count in units.items():
        if item_id not in items:
            return OrderItemNotFound(order.id, item_id)
        if count > _open(order, items[item_id]):
            return UnitsNotOpen(order.id, item_id, count, _open(order, items[item_id]))
    return None


def settled(order: Order) -> Order:
    """Return the order as SHIPPED or CANCELLED if no unit is open any more."""
    if any(_open(order, item) for item in order.items):
        return order
    return replace(order, status=Status.SHIPPED if has_shipped(order) else Status.CANCELLED)
