"""A task that calls an API in bounded batches, whenever its trigger is due.

Every task is safe to repeat, and no guarantee of the system depends on when it runs. So a failed run is simply
repeated, and two reapers may run at the same time.

A backlog is processed in batches that take about as long as an ordinary call, because buyers wait for the locks that
each batch holds.
"""

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from reservation_reaper.triggers import JITTER, Trigger
from shop_common.errors import Overload, ShopError
from shop_common.telemetry import logs, metrics

_BACKOFF_SECONDS_MIN = 0.25
_BACKOFF_SECONDS_MAX = 30.0
_MISSED_RUNS_MAX = 3

BATCH_SECONDS = 0.02
"""Target duration of a batch. Shorter batches cost more per row. Longer batches delay buyers, who wait for locks."""
BATCH_MIN = 200
"""The smallest batch size. In a smaller batch, the fixed cost (round trips, a synchronous commit) would take most of
the time."""

_log = logs.get(__name__)

_runs = metrics.counter(
    __name__, "shop_reaper_runs_total", "Runs of a periodic task, by outcome: done, failed", "task", "outcome"
)
_done = metrics.counter(
    __name__,
    "shop_reaper_done_total",
    "Reservations expired, orders cancelled or compared, rows of history purged, or items verified by a periodic task",
    "task",
)
_last_success = metrics.gauge(
    __name__,
    "shop_reaper_last_success_timestamp_seconds",
    "When a batch of the task last succeeded, in seconds since 1970 UTC",
    "task",
    over_workers="livemax",
)
_due = metrics.gauge(
    __name__,
    "shop_reaper_due_timestamp_seconds",
    "When the next run of the task is due, in seconds since 1970 UTC; in the past while runs fail or are missed",
    "task",
    over_workers="livemax",
)


class PeriodicTask:
    """Calls `do` in batches when the trigger is due.

    `do` receives the batch size, processes at most that many rows, and returns the number processed. After a full batch
    there may be more rows. The batch size starts at BATCH_MIN. It grows up to `batch_max` while batches take less than
    `batch_seconds`, and shrinks down to BATCH_MIN while they take longer.
    """

    def __init__(
        self,
        name: str,
        do: Callable[[int], int],
        trigger: Trigger,
        *,
        batch_max: int,
        batch_seconds: float = BATCH_SECONDS,
    ) -> None:
        self.name = name
        self.trigger = trigger
        self._do = do
        self._batch_max = batch_max
        self._batch_seconds = batch_seconds
        self._batch_size = min(BATCH_MIN, batch_max)
        self._failure: ShopError | None = None
        self._late_at = float("-inf")
        self._set_due(None)

    @property
    def ready(self) -> bool:
        """Whether the API responded to the last run, and few runs were missed. An overloaded API has responded."""
        responds = self._failure is None or isinstance(self._failure, Overload)
        return responds and time.monotonic() < self._late_at

    def run(self, stop: threading.Event) -> None:
        """Process everything that is due. A failed run is repeated until it succeeds, with backoff and jitter."""
        failures = 0
        while not self.run_once(stop) and not stop.is_set():
            seconds = min(_BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 10), _BACKOFF_SECONDS_MAX)
            stop.wait(seconds * random.uniform(1 - JITTER, 1 + JITTER))
            failures += 1

    def run_once(self, stop: threading.Event) -> bool:
        """Process batches until one is not full. Returns False if a batch failed."""
        total = 0
        try:
            while not stop.is_set():
                size, began = self._batch_size, time.monotonic()
                done = self._do(size)
                total += done
                _done(self.name).inc(done)
                # Set the time after each batch, not only at the end of the run. A large backlog may take hours, and the
                # reaper must not look as if it hangs.
                _last_success(self.name).set_to_current_time()
                self._set_due(datetime.now(UTC))
                if done < size:
                    break
                self._batch_size = self._next_size(size, time.monotonic() - began)
        except ShopError as error:
            if isinstance(error, Overload):
                self._late_at = max(self._late_at, time.monotonic() + _BACKOFF_SECONDS_MAX)
            _runs(self.name, "failed").inc()
            self._report(error)
            return False
        _runs(self.name, "done").inc()
        if self._failure is not None:
            _log.info("task succeeded again", task=self.name)
            self._failure = None
        if total:
            _log.info("task has processed rows", task=self.name, rows=total)
        return True

    def _set_due(self, previous: datetime | None) -> None:
        """Record when the next run is due. The task stays ready until several runs have been missed."""
        now = datetime.now(UTC)
        due = self.trigger.get_next_fire_time(previous, now)
        _due(self.name).set(due.timestamp())
        seconds = (due - now).total_seconds()
        if seconds > 0:  # otherwise this is the first run; the task becomes ready only after it
            self._late_at = time.monotonic() + _MISSED_RUNS_MAX * seconds + _BACKOFF_SECONDS_MAX

    def _next_size(self, size: int, seconds: float) -> int:
        """Return the size of the next batch after a full one of this size and duration."""
        factor = min(max(self._batch_seconds / max(seconds, 1e-6), 0.5), 2.0)
        return min(max(int(size * factor), BATCH_MIN), self._batch_max)

    def _report(self, error: ShopError) -> None:
        # Log only when the reason changes, because the API may be unavailable for hours.
        if self._failure is None or self._failure.reason != error.reason:
            _log.warning("task failed, retrying", task=self.name, reason=error.reason, error=error.message)
        self._failure = error
