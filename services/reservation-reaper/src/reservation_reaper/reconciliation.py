"""Rounds of ReconcileOrders over all orders with active reservations."""

from collections.abc import Callable

from google.protobuf.duration_pb2 import Duration

from shop_common.errors import InvalidInput
from shop_protos.order.v1.maintenance_pb2 import ReconcileOrdersRequest, ReconcileOrdersResponse

GRACE_SECONDS = 600
"""Events usually take less than a second. An order is reconciled only when its event is this late."""


class Reconciliation:
    """Compares all orders with their reservations, a page at a time. `reconcile` makes the call.

    The position is kept in memory only. After a restart of the reaper, a new round begins with the first order.
    """

    def __init__(self, reconcile: Callable[[ReconcileOrdersRequest], ReconcileOrdersResponse]) -> None:
        self._reconcile = reconcile
        self._page_token = ""

    def run_batch(self, limit: int) -> int:
        """Compare the next page. Returns `limit` if orders are left, and less at the end of a round.

        Raises the ShopError of the call; the next batch then has the same page.
        """
        request = ReconcileOrdersRequest(
            grace=Duration(seconds=GRACE_SECONDS), page_size=limit, page_token=self._page_token
        )
        try:
            response = self._reconcile(request)
        except InvalidInput:
            # The API does not accept the token any more, as after an upgrade. Begin a new round.
            self._page_token = ""
            raise
        self._page_token = response.next_page_token
        return limit if self._page_token else min(response.compared_count, limit - 1)
