"""Divides work on many reservations into turns. Each turn is one transaction. Other requests run between two turns."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from inventory_api.domain.commands import OrderRequest
from inventory_api.domain.model import ReservationKey, State
from inventory_api.store.reservations import by_order, locks
from inventory_api.store.reservations.locks import Locked
from shop_common.batching.turns import slices

TURN_RESERVATIONS = 100
"""The most reservations of one turn. Requests for the same items wait until the turn has committed."""

TURN_ALLOCATIONS = 2000
"""The most allocations of one turn. A turn with a single reservation may have more."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Locked reservations, their traceparents by reservation id, and whether there may be more for another turn."""

    locked: Locked
    traceparents: dict[str, str | None]
    has_more: bool


def lock_turn(tx: Connection, orders: Sequence[OrderRequest], states: Sequence[State]) -> Turn:
    """Lock reservations of these orders that are in one of the states, as many as one turn may change.

    Another transaction may have changed a reservation before the lock, so a locked reservation may be in a different
    state.
    """
    traceparents = {order.order_key: order.traceparent for order in orders}
    candidates = by_order.in_states(tx, traceparents, states, TURN_RESERVATIONS + 1)
    turn = next(slices(candidates, lambda each: each.allocations, TURN_ALLOCATIONS, count_max=TURN_RESERVATIONS), ())
    return Turn(
        locks.lock(tx, (ReservationKey(each.order.tenant, each.id) for each in turn)),
        {each.id: traceparents[each.order] for each in turn},
        has_more=len(candidates) > len(turn),
    )
