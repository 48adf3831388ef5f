"""Decides which orders of a batch get the units that they need. Needs no database."""

from collections.abc import Mapping, Sequence

from inventory_api.domain.allocation import Shelves
from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import ReservationsLimit
from inventory_api.domain.model import (
    ORDER_ALLOCATIONS_MAX,
    Allocation,
    Item,
    OrderKey,
    OrderSize,
    Reservation,
    Shortfall,
)
from shop_common.errors import Contention, Refused

BATCH_ALLOCATIONS_MAX = ORDER_ALLOCATIONS_MAX
"""The most allocations that one transaction makes. A single order never has more."""


class Undecided(Contention):
    """The earlier orders of the batch use up the allocations of one transaction. This order goes to the next batch."""


UNDECIDED = Undecided("the batch has too many allocations; try again")

Decision = dict[int, tuple[Allocation, ...]] | Refused | Contention
"""The allocations of an order by product id, or the error that refuses the order."""


def decide(
    orders: Sequence[OrderLines],
    stock: Mapping[int, Item],
    sizes: Mapping[OrderKey, OrderSize],
    *,
    in_part: bool = False,
) -> list[Decision]:
    """Decide the orders one after another. Each order gets all of its lines or none.

    With `in_part`, an order with `allow_partial` that lacks stock gets the free units of its lines.

    `stock` has all items of the products, by id. `sizes` has the current size of each order. Returns one
    decision per order, in order. If an order would exceed BATCH_ALLOCATIONS_MAX, it and all later orders are UNDECIDED.
    The first order of the batch is always decided.
    """
    shelves = Shelves(stock.values())
    new_sizes = dict(sizes)
    allocations_made = 0
    decisions: list[Decision] = []
    for order in orders:
        try:
            take = shelves.take_free if in_part and order.allow_partial else shelves.take
            taken = take(order.tenant, order.lines)
        except Refused as refusal:
            decisions.append(refusal)
            continue
        allocations = [allocation for of_product in taken.values() for allocation in of_product]
        key = order.order_key
        size = new_sizes[key].plus(len(taken), len(allocations))
        if size.is_too_large:
            shelves.put_back(allocations)
            decisions.append(ReservationsLimit(order.order_id, size.reservations, size.allocations))
        elif allocations_made and allocations_made + len(allocations) > BATCH_ALLOCATIONS_MAX:
            return [*decisions, *[UNDECIDED] * (len(orders) - len(decisions))]
        else:
            new_sizes[key] = size
            allocations_made += len(allocations)
            decisions.append(taken)
    return decisions


def shortfalls(order: OrderLines, reservations: Sequence[Reservation]) -> list[Shortfall]:
    """Return the products of which the order's reservations have fewer units than its lines, in the lines' sequence."""
    requested: dict[int, int] = {}
    for line in order.lines:
        requested[line.product_id] = requested.get(line.product_id, 0) + line.quantity
    reserved = {each.product_id: each.quantity for each in reservations}
    return [
        Shortfall(product_id, quantity, reserved.get(product_id, 0))
        for product_id, quantity in requested.items()
        if reserved.get(product_id, 0) < quantity
    ]
