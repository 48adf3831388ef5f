"""Rounds of VerifyStock over all items, and the metric of their mismatches."""

from collections import Counter
from collections.abc import Callable

from shop_common.telemetry import logs, metrics
from shop_protos.inventory.v1.maintenance_pb2 import StockMismatchKind, VerifyStockRequest, VerifyStockResponse

_PREFIX = "STOCK_MISMATCH_KIND_"
_KINDS = [name.removeprefix(_PREFIX) for name, number in StockMismatchKind.items() if number]

_log = logs.get(__name__)

_mismatches = metrics.gauge(
    __name__,
    "shop_stock_mismatches",
    "Mismatches that the last complete round of VerifyStock found, or the present round if that has found more, by"
    " kind: RESERVED_QUANTITY, ALLOCATIONS, MOVEMENTS, QUANTITY, WITHHELD_QUANTITY",
    "kind",
    over_workers="livemax",
)


class StockVerification:
    """Verifies all items, a batch at a time. `verify` makes the call.

    The position is kept in memory only. After a restart of the reaper, a new round begins with the first item.
    """

    def __init__(self, verify: Callable[[VerifyStockRequest], VerifyStockResponse]) -> None:
        self._verify = verify
        self._after_item_id = 0
        self._found: Counter[str] = Counter()
        self._last_round: Counter[str] = Counter()

    def run_batch(self, limit: int) -> int:
        """Verify the next batch. Returns `limit` if items are left, and less at the end of a round.

        Repairs nothing, because damage has a cause that a person has to find. Raises the ShopError of the call; the
        next batch then has the same items.
        """
        response = self._verify(VerifyStockRequest(after_item_id=self._after_item_id, max_count=limit))
        self._after_item_id = response.next_after_item_id
        self._found.update(StockMismatchKind.Name(each.kind).removeprefix(_PREFIX) for each in response.mismatches)
        if self._after_item_id:
            self._export(self._found | self._last_round)  # the larger count of each kind
            return limit
        self._export(self._found)
        if self._found:
            _log.error("stock does not match", **{kind.lower(): count for kind, count in self._found.items()})
        self._last_round, self._found = self._found, Counter()
        return min(response.verified_count, limit - 1)

    def _export(self, counts: Counter[str]) -> None:
        for kind in _KINDS:
            _mismatches(kind).set(counts[kind])
