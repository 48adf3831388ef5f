"""EraseUser: removes the personal data of a user from the orders that have ended.

Works in turns: each turn is one transaction, which erases some orders, emits their events and writes its row of the
audit log. An erased order no longer belongs to the user. So a repeat after a crash continues with the orders that are
left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from order_api.domain import erasure as personal_data
from order_api.domain import events
from order_api.domain.commands import ERASE_METHOD, EraseUser
from order_api.domain.model import LINES_MAX, OrderKey
from order_api.store import erasure, orders, tables
from shop_common.batching.coalescers import Sizes
from shop_common.db import row_security
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database

ORDERS_MAX = 1_000
"""The most orders that one call erases."""

TURN_LINES = 1_000
"""The number of lines of the orders that one turn erases. Events have all lines of their order."""

_TURN = Sizes[OrderKey](key=lambda order: order, read=orders.count_lines, size_max=LINES_MAX)


@dataclass(frozen=True, slots=True)
class Erased:
    """The number of erased orders, whether more can be erased now, and whether the user has orders that are open."""

    orders: int
    has_more: bool
    has_open: bool


class UserErasure:
    """Erases users of one database."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def erase(self, command: EraseUser) -> Erased:
        """Erase the user from at most ORDERS_MAX orders, in turns. May be repeated. Emits ORDER_USER_ERASED per order.

        Orders that are created meanwhile may be missed.
        """
        tenants = row_security.only([command.tenant])
        found, has_open = self._database.query(partial(_find, command=command), tenants)
        keys: Sequence[OrderKey] = found[:ORDERS_MAX]
        erased = 0
        while keys:
            handled, changed = self._database.transact(partial(self._erase, command=command, keys=keys), tenants)
            keys, erased = keys[handled:], erased + changed
        return Erased(erased, len(found) > ORDERS_MAX, has_open)

    def _erase(self, tx: Connection, *, command: EraseUser, keys: Sequence[OrderKey]) -> tuple[int, int]:
        """Erase the user from some of the orders, up to the limit of a turn.

        Returns how many keys the turn handled, from the first one on, and how many orders it erased.
        """
        turn = _TURN.prefix_within(tx, keys, TURN_LINES)
        locked = orders.lock(tx, turn)
        # Another call may have erased or changed an order before we got its lock.
        erased = [
            personal_data.erased(order, locked.now)
            for order in locked.orders.values()
            if order.user_id == command.user_id and order.status in personal_data.ERASABLE
        ]
        if erased:
            erasure.save(tx, erased, command.user_id)
            actor = command.caller.actor
            tables.outbox.append(tx, [events.user_erased(order, command.traceparent, actor) for order in erased])
            if self._audit_log is not None:
                self._audit_log.append(tx, [entry(command.caller, ERASE_METHOD, (order.id for order in erased))])
        return len(turn), len(erased)


def _find(tx: Connection, command: EraseUser) -> tuple[list[OrderKey], bool]:
    """Return the orders to erase, up to one more than a call erases, and whether the user has open orders."""
    tenant, user_id = command.tenant, command.user_id
    return erasure.erasable(tx, tenant, user_id, ORDERS_MAX + 1), erasure.has_open(tx, tenant, user_id)
