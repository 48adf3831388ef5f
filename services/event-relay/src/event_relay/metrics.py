"""What the relay counts, each by database."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from prometheus_client import Histogram

from shop_common import metrics


class BatchHistogram(Histogram):
    """A histogram that takes a batch at once: one by one they would cost a tenth of an event's way to Kafka."""

    def observe_all(self, amounts: Iterable[float]) -> None:
        """Observe each of them."""
        ordered = sorted(amounts)
        places = [0, *(bisect_right(ordered, bound) for bound in self._upper_bounds)]
        for bucket, (first, last) in zip(self._buckets, pairwise(places), strict=True):
            if last > first:
                bucket.inc(last - first)
        self._sum.inc(sum(ordered))


_shipped = metrics.counter(
    __name__, "shop_relay_shipped_events_total", "Events that the broker has acknowledged", "database"
)
_failures = metrics.counter(
    __name__, "shop_relay_failed_batches_total", "Batches that were not acknowledged as a whole", "database"
)
_delay = metrics.Metric(
    metrics.Declaration(
        "histogram",
        "shop_relay_delay_seconds",
        "From when an event was written to when the broker had it",
        ("database",),
        __name__,
    ),
    lambda its: BatchHistogram(its.name, its.meaning, its.labels, buckets=metrics.LONG_SECONDS),
)
_pending = metrics.gauge(
    __name__, "shop_outbox_pending_events", "Events that wait to be shipped, counted to 100,000", "database"
)
_oldest = metrics.gauge(
    __name__, "shop_outbox_oldest_event_age_seconds", "Age of the oldest event that waits", "database"
)
_owned = metrics.gauge(
    __name__, "shop_relay_owned_shards", "Shards that this process ships; 16 over all relays", "database"
)
_blocked = metrics.gauge(
    __name__, "shop_relay_blocked_shards", "Shards whose oldest event can't be shipped as it is", "database"
)


class Metrics:
    """The metrics of one database's outbox."""

    def __init__(self, database: str) -> None:
        self.shipped = _shipped(database)
        self.failures = _failures(database)
        delay = _delay(database)
        assert isinstance(delay, BatchHistogram)
        self.delay_seconds = delay
        self.rows = _pending(database)
        self.oldest_seconds = _oldest(database)
        self.shards = _owned(database)
        self.blocked_shards = _blocked(database)
