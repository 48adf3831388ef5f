"""Rounds of ReconcileOrders: their positions."""

import pytest

from reservation_reaper.reconciliation import GRACE_SECONDS, Reconciliation
from shop_common.errors import InvalidInput, ShopError, Unavailable, Violation
from shop_protos.order.v1.maintenance_pb2 import ReconcileOrdersRequest, ReconcileOrdersResponse

LIMIT = 10


class Api:
    """Returns or raises these in order, and keeps the tokens of the requests."""

    def __init__(self, *responses: ReconcileOrdersResponse | ShopError) -> None:
        self.tokens: list[str] = []
        self._left = list(responses)

    def reconcile(self, request: ReconcileOrdersRequest) -> ReconcileOrdersResponse:
        assert (request.grace.seconds, request.page_size) == (GRACE_SECONDS, LIMIT)
        self.tokens.append(request.page_token)
        ended = self._left.pop(0)
        if isinstance(ended, ShopError):
            raise ended
        return ended


def page(count: int, token: str = "") -> ReconcileOrdersResponse:
    return ReconcileOrdersResponse(compared_count=count, next_page_token=token)


def test_a_round_continues_after_each_page_and_the_next_round_starts_again() -> None:
    api = Api(page(10, "a"), page(0, "b"), page(LIMIT), page(10, "a"))
    reconciliation = Reconciliation(api.reconcile)

    assert [reconciliation.run_batch(LIMIT) for _ in range(4)] == [LIMIT, LIMIT, LIMIT - 1, LIMIT]
    assert api.tokens == ["", "a", "b", ""]


def test_a_failed_page_is_repeated_and_a_refused_token_starts_a_new_round() -> None:
    refused = InvalidInput([Violation("page_token", "must be another one")])
    api = Api(page(10, "a"), Unavailable("away"), refused, page(3))
    reconciliation = Reconciliation(api.reconcile)
    reconciliation.run_batch(LIMIT)

    for error in (Unavailable, InvalidInput):
        with pytest.raises(error):
            reconciliation.run_batch(LIMIT)
    reconciliation.run_batch(LIMIT)

    assert api.tokens == ["", "a", "a", ""]
