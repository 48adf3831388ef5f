"""Computes how many units are missing, and which reservations cover them. Needs no database.

A shortage is the number of missing units by stock key. Units that must come from one location are counted under the key
with that location. Units that may come from any location are counted under the key with location None.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import Item, OrderKey, ProductKey, Reservation, ReservationKey, StockKey
from inventory_api.domain.reserving import Decision


def shortage_of_orders(
    orders: Sequence[OrderLines], decisions: Sequence[Decision], stock: Mapping[int, Item]
) -> dict[StockKey, int]:
    """Return the units that the orders need beyond the free ones, for the products of orders that lack stock.

    Counts the units of all orders, not only of refused ones: when the batch is decided again, an earlier order that now
    gets its units may leave too few for a later order. The result is empty if no order lacks stock.
    """
    refused = [
        (order, decision)
        for order, decision in zip(orders, decisions, strict=True)
        if isinstance(decision, InsufficientStock)
    ]
    if not refused:
        return {}
    restricted = _restricted_products(refused, stock)
    products = {ProductKey(order.tenant, line.product_id) for order, _ in refused for line in order.lines} - restricted
    shortage: dict[StockKey, int] = {}
    for order in orders:
        for line in order.lines:
            key = StockKey(order.tenant, line.product_id, line.location)
            if key.product in products:
                shortage[key] = shortage.get(key, 0) + line.quantity
    for item in stock.values():
        free = item.free_quantity
        # Lines that name the location take its free units first. Lines without a location take the remaining units.
        for key in (item.stock_key, StockKey(item.tenant, item.product_id, None)):
            taken = min(free, shortage.get(key, 0))
            if taken:
                shortage[key] -= taken
                free -= taken
    # Free units may be at locations where a refused order cannot use them. So the shortage is at least the number of
    # units that the refused order lacks.
    for order, refusal in refused:
        key = StockKey(order.tenant, refusal.product_id, refusal.location)
        if key.product in products:
            shortage[key] = max(shortage.get(key, 0), refusal.requested - refusal.available)
    shortage |= _at_each_location(orders, refused, restricted, stock)
    return {key: units for key, units in shortage.items() if units}


def _restricted_products(
    refused: Sequence[tuple[OrderLines, InsufficientStock]], stock: Mapping[int, Item]
) -> set[ProductKey]:
    """Return the products with units that some line cannot use although it names no location.

    Either a line of a refused order has a policy, or the product has an item at an inactive location.
    """
    inactive = {item.product for item in stock.values() if not item.is_active}
    return {
        ProductKey(order.tenant, line.product_id)
        for order, _ in refused
        for line in order.lines
        if line.policy is not None or ProductKey(order.tenant, line.product_id) in inactive
    }


def _at_each_location(
    orders: Sequence[OrderLines],
    refused: Sequence[tuple[OrderLines, InsufficientStock]],
    restricted: Collection[ProductKey],
    stock: Mapping[int, Item],
) -> dict[StockKey, int]:
    """Return the shortage of restricted products, at each location from which a refused order may take units.

    Expiring the oldest due reservations of the product could free units that no refused order can use, again and again,
    while all other transactions of the product wait. So each usable location must get as many units as all orders of
    the product need together. One round then frees all units that can help.
    """
    needed: dict[ProductKey, int] = {}
    for order in orders if restricted else ():
        for line in order.lines:
            product = ProductKey(order.tenant, line.product_id)
            needed[product] = needed.get(product, 0) + line.quantity
    shortage: dict[StockKey, int] = {}
    for item in stock.values():
        if item.product not in restricted or not item.is_active:
            continue
        if any(order.tenant == item.tenant and _may_use(order, item) for order, _ in refused):
            shortage[item.stock_key] = max(needed[item.product] - item.free_quantity, 0)
    return shortage


def _may_use(order: OrderLines, item: Item) -> bool:
    return any(
        line.product_id == item.product_id
        and line.location in (None, item.location)
        and (line.policy is None or line.policy.allows(item.location))
        for line in order.lines
    )


def choose_to_cover(shortage: Mapping[StockKey, int], due: Sequence[Reservation]) -> list[Reservation]:
    """Choose due reservations, in the given order. Skips a reservation that would not reduce the remaining shortage."""
    missing = dict(shortage)
    chosen = []
    for reservation in due:
        helps = False
        for part in reservation.allocations:
            units = part.quantity
            for location in (part.location, None):
                key = StockKey(reservation.tenant, reservation.product_id, location)
                covered = min(units, missing.get(key, 0))
                if covered:
                    missing[key] -= covered
                    units -= covered
                    helps = True
        if helps:
            chosen.append(reservation)
    return chosen


@dataclass(frozen=True, slots=True)
class ReservedUnits:
    """The units of one item that a reservation has."""

    reservation: ReservationKey
    order: OrderKey
    units: int


def choose_to_release(
    missing: int, reserved: Iterable[ReservedUnits], unreleasable: Collection[OrderKey]
) -> list[ReservedUnits]:
    """Choose the first reservations that have the missing units together, except those of unreleasable orders.

    Returns an empty list if all of them have fewer units.
    """
    chosen: list[ReservedUnits] = []
    for each in reserved:
        if each.order in unreleasable:
            continue
        chosen.append(each)
        missing -= each.units
        if missing <= 0:
            return chosen
    return []
