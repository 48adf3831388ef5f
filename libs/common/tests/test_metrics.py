"""`observe_all` has the same result as observing each value."""

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from shop_common.telemetry.metrics import Histogram

BOUNDS = (0.005, 0.01, 1.0)
BATCHES: tuple[list[float], ...] = ([0.001, 0.005, 0.0051, 0.5, 1.0, 2.0, 300.0], [], [-0.25, 0.01, 0.01])


def test_a_batch_counts_as_its_events_would_one_by_one() -> None:
    at_once, one_by_one = CollectorRegistry(), CollectorRegistry()
    batched = Histogram("delay", "A delay", ("database",), registry=at_once, buckets=BOUNDS).labels("orders")
    plain = prometheus_client.Histogram("delay", "A delay", ("database",), registry=one_by_one, buckets=BOUNDS).labels(
        "orders"
    )

    for batch in BATCHES:
        batched.observe_all(batch)
        for seconds in batch:
            plain.observe(seconds)

    assert _told(at_once) == _told(one_by_one)
    assert 'delay_count{database="orders"} 10.0' in _told(at_once)


def _told(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "created" not in line]
