"""Divides work on many reservations into turns. Each turn is one transaction. Other requests run between two turns."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from inventory_api.domain.commands import OrderRequest
from inventory_api.domain.model import OrderKey, ReservationKey, State
from inventory_api.store.reservations import by_order, locks
from inventory_api.store.reservations.locks import Locked
from shop_common.api.command import Cause
from shop_common.batching.turns import slices
from shop_common.db.audit import AuditLog, event_entry

TURN_RESERVATIONS = 100
"""The most reservations of one turn. Requests for the same items wait until the turn has committed."""

TURN_ALLOCATIONS = 2000
"""The most allocations of one turn. A turn with a single reservation may have more."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Locked reservations, the causes of their changes by reservation id, and whether there may be more of them."""

    locked: Locked
    causes: dict[str, Cause]
    event_ids: dict[OrderKey, str]
    """The event that reports the status change of each order."""
    has_more: bool

    def record(self, tx: Connection, audit_log: AuditLog | None, event_type: str, changes: Collection[str]) -> None:
        """Write a row of the audit log for each order whose reservations have changed. `changes` are their ids."""
        if audit_log is None:
            return
        changed: dict[OrderKey, list[str]] = {}
        for reservation_id in changes:
            reservation = self.locked.reservations[reservation_id]
            key = OrderKey(reservation.tenant, reservation.owner, reservation.order_id)
            changed.setdefault(key, []).append(reservation_id)
        audit_log.append(
            tx,
            [event_entry(event_type, key.tenant, self.event_ids[key], ids) for key, ids in changed.items()],
        )


def lock_turn(tx: Connection, orders: Sequence[OrderRequest], states: Sequence[State]) -> Turn:
    """Lock reservations of these orders that are in one of the states, as many as one turn may change.

    Another transaction may have changed a reservation before the lock, so a locked reservation may be in a different
    state.
    """
    causes = {order.order_key: order.cause for order in orders}
    candidates = by_order.in_states(tx, causes, states, TURN_RESERVATIONS + 1)
    turn = next(slices(candidates, lambda each: each.allocations, TURN_ALLOCATIONS, count_max=TURN_RESERVATIONS), ())
    return Turn(
        locks.lock(tx, (ReservationKey(each.order.tenant, each.id) for each in turn)),
        {each.id: causes[each.order] for each in turn},
        {order.order_key: order.request_id or "" for order in orders},
        has_more=len(candidates) > len(turn),
    )
