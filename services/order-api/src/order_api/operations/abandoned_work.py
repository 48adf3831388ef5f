"""CancelAbandonedOrders: ends what nobody will finish, orders that were not confirmed in time and interrupted changes.

The orders come first, because an order that is cancelled needs no event for its change any more. Each of the two works
in turns. So a call that fails has ended the work of the turns that have committed, and a repeat continues.
"""

from dataclasses import dataclass

from order_api.domain.commands import CancelAbandoned
from order_api.operations.cancel_orders import AbandonedOrders
from order_api.operations.change_order import StaleChanges
from shop_common.db.audit import AuditLog
from shop_common.db.database import Database


@dataclass(frozen=True, slots=True)
class Ended:
    """The numbers of orders and of changes that a call has ended."""

    cancelled: int
    changes: int


class AbandonedWork:
    """The abandoned orders and the interrupted changes of all tenants in one database."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._orders = AbandonedOrders(database, audit_log)
        self._changes = StaleChanges(database, audit_log)

    def end(self, command: CancelAbandoned) -> Ended:
        """End up to `max_count` of each kind, the oldest first. Emits ORDER_CANCELLED and ORDER_CHANGED."""
        return Ended(self._orders.cancel(command), self._changes.end(command))
