import math
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from devstack.ports import free_ports
from shopctl.watch.scrape import Histogram as Seen
from shopctl.watch.scrape import Interval, Scrape, scrape
from shopctl.watch.unavailable import Unavailable


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def address(registry: CollectorRegistry) -> Iterator[str]:
    """The address of a process with these metrics."""
    (port,) = free_ports(1)
    server, thread = start_http_server(port, "127.0.0.1", registry)
    yield f"127.0.0.1:{port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_counter_is_a_rate_summed_over_the_labels_not_asked_for(registry: CollectorRegistry, address: str) -> None:
    calls = Counter("calls", "Calls", ["method", "status"], registry=registry)
    calls.labels("Get", "OK").inc(5)
    before = _scraped(address)
    calls.labels("Get", "OK").inc(2)
    calls.labels("Get", "ABORTED").inc()  # the first increment creates the series
    calls.labels("List", "OK").inc(0)
    interval = Interval(before, _scraped(address))

    assert interval.rate("calls_total", "method") == pytest.approx({("Get",): 3 / interval.seconds, ("List",): 0})
    assert interval.rate("nothing_total", "method") == {}


def test_a_counter_that_fell_began_anew() -> None:
    interval = Interval(*(Scrape(at, {"calls_total": {frozenset(): value}}) for at, value in ((10, 100), (12, 6))))

    assert interval.rate("calls_total") == {(): 3}


def test_a_gauge_is_as_it_is_now(registry: CollectorRegistry, address: str) -> None:
    queue = Gauge("queue", "Queue", ["name"], registry=registry)
    queue.labels("a").set(7)
    before = _scraped(address)
    queue.labels("a").set(3)
    queue.labels("b").set(1)
    interval = Interval(before, _scraped(address))

    assert interval.gauge("queue", "name") == {("a",): 3, ("b",): 1}
    assert interval.gauge("queue") == {(): 4}


def test_quantiles_are_of_the_interval_alone(registry: CollectorRegistry, address: str) -> None:
    took = Histogram("took_seconds", "Time", ["method"], buckets=(0.1, 0.2, 0.4), registry=registry)
    for _ in range(1_000):
        took.labels("Get").observe(0.05)
    before = _scraped(address)
    for value in (0.15, 0.15, 0.3, 0.3):
        took.labels("Get").observe(value)
    seen = Interval(before, _scraped(address)).histogram("took_seconds", "method")[("Get",)]

    assert seen.count == 4
    assert seen.mean == pytest.approx(0.225)
    assert seen.quantile(0.25) == pytest.approx(0.15)
    assert seen.quantile(0.5) == pytest.approx(0.2)
    assert seen.quantile(0.75) == pytest.approx(0.3)


def test_values_above_the_last_bound_count_as_that_bound() -> None:
    seen = Seen(seconds=1, count=2, total=20, buckets=[(0.5, 1), (math.inf, 2)])

    assert seen.quantile(0.99) == 0.5


def test_nothing_seen_has_no_quantile() -> None:
    seen = Seen(seconds=1, count=0, total=0, buckets=[(0.5, 0), (math.inf, 0)])

    assert (seen.quantile(0.5), seen.mean, seen.rate) == (None, None, 0)


def test_a_refused_connection_is_reported_as_unavailable() -> None:
    (port,) = free_ports(1)

    found = scrape(f"127.0.0.1:{port}")

    assert isinstance(found, Unavailable)
    assert "refused" in found.reason


def _scraped(address: str) -> Scrape:
    found = scrape(address)
    assert isinstance(found, Scrape)
    return found
