"""Cancels orders without a request of a user: their stock is lost, or they were not confirmed in time."""

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection

from order_api.domain import units
from order_api.domain.commands import CancelAbandoned
from order_api.domain.model import Order, OrderKey, Status
from order_api.domain.transitions import NOT_CONFIRMED_IN_TIME, LostStock
from order_api.operations.order_turns import first_turn, in_turns
from order_api.store import orders
from order_api.store.orders import Locked
from shop_common.api.valid import UUID_PATTERN
from shop_common.db.audit import AuditLog, Entry, entry, event_entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.identity.caller import Caller


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
    turn = first_turn(tx, list(lost))
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
        return in_turns(self._database, keys, partial(self._cancel_pending, caller=command.caller))

    def _cancel_pending(self, tx: Connection, keys: Sequence[OrderKey], *, caller: Caller) -> int:
        """Cancel the orders that are still PENDING. Returns their number."""
        locked = orders.lock(tx, keys)
        # An order that was confirmed or cancelled before we got the lock is not abandoned any more.
        pending = [order for order in locked.orders.values() if order.status is Status.PENDING]
        for order in pending:
            locked.change_status(order.key, Status.CANCELLED, NOT_CONFIRMED_IN_TIME, None, caller.actor)
        locked.save(tx)
        if self._audit_log is not None and pending:
            self._audit_log.append(tx, [entry(caller, "CancelAbandonedOrders", (order.id for order in pending))])
        return len(pending)
