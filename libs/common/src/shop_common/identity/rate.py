"""Limits on the lines that a caller may send per second: one token bucket for each caller.

A bucket holds up to `burst` lines and gains `lines_per_second`. A request takes its lines from the bucket, also if the
bucket has fewer: then the bucket is in debt, and the caller's next request is refused until the debt is paid. So a
request larger than the burst is not refused forever, and the average rate is never exceeded.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from shop_common.errors import Overload

BUCKETS_MAX = 10_000
_LOOKED_AT = 16


@dataclass(frozen=True, slots=True, order=True)
class Rate:
    """The limit of a caller. Rates are ordered by `lines_per_second`, then by `burst`."""

    lines_per_second: float
    burst: float


class RateLimited(Overload):
    """The caller has sent more lines than its limit allows. Wait `retry_after_seconds` and retry."""

    reason = "RATE_LIMITED"

    def __init__(self, rate: Rate, seconds: float) -> None:
        super().__init__(f"the caller may send {rate.lines_per_second:g} lines per second; retry in {seconds:.2g} s")
        self.retry_after_seconds = seconds


class _Bucket:
    __slots__ = ("lines", "rate", "updated_at")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self.lines = rate.burst
        self.updated_at = now

    def refill(self, now: float) -> None:
        gained = (now - self.updated_at) * self.rate.lines_per_second
        self.lines = min(self.rate.burst, self.lines + gained)
        self.updated_at = now

    def is_full(self, now: float) -> bool:
        self.refill(now)
        return self.lines >= self.rate.burst


class Buckets:
    """The buckets of this process. Safe to share between threads.

    There are at most BUCKETS_MAX. If more callers have limits, a full bucket is forgotten, or else the one that was
    used least recently. A forgotten bucket is full again at its caller's next call.
    """

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()
        """The bucket that was used least recently is the first."""
        self._lock = threading.Lock()

    def check(self, key: Hashable, rate: Rate) -> None:
        """Raise RateLimited if the bucket has not one line."""
        self._take(key, rate, 0)

    def take(self, key: Hashable, rate: Rate, lines: int) -> None:
        """Take the lines of a request from the bucket. Raises RateLimited, and takes none, if it has not one line."""
        self._take(key, rate, lines)

    def _take(self, key: Hashable, rate: Rate, lines: int) -> None:
        now = time.monotonic()
        with self._lock:
            bucket = self._buckets.get(key)
            if bucket is None or bucket.rate != rate:
                bucket = self._add(key, rate, now)
            self._buckets.move_to_end(key)
            bucket.refill(now)
            missing = 1 - bucket.lines
            if missing <= 0:
                bucket.lines -= lines
                return
        raise RateLimited(rate, missing / rate.lines_per_second)

    def _add(self, key: Hashable, rate: Rate, now: float) -> _Bucket:
        if key not in self._buckets and len(self._buckets) >= BUCKETS_MAX:
            oldest = [each for each, _ in zip(self._buckets, range(_LOOKED_AT), strict=False)]
            full = next((each for each in oldest if self._buckets[each].is_full(now)), oldest[0])
            del self._buckets[full]
        bucket = self._buckets[key] = _Bucket(rate, now)
        return bucket
