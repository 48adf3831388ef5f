"""Metrics for Prometheus: declared beside what they count, made at their first use, listed in docs/metrics.md.

Names and units follow the OpenTelemetry conventions as Prometheus writes them: seconds, bytes, `_total` for counters.
A label has few values: a method, a status, a topic; never an id.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, Literal, TypeVar

import prometheus_client
from prometheus_client import Counter, Gauge

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class Histogram(prometheus_client.Histogram):
    """Prometheus' histogram, which takes a batch at once as well."""

    def observe_all(self, amounts: Iterable[float]) -> None:
        """Observe each of them. One by one it would cost a tenth of an event's way to Kafka."""
        ordered = sorted(amounts)
        places = [0, *(bisect_right(ordered, bound) for bound in self._upper_bounds)]
        for bucket, (first, last) in zip(self._buckets, pairwise(places), strict=True):
            if last > first:
                bucket.inc(last - first)
        self._sum.inc(sum(ordered))


_Collector = TypeVar("_Collector", Counter, Gauge, Histogram)


@dataclass(frozen=True)
class Declaration:
    """What the reference says of a metric."""

    kind: str
    name: str
    meaning: str
    labels: tuple[str, ...]
    module: str


_declared: list[Declaration] = []
_making = threading.Lock()


class Metric(Generic[_Collector]):
    """A metric of this process. Called with its labels' values, in their order, it is what counts or observes."""

    def __init__(self, declaration: Declaration, make: Callable[[Declaration], _Collector]) -> None:
        self.declaration = declaration
        self._make: Callable[[Declaration], _Collector] = make
        self._family: _Collector | None = None
        self._children: dict[tuple[str, ...], _Collector] = {}
        _declared.append(declaration)

    def __call__(self, *values: str) -> _Collector:
        child = self._children.get(values)
        if child is None:
            # Two threads at once would make the same: `labels` gives both the one child, but a family is made once.
            family = self._family_made()
            child = self._children[values] = family.labels(*values) if values else family
        return child

    def _family_made(self) -> _Collector:
        with _making:
            if self._family is None:
                self._family = self._make(self.declaration)
            return self._family


class _Exposition:
    enabled = False


def enable() -> None:
    """Have metrics collected that cost time on each call. Call it if METRICS_PORT is set."""
    _Exposition.enabled = True


def is_enabled() -> bool:
    """Return whether this process exposes its metrics."""
    return _Exposition.enabled


def counter(module: str, name: str, meaning: str, *labels: str) -> Metric[Counter]:
    """Declare a counter; its name ends in `_total`."""
    declaration = Declaration("counter", name, meaning, labels, module)
    return Metric(declaration, lambda its: Counter(its.name, its.meaning, its.labels))


def gauge(
    module: str, name: str, meaning: str, *labels: str, over_workers: Literal["livesum", "livemax"] = "livesum"
) -> Metric[Gauge]:
    """Declare a gauge. With WORKERS > 1 it is the sum, or the largest, of those of the workers that live."""
    declaration = Declaration("gauge", name, meaning, labels, module)
    return Metric(declaration, lambda its: Gauge(its.name, its.meaning, its.labels, multiprocess_mode=over_workers))


def histogram(
    module: str, name: str, meaning: str, *labels: str, buckets: Sequence[float] = SECONDS
) -> Metric[Histogram]:
    """Declare a histogram."""
    declaration = Declaration("histogram", name, meaning, labels, module)
    return Metric(declaration, lambda its: Histogram(its.name, its.meaning, its.labels, buckets=buckets))


def declared() -> Sequence[Declaration]:
    """Every metric of the modules that have been imported, in the sequence of their declaration."""
    return tuple(_declared)
