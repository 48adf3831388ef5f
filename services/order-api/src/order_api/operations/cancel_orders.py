"""Cancels orders without a request of a user: their stock is lost, or they were not confirmed in time."""

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection

from order_api.domain import units
from order_api.domain.commands import CancelAbandoned
from order_api.domain.model import LINES_MAX, Order, OrderKey, Status
from order_api.domain.transitions import NOT_CONFIRMED_IN_TIME, LostStock
from order_api.store import orders
from order_api.store.orders import Locked
from shop_common.api.valid import UUID_PATTERN
from shop_common.batching.coalescers import Sizes
from shop_common.db.audit import AuditLog, Entry, entry, event_entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.identity.caller import Caller

TURN_LINES = 1_000
"""The number of lines of the orders that one turn cancels: about 20 ms of work."""

_TURN = Sizes[OrderKey](key=lambda order: order, read=orders.count_lines, size_max=LINES_MAX)


def cancel_lost(tx: Connection, losses: Sequence[LostStock], audit_log: AuditLog | None = None) -> bool:
    """Cancel orders whose stock is lost: PENDING orders after an expiry, orders not yet shipped after a release.

    If an order has a shipment, cancels only the open units of the lost product. Changes a limited number of orders.
    Returns whether some are left for another transaction. May be repeated. Ignores unknown order ids, because other
    callers of ReserveStock choose order ids freely. Emits ORDER_CANCELLED; for an order with a shipment
    ORDER_ITEMS_CANCELLED, or ORDER_SHIPPED if no unit is open any more.

    With `audit_log`, writes a row there per change of an order.
    """
    ours = [loss for loss in losses if UUID_PATTERN.match(loss.order.id)]
    # Read without locks first, because most events need no change: an earlier event has cancelled the order, or its
    # cancellation caused the event. An order never becomes PENDING again, and a reinstated order has other
    # reservations. So if an order need not be cancelled now, this loss never cancels it.
    present = orders.statuses(tx, (loss.order for loss in ours))
    lost: dict[OrderKey, list[LostStock]] = {}
    for loss in ours:
        if loss.order in present and loss.cancels(present[loss.order]):
            lost.setdefault(loss.order, []).append(loss)
    turn = _TURN.prefix_within(tx, list(lost), TURN_LINES)
    locked = orders.lock(tx, turn)
    entries: list[Entry] = []
    for order in list(locked.orders.values()):
        entries += [
            event_entry(loss.event_type, order.tenant, loss.event_id, [order.id])
            for loss in lost[order.key]
            if _cancel(locked, locked.orders[order.key], loss)
        ]
    locked.save(tx)
    if audit_log is not None:
        audit_log.append(tx, entries)
    return len(turn) < len(lost)


def _cancel(locked: Locked, order: Order, loss: LostStock) -> bool:
    """Cancel the order, or the units that were lost. Returns whether the order has changed."""
    if not loss.cancels(order.status):
        return False
    if not units.has_shipped(order):
        locked.change_status(order.key, Status.CANCELLED, loss.reason, loss.traceparent, loss.actor)
        return True
    change = None if loss.product_id is None else units.cancel_product(order, loss.product_id)
    if change is None or not change.units:
        return False
    locked.cancel_units(change.order, change.units, loss.reason, loss.traceparent, loss.actor)
    return True


class AbandonedOrders:
    """Orders of all tenants in one database that are still PENDING long after their reservations have ended."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def cancel(self, command: CancelAbandoned) -> int:
        """Cancel these orders, the oldest first. Returns the number of cancelled orders.

        This also ends a confirmation that a crash interrupted: the event of the cancellation releases the confirmed
        stock. One query reads all keys; each turn cancels some in its own transaction. Emits ORDER_CANCELLED.
        """
        keys: Sequence[OrderKey] = self._database.query(
            lambda tx: orders.abandoned(tx, command.grace_seconds, command.max_count), ALL_TENANTS
        )
        cancelled = 0
        while keys:
            looked_at, pending = self._database.transact(
                partial(self._cancel_pending, caller=command.caller, keys=keys), ALL_TENANTS
            )
            keys, cancelled = keys[looked_at:], cancelled + pending
        return cancelled

    def _cancel_pending(self, tx: Connection, *, caller: Caller, keys: Sequence[OrderKey]) -> tuple[int, int]:
        """Cancel the orders that are still PENDING, up to the limit of a turn.

        Returns how many keys the turn handled, from the first one on, and how many orders it cancelled.
        """
        turn = _TURN.prefix_within(tx, keys, TURN_LINES)
        locked = orders.lock(tx, turn)
        # An order that was confirmed or cancelled before we got the lock is not abandoned any more.
        pending = [order for order in locked.orders.values() if order.status is Status.PENDING]
        for order in pending:
            locked.change_status(order.key, Status.CANCELLED, NOT_CONFIRMED_IN_TIME, None, caller.actor)
        locked.save(tx)
        if self._audit_log is not None and pending:
            self._audit_log.append(tx, [entry(caller, "CancelAbandonedOrders", (order.id for order in pending))])
        return len(turn), len(pending)
