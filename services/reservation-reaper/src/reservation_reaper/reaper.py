"""Work that is due: asked of an API again and again, each piece in a loop of its own.

Every piece is safe to repeat and bounded, and no promise of the shop depends on when it comes by: so a call that
failed is simply made again at the next round, and two reapers at once do no harm.

A backlog is worked off in batches that take about as long as an ordinary call: each holds locks that buyers wait for.
"""

import threading
import time
from collections.abc import Callable

from shop_common import logs, metrics
from shop_common.errors import Overload, ShopError

_BACKOFF_SECONDS_MIN = 0.25
_BACKOFF_SECONDS_MAX = 30.0
_ROUNDS_MISSED_MAX = 3

BATCH_SECONDS = 0.02
"""How long a batch should take: shorter ones cost more a hold, longer ones are felt by who waits for their locks."""
BATCH_MIN = 200
"""And no fewer: what a batch costs by itself, round trips and a synced commit, must not be most of its time."""

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
    """One kind of work. `do` does so much of it at most, and returns how much: as much means that there is more.

    Its batches grow up to `batch_max` while they take less than `batch_seconds`, and shrink down to BATCH_MIN while
    they take longer.
    """

    def __init__(
        self,
        name: str,
        do: Callable[[int], int],
        *,
        batch_max: int,
        interval_seconds: float,
        batch_seconds: float = BATCH_SECONDS,
    ) -> None:
        self.name = name
        self._do = do
        self._batch_max = batch_max
        self._batch_seconds = batch_seconds
        self._batch = min(BATCH_MIN, batch_max)
        self._interval_seconds = interval_seconds
        self._failure: ShopError | None = None
        self._answered_at = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether the API did it lately, or said that it was too busy, which is no fault of the way to it."""
        patience = _ROUNDS_MISSED_MAX * self._interval_seconds + _BACKOFF_SECONDS_MAX
        answers = self._failure is None or isinstance(self._failure, Overload)
        return answers and time.monotonic() - self._answered_at < patience

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
                asked, began = self._batch, time.monotonic()
                done = self._do(asked)
                self._answered_at = time.monotonic()
                total += done
                _done(self.name).inc(done)
                # With each batch and not at the end: a large backlog takes longer than anyone waits for a sign of life.
                _last_success(self.name).set_to_current_time()
                if done < asked:
                    break
                self._batch = self._fitted(asked, self._answered_at - began)
        except ShopError as error:
            if isinstance(error, Overload):
                self._answered_at = time.monotonic()
            _rounds(self.name, "failed").inc()
            self._complain(error)
            return False
        _rounds(self.name, "done").inc()
        if self._failure is not None:
            _log.info("works again", work=self.name)
            self._failure = None
        if total:
            _log.info("done", work=self.name, count=total)
        return True

    def _fitted(self, size: int, seconds: float) -> int:
        """The size of the next batch, after a full one of this size took so long."""
        factor = min(max(self._batch_seconds / max(seconds, 1e-6), 0.5), 2.0)
        return min(max(int(size * factor), BATCH_MIN), self._batch_max)

    def _complain(self, error: ShopError) -> None:
        # Said when it changes, not with each round: hours of it would bury everything else.
        if self._failure is None or self._failure.reason != error.reason:
            _log.warning("failed, is tried again", work=self.name, reason=error.reason, error=error.message)
        self._failure = error
