"""ReconcileOrders: repairs the stock of orders whose events were lost before inventory-api handled them.

It starts from the reservations, not from the orders: only few orders have active reservations, even if millions of
orders are stored. So it needs no record of what was compared before, and it also finds orders whose reservations came
back with a backup.

An order that was shipped after some of its units were cancelled is left alone: the repair would also ship the cancelled
units. A warning names the order. An operator sends its events again, or corrects the quantity.

A repair is right at any time. No order leaves SHIPPED except for DELIVERED. A cancelled order may be reinstated
after we read it, so the repair has the version that we read, and inventory-api ignores it if a later one was applied.
If the event arrives after all, it finds nothing to do.

The repair also releases the stock of an order whose reinstatement was interrupted (reinstate_order.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from order_api.domain.commands import Reconcile
from order_api.domain.model import OrderKey, Status, VersionedStatus
from order_api.inventory import Inventory
from order_api.store import orders
from shop_common.api.valid import UUID_PATTERN
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.telemetry import logs, metrics

SETTLED_AT_ONCE = 100
"""The most orders that one call of inventory-api settles, so that the call ends in time."""

_OUTCOMES: Mapping[Status, str] = {
    Status.CANCELLED: "released",
    Status.SHIPPED: "fulfilled",
    Status.DELIVERED: "fulfilled",
}
"""The final state of an order's reservations, by the order's status. In the other statuses, the order keeps them."""

_log = logs.get(__name__)

_reconciled = metrics.counter(
    __name__,
    "shop_orders_reconciled_total",
    "Orders whose reservations were released or fulfilled by ReconcileOrders, because the event was lost",
    "outcome",
)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The numbers of orders of one call. The token is empty after the last order."""

    compared: int
    released: int
    fulfilled: int
    next_page_token: str


class Reconciliation:
    """Compares the orders of one database with their reservations at inventory-api."""

    def __init__(self, database: Database, stock: Inventory) -> None:
        self._database = database
        self._stock = stock
        for outcome in set(_OUTCOMES.values()):
            _reconciled(outcome).inc(0)  # a series that begins at 0, so that Prometheus sees its first increment

    def run(self, command: Reconcile) -> Reconciled:
        """Compare a page of orders with their reservations, and correct the reservations if an event was lost.

        May be repeated. Raises the ShopError of inventory-api. Then the reservations of some orders may have been
        corrected. Our database does not change.
        """
        reserved, next_page_token = self._stock.reserved_orders(command.page_size, command.page_token)
        # Callers of ReserveStock choose order ids freely.
        ours = [key for key in reserved if UUID_PATTERN.match(key.id)]
        settled = self._database.query(
            lambda tx: orders.unchanged_statuses(tx, ours, command.grace_seconds, tuple(_OUTCOMES)), ALL_TENANTS
        )
        settled = self._without_cancelled_units(settled)
        counts = dict.fromkeys(_OUTCOMES.values(), 0)
        keys = sorted(settled)
        for begin in range(0, len(keys), SETTLED_AT_ONCE):
            for key in self._settle(keys[begin : begin + SETTLED_AT_ONCE], settled):
                counts[_OUTCOMES[settled[key].status]] += 1
        return Reconciled(len(reserved), counts["released"], counts["fulfilled"], next_page_token)

    def _without_cancelled_units(self, settled: Mapping[OrderKey, VersionedStatus]) -> dict[OrderKey, VersionedStatus]:
        """Return the orders except shipped ones with cancelled units, which are reported."""
        shipped = [key for key, each in settled.items() if each.status is not Status.CANCELLED]
        partial = self._database.query(lambda tx: orders.with_cancelled_units(tx, shipped), ALL_TENANTS)
        for key in sorted(partial):
            _log.warning(
                "an order with cancelled units was shipped, and stock may still be reserved: send its events again",
                tenant=key.tenant,
                order_id=key.id,
            )
        return {key: each for key, each in settled.items() if key not in partial}

    def _settle(self, keys: Sequence[OrderKey], settled: Mapping[OrderKey, VersionedStatus]) -> list[OrderKey]:
        """Correct the reservations of the orders. Returns the orders whose reservations have changed."""
        changed = self._stock.settle({key: settled[key] for key in keys})
        for key in changed:
            outcome = _OUTCOMES[settled[key].status]
            _reconciled(outcome).inc()
            _log.warning(
                "the event of an order was lost; its reservations were corrected",
                tenant=key.tenant,
                order_id=key.id,
                status=settled[key].status,
                outcome=outcome,
            )
        return changed
