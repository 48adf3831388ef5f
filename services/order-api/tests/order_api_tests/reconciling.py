"""Calls ReconcileOrders as the reaper does, for orders that changed long ago."""

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import update

from order_api.store import tables
from shop_common.db.sql import now
from shop_protos.order.v1 import maintenance_pb2
from testkit.drivers.order_api import CALL_SECONDS, OrderApiDriver

Totals = maintenance_pb2.ReconcileOrdersResponse


def age(driver: OrderApiDriver, *order_ids: str) -> None:
    """Let the last change of the orders be a year old."""
    table = tables.orders
    with driver.database.write() as tx:
        then = now(tx).replace(year=now(tx).year - 1)
        tx.execute(update(table).where(table.c.id.in_(order_ids)).values(updated_at=then))


def cancel_abandoned(driver: OrderApiDriver, *, max_count: int = 0) -> maintenance_pb2.CancelAbandonedOrdersResponse:
    """Call CancelAbandonedOrders, which ends interrupted changes too."""
    request = maintenance_pb2.CancelAbandonedOrdersRequest(grace=Duration(seconds=60), max_count=max_count)
    return driver.maintenance.CancelAbandonedOrders(request, timeout=CALL_SECONDS)


def reconcile(driver: OrderApiDriver, *, page_size: int = 1000) -> Totals:
    """Reconcile all orders, page by page, and return the sums.

    Other tests have reserved stock at the same inventory-api, so an order may be on any page.
    """
    totals = Totals()
    token = ""
    while True:
        request = maintenance_pb2.ReconcileOrdersRequest(
            grace=Duration(seconds=60), page_size=page_size, page_token=token
        )
        response = driver.maintenance.ReconcileOrders(request, timeout=CALL_SECONDS)
        totals.compared_count += response.compared_count
        totals.released_count += response.released_count
        totals.fulfilled_count += response.fulfilled_count
        token = response.next_page_token
        if not token:
            return totals
