"""Work that is due: asked of an API again and again, each piece in a loop of its own.

Every piece is safe to repeat and bounded, and no promise of the shop depends on when it comes by: so a call that
failed is simply made again at the next round, and two reapers at once do no harm.
"""

import threading
import time
from collections.abc import Callable

from shop_common import logs, metrics
from shop_common.errors import ShopError

_BACKOFF_SECONDS_MIN = 0.25
_BACKOFF_SECONDS_MAX = 30.0
_ROUNDS_MISSED_MAX = 3

_log = logs.get(__name__)

_rounds = metrics.counter(
    __name__, "shop_reaper_rounds_total", "Rounds of work, by how they ended: done, failed", "work", "outcome"
)
_done = metrics.counter(
    __name__, "shop_reaper_done_total", "Holds expired, orders cancelled, rows of history purged", "work"
)
_last_success = metrics.gauge(
    __name__,
    "shop_reaper_last_success_timestamp_seconds",
    "When a round last went well, in seconds since 1970 UTC",
    "work",
    over_workers="livemax",
)


class Work:
    """One kind of work. `do` does a bounded batch of it and returns how much; `batch_max` means there is more."""

    def __init__(self, name: str, do: Callable[[], int], *, batch_max: int, interval_seconds: float) -> None:
        self.name = name
        self._do = do
        self._batch_max = batch_max
        self._interval_seconds = interval_seconds
        self._failure: str | None = None
        self._finished_at = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether it went well lately."""
        patience = _ROUNDS_MISSED_MAX * self._interval_seconds + _BACKOFF_SECONDS_MAX
        return self._failure is None and time.monotonic() - self._finished_at < patience

    def run(self, stop: threading.Event) -> None:
        """Do it until told to stop; a round that failed is tried again, later each time."""
        failures = 0
        while not stop.is_set():
            if self.run_once(stop):
                failures = 0
                stop.wait(self._interval_seconds)
            else:
                stop.wait(min(_BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 10), _BACKOFF_SECONDS_MAX))
                failures += 1

    def run_once(self, stop: threading.Event) -> bool:
        """One round: batches until there is no more. Whether it went well."""
        total = 0
        try:
            while not stop.is_set():
                done = self._do()
                total += done
                _done(self.name).inc(done)
                if done < self._batch_max:
                    break
        except ShopError as error:
            _rounds(self.name, "failed").inc()
            self._complain(error)
            return False
        _rounds(self.name, "done").inc()
        _last_success(self.name).set_to_current_time()
        self._finished_at = time.monotonic()
        if self._failure is not None:
            _log.info("works again", work=self.name)
            self._failure = None
        if total:
            _log.info("done", work=self.name, count=total)
        return True

    def _complain(self, error: ShopError) -> None:
        # Said when it changes, not with each round: hours of it would bury everything else.
        if self._failure != error.reason:
            _log.warning("failed, is tried again", work=self.name, reason=error.reason, error=error.message)
        self._failure = error.reason
