"""The metrics of the relay, labelled by database."""

from shop_common.telemetry import metrics

_shipped = metrics.counter(
    __name__, "shop_relay_shipped_events_total", "Events that the broker has acknowledged", "database"
)
_failures = metrics.counter(
    __name__, "shop_relay_failed_batches_total", "Batches that were not acknowledged as a whole", "database"
)
_delay = metrics.histogram(
    __name__,
    "shop_relay_delay_seconds",
    "From when an event was written to when the broker had it",
    "database",
    buckets=metrics.LONG_SECONDS,
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
        self.delay_seconds = _delay(database)
        self.rows = _pending(database)
        self.oldest_seconds = _oldest(database)
        self.shards = _owned(database)
        self.blocked_shards = _blocked(database)
