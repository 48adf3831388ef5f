"""Rounds of VerifyStock: their positions, and the metric of their mismatches."""

import pytest
from prometheus_client import REGISTRY

from reservation_reaper.stock_verification import StockVerification
from shop_common.errors import DatabaseUnavailable
from shop_protos.inventory.v1.maintenance_pb2 import (
    STOCK_MISMATCH_KIND_ALLOCATIONS,
    STOCK_MISMATCH_KIND_RESERVED_QUANTITY,
    StockMismatch,
    StockMismatchKind,
    VerifyStockRequest,
    VerifyStockResponse,
)

LIMIT = 10


def response(count: int, next_id: int, *kinds: StockMismatchKind.ValueType) -> VerifyStockResponse:
    return VerifyStockResponse(
        verified_count=count, next_after_item_id=next_id, mismatches=[StockMismatch(kind=kind) for kind in kinds]
    )


class Api:
    """Returns or raises these in order, and keeps the requests."""

    def __init__(self, *responses: VerifyStockResponse | Exception) -> None:
        self.requests: list[VerifyStockRequest] = []
        self._left = list(responses)

    def verify(self, request: VerifyStockRequest) -> VerifyStockResponse:
        self.requests.append(request)
        ended = self._left.pop(0)
        if isinstance(ended, Exception):
            raise ended
        return ended


def metric(kind: str) -> float | None:
    return REGISTRY.get_sample_value("shop_stock_mismatches", {"kind": kind})


def test_a_round_continues_after_each_batch_and_the_next_round_starts_again() -> None:
    api = Api(response(10, 17), response(4, 30), response(3, 0), response(10, 17))
    verification = StockVerification(api.verify)

    assert [verification.run_batch(LIMIT) for _ in range(4)] == [LIMIT, LIMIT, 3, LIMIT]
    assert [request.after_item_id for request in api.requests] == [0, 17, 30, 0]
    assert {(request.max_count, request.repair) for request in api.requests} == {(LIMIT, False)}


def test_a_full_last_batch_ends_the_round() -> None:
    assert StockVerification(Api(response(LIMIT, 0)).verify).run_batch(LIMIT) < LIMIT


def test_a_failed_batch_is_repeated() -> None:
    api = Api(response(10, 17), DatabaseUnavailable("away"), response(3, 0))
    verification = StockVerification(api.verify)
    verification.run_batch(LIMIT)

    with pytest.raises(DatabaseUnavailable):
        verification.run_batch(LIMIT)
    verification.run_batch(LIMIT)

    assert [request.after_item_id for request in api.requests] == [0, 17, 17]


def test_the_metric_shows_mismatches_at_once_and_falls_at_the_end_of_a_round() -> None:
    counter, allocations = STOCK_MISMATCH_KIND_RESERVED_QUANTITY, STOCK_MISMATCH_KIND_ALLOCATIONS
    rounds = [
        response(10, 17, counter, counter, allocations),
        response(3, 0, counter),
        response(10, 17),
        response(3, 0),
    ]
    verification = StockVerification(Api(*rounds).verify)

    shown = []
    for _ in rounds:
        verification.run_batch(LIMIT)
        shown.append((metric("RESERVED_QUANTITY"), metric("ALLOCATIONS")))

    assert shown == [(2, 1), (3, 1), (3, 1), (0, 0)]
