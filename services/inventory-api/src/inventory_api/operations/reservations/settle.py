"""SettleOrders: does for orders of order-api what a lost event would have done."""

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import Connection

from inventory_api.domain.commands import OrderRequest, SettledOrder, SettleRequest
from inventory_api.domain.model import OrderKey, State
from inventory_api.operations.reservations import fulfil, release
from inventory_api.store import order_effects
from inventory_api.store.reservations import by_order
from shop_common.db import row_security
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.sql import now


class Settlement:
    """Settles orders in one database."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def run(self, request: SettleRequest) -> set[OrderKey]:
        """Settle the orders. Returns the orders whose reservations have changed.

        Calls the operations that handle ORDER_CANCELLED and ORDER_SHIPPED, so a late event finds nothing to do. Works
        in turns of one transaction each. Leaves out orders of which a later version was applied. May be repeated. Emits
        one event per reservation, and STOCK_UPDATED per item that lost units.
        """
        released = self._unsettled(request.cancelled, release.STATES)
        self._in_turns(released, release.release_orders)
        fulfilled = self._unsettled(request.shipped, fulfil.STATES)
        self._in_turns(fulfilled, fulfil.fulfil_orders)
        return {order.order_key for order in (*released, *fulfilled)}

    def _unsettled(self, orders: Sequence[SettledOrder], states: Sequence[State]) -> list[SettledOrder]:
        if not orders:
            return []
        keys = [order.order_key for order in orders]
        unsettled = self._database.query(lambda tx: by_order.have_any(tx, keys, states), row_security.of(orders))
        return [order for order in orders if order.order_key in unsettled]

    def _in_turns(
        self, orders: Sequence[SettledOrder], act: Callable[[Connection, Sequence[OrderRequest]], bool]
    ) -> None:
        if not orders:
            return
        recorded = False

        def turn(tx: Connection) -> bool:
            settled = _not_superseded(tx, orders)
            if not settled:
                return False
            has_more = act(tx, settled)
            if not recorded:
                self._record(tx, settled)
            return has_more

        while self._database.transact(turn, row_security.of(orders)):
            recorded = True

    def _record(self, tx: Connection, orders: Iterable[OrderRequest]) -> None:
        if self._audit_log is not None:
            self._audit_log.append(tx, [entry(order.caller, "SettleOrders", (order.order_id,)) for order in orders])


def _not_superseded(tx: Connection, orders: Sequence[SettledOrder]) -> list[SettledOrder]:
    """Return the orders, except those of which a later version was applied. Locks the effects of those with a version.

    order-api may have reinstated a cancelled order after it read the status. Without the lock, this could also happen
    between the check and the release.
    """
    versioned = [order.order_key for order in orders if order.version is not None]
    effects = order_effects.lock(tx, versioned, now(tx)) if versioned else {}
    return [
        order for order in orders if order.version is None or effects[order.order_key].applied_version <= order.version
    ]
