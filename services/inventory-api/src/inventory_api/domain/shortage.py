"""Computes how many units are missing, and which due reservations cover them. Needs no database.

A shortage is the number of missing units by stock key. Units that must come from one location are counted under the key
with that location. Units that may come from any location are counted under the key with location None.
"""

from collections.abc import Mapping, Sequence

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import Item, ProductKey, Reservation, StockKey
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
    products = {ProductKey(order.tenant, line.product_id) for order, _ in refused for line in order.lines}
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
        shortage[key] = max(shortage.get(key, 0), refusal.requested - refusal.available)
    return {key: units for key, units in shortage.items() if units}


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
