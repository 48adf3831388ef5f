"""What the relay counts, each by database."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_DELAY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """The metrics of one database's outbox."""

    def __init__(self, database: str, families: "Families") -> None:
        self.shipped = families.shipped.labels(database)
        self.failures = families.failures.labels(database)
        self.delay_seconds = families.delay_seconds.labels(database)
        self.rows = families.rows.labels(database)
        self.oldest_seconds = families.oldest_seconds.labels(database)
        self.shards = families.shards.labels(database)
        self.blocked_shards = families.blocked_shards.labels(database)


class Families:
    """The metrics of the process; made once for a registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        by = ["database"]
        self.shipped = Counter("relay_events_shipped", "Events acknowledged by the broker", by, registry=registry)
        self.failures = Counter("relay_failures", "Batches not fully acknowledged", by, registry=registry)
        self.delay_seconds = Histogram(
            "relay_delay_seconds",
            "From when an event was written to when the broker had it",
            by,
            buckets=_DELAY_BUCKETS,
            registry=registry,
        )
        self.rows = Gauge("relay_outbox_rows", "Events that wait, counted to 100,000", by, registry=registry)
        self.oldest_seconds = Gauge("relay_outbox_oldest_seconds", "Age of the oldest event", by, registry=registry)
        self.shards = Gauge("relay_shards", "Shards that this process ships", by, registry=registry)
        self.blocked_shards = Gauge(
            "relay_blocked_shards", "Shards whose oldest event cannot be shipped as it is", by, registry=registry
        )
