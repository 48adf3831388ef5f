"""Takes the units of shipped orders out of the stock, for ORDER_SHIPPED."""

from collections.abc import Sequence

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.commands import OrderRequest
from inventory_api.domain.model import State
from inventory_api.operations.reservations import turns
from inventory_api.operations.reservations.state_changes import change_states
from shop_common.db.audit import AuditLog

STATES = (State.CONFIRMED,)
"""The states of the reservations that `fulfil_orders` fulfils."""


def fulfil_orders(tx: Connection, orders: Sequence[OrderRequest], audit_log: AuditLog | None = None) -> bool:
    """Fulfil confirmed reservations of shipped orders, as many as one turn may change.

    A held reservation does not change; it expires later. May be repeated. Returns True if there may be more confirmed
    reservations: the caller then calls this function again in another transaction. Emits one event per reservation,
    STOCK_UPDATED per item, and STOCK_MOVED per allocation.

    With `audit_log`, writes a row there per order whose reservations it changed.
    """
    turn = turns.lock_turn(tx, orders, STATES)
    changes = transitions.fulfil(turn.locked.reservations.values())
    change_states(tx, turn.locked, changes, turn.causes)
    turn.record(tx, audit_log, "ORDER_SHIPPED", changes)
    return turn.has_more
