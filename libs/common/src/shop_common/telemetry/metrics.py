"""Metrics for Prometheus. A metric is declared beside the code that updates it; docs/metrics.md lists all metrics.

Names and units follow the OpenTelemetry conventions for Prometheus: seconds, bytes, `_total` for counters. A label must
have few distinct values. A method, a status or a topic may be a label; an id must never be one.
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
    """A histogram that can also observe many values at once."""

    def observe_all(self, amounts: Iterable[float]) -> None:
        """Observe each value. Calling `observe` for each event would take a tenth of the relay's time."""
        ordered = sorted(amounts)
        bounds = [0, *(bisect_right(ordered, bound) for bound in self._upper_bounds)]
        for bucket, (first, last) in zip(self._buckets, pairwise(bounds), strict=True):
            if last > first:
                bucket.inc(last - first)
        self._sum.inc(sum(ordered))


_Collector = TypeVar("_Collector", Counter, Gauge, Histogram)


@dataclass(frozen=True)
class Declaration:
    """The entry of a metric in docs/metrics.md."""

    kind: str
    name: str
    meaning: str
    labels: tuple[str, ...]
    module: str


_declared: list[Declaration] = []
_creation = threading.Lock()


class Metric(Generic[_Collector]):
    """A metric of this process, created at its first use. Call it with the label values, in order, to update it."""

    def __init__(self, declaration: Declaration, make: Callable[[Declaration], _Collector]) -> None:
        self.declaration = declaration
        self._make: Callable[[Declaration], _Collector] = make
        self._family: _Collector | None = None
        self._children: dict[tuple[str, ...], _Collector] = {}
        _declared.append(declaration)

    def __call__(self, *values: str) -> _Collector:
        child = self._children.get(values)
        if child is None:
            # Two threads may reach this line at the same time. `labels` returns the same child to both, and a lock
            # prevents a second family.
            family = self._get_family()
            child = self._children[values] = family.labels(*values) if values else family
        return child

    def _get_family(self) -> _Collector:
        with _creation:
            if self._family is None:
                self._family = self._make(self.declaration)
            return self._family


class _Exposition:
    enabled = False


def enable() -> None:
    """Also collect the metrics that cost time on each call. Call this function if METRICS_PORT is set."""
    _Exposition.enabled = True


def is_enabled() -> bool:
    """Return whether this process exposes its metrics."""
    return _Exposition.enabled


def counter(module: str, name: str, meaning: str, *labels: str) -> Metric[Counter]:
    """Declare a counter. Its name must end in `_total`."""
    declaration = Declaration("counter", name, meaning, labels, module)
    return Metric(declaration, lambda its: Counter(its.name, its.meaning, its.labels))


def gauge(
    module: str, name: str, meaning: str, *labels: str, over_workers: Literal["livesum", "livemax"] = "livesum"
) -> Metric[Gauge]:
    """Declare a gauge. With WORKERS > 1 its value is the sum, or the maximum, over the running workers."""
    declaration = Declaration("gauge", name, meaning, labels, module)
    return Metric(declaration, lambda its: Gauge(its.name, its.meaning, its.labels, multiprocess_mode=over_workers))


def histogram(
    module: str, name: str, meaning: str, *labels: str, buckets: Sequence[float] = SECONDS
) -> Metric[Histogram]:
    """Declare a histogram."""
    declaration = Declaration("histogram", name, meaning, labels, module)
    return Metric(declaration, lambda its: Histogram(its.name, its.meaning, its.labels, buckets=buckets))


def declared() -> Sequence[Declaration]:
    """Return the metrics of all imported modules, in the order of their declaration."""
    return tuple(_declared)
