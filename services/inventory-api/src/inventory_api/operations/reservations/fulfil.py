"""Takes the units of shipped orders out of the stock, for ORDER_SHIPPED."""

from collections.abc import Sequence

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.commands import OrderRequest
from inventory_api.domain.model import State
from inventory_api.operations.reservations import turns
from inventory_api.operations.reservations.state_changes import change_states


def fulfil_orders(tx: Connection, orders: Sequence[OrderRequest]) -> bool:
    """Fulfil confirmed reservations of shipped orders, as many as one turn may change.

    A held reservation does not change; it expires later. May be repeated. Returns True if there may be more confirmed
    reservations: the caller then calls this function again in another transaction. Emits one event per reservation, and
    STOCK_UPDATED per item.
    """
    turn = turns.lock_turn(tx, orders, (State.CONFIRMED,))
    changes = transitions.fulfil(turn.locked.reservations.values())
    change_states(tx, turn.locked, changes, turn.traceparents)
    return turn.has_more
