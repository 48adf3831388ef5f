"""The works of the reaper: what it asks an API to do, in bounded batches, whenever its trigger says so.

Every work is safe to repeat, and no promise of the shop depends on when it runs. So a round that failed is simply
repeated, and two reapers at once do no harm.

A backlog is worked off in batches that take about as long as an ordinary call: each holds locks that buyers wait for.
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
_due = metrics.gauge(
    __name__,
    "shop_reaper_due_timestamp_seconds",
    "When the next round is due, or the first one that has not gone well, in seconds since 1970 UTC",
    "work",
    over_workers="livemax",
)


class Work:
    """One kind of work, with the trigger that says when it is due.

    `do` does so much of it at most, and returns how much: as much means that there is more. Batches grow up to
    `batch_max` while they take less than `batch_seconds`, and shrink down to BATCH_MIN while they take longer.
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
        self._batch = min(BATCH_MIN, batch_max)
        self._failure: ShopError | None = None
        self._late_at = float("-inf")
        self._expect_next(None)

    @property
    def ready(self) -> bool:
        """Whether the API did what was due, or answered that it was too busy, which is no fault of the way to it."""
        answers = self._failure is None or isinstance(self._failure, Overload)
        return answers and time.monotonic() < self._late_at

    def run(self, stop: threading.Event) -> None:
        """One round; if it fails, again and again until it goes well, with exponential backoff and jitter."""
        failures = 0
        while not self.run_once(stop) and not stop.is_set():
            seconds = min(_BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 10), _BACKOFF_SECONDS_MAX)
            stop.wait(seconds * random.uniform(1 - JITTER, 1 + JITTER))
            failures += 1

    def run_once(self, stop: threading.Event) -> bool:
        """One round: batches until there is no more. Whether it went well."""
        total = 0
        try:
            while not stop.is_set():
                asked, began = self._batch, time.monotonic()
                done = self._do(asked)
                total += done
                _done(self.name).inc(done)
                # With each batch and not at the end: a large backlog takes longer than anyone waits for a sign of life.
                _last_success(self.name).set_to_current_time()
                self._expect_next(datetime.now(UTC))
                if done < asked:
                    break
                self._batch = self._fitted(asked, time.monotonic() - began)
        except ShopError as error:
            if isinstance(error, Overload):
                self._late_at = max(self._late_at, time.monotonic() + _BACKOFF_SECONDS_MAX)
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

    def _expect_next(self, previous: datetime | None) -> None:
        """Note when the next round is due. The work is ready until some rounds have been missed."""
        now = datetime.now(UTC)
        due = self.trigger.get_next_fire_time(previous, now)
        _due(self.name).set(due.timestamp())
        seconds = (due - now).total_seconds()
        if seconds > 0:  # else the first round is due at once, and ready is who has done it
            self._late_at = time.monotonic() + _ROUNDS_MISSED_MAX * seconds + _BACKOFF_SECONDS_MAX

    def _fitted(self, size: int, seconds: float) -> int:
        """The size of the next batch, after a full one of this size took so long."""
        factor = min(max(self._batch_seconds / max(seconds, 1e-6), 0.5), 2.0)
        return min(max(int(size * factor), BATCH_MIN), self._batch_max)

    def _complain(self, error: ShopError) -> None:
        # Said when it changes, not with each round: hours of it would bury everything else.
        if self._failure is None or self._failure.reason != error.reason:
            _log.warning("failed, is tried again", work=self.name, reason=error.reason, error=error.message)
        self._failure = error
