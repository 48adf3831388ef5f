"""Scrapes the metrics of a process, and computes rates and quantiles between two scrapes."""

import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from shopctl.watch.unavailable import Unavailable

_TIMEOUT_SECONDS = 2.0
# Ignore the environment's proxy: it cannot reach the processes.
_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Labels: TypeAlias = frozenset[tuple[str, str]]
Key: TypeAlias = tuple[str, ...]
"""The values of the requested labels, in the requested order."""


@dataclass(frozen=True)
class Scrape:
    """All samples of a process at one point in time, by name and labels."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]


def scrape(address: str) -> Scrape | Unavailable:
    """Scrape http://ADDRESS/metrics."""
    try:
        text = get(address, "/metrics").decode()
    except (OSError, ValueError) as error:
        return Unavailable(str(getattr(error, "reason", error)))
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return Scrape(time.monotonic(), samples)


def get(address: str, path: str, bytes_max: int | None = None) -> bytes:
    """Return the content at a path of the metrics port, at most `bytes_max` of it. Raises OSError or ValueError.

    All errors of urllib, including that of a broken connection, are OSErrors.
    """
    with _WITHOUT_PROXY.open(f"http://{address}{path}", timeout=_TIMEOUT_SECONDS) as response:
        body: bytes = response.read(bytes_max)
        return body


@dataclass(frozen=True)
class Histogram:
    """The observations in an interval. `buckets` are pairs of an upper bound and a cumulative count, ascending."""

    seconds: float
    count: float
    total: float
    buckets: Sequence[tuple[float, float]]

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """Return the quantile as PromQL's histogram_quantile does: linear within a bucket, at most the last bound.

        Returns None if there are no observations.
        """
        rank, low, below = q * self.count, 0.0, 0.0
        for bound, at_most in self.buckets:
            if at_most >= rank and at_most > below:
                return low if bound == float("inf") else low + (bound - low) * (rank - below) / (at_most - below)
            low, below = (low if bound == float("inf") else bound), at_most
        return None


@dataclass(frozen=True)
class Interval:
    """The time between two scrapes of a process."""

    before: Scrape
    after: Scrape
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", max(self.after.at - self.before.at, 1e-9))

    def gauge(self, name: str, *labels: str) -> dict[Key, float]:
        """Return the current values of a gauge, summed over all labels that are not requested."""
        sums: dict[Key, float] = defaultdict(float)
        for having, value in self.after.samples.get(name, {}).items():
            sums[_key(having, labels)] += value
        return dict(sums)

    def rate(self, name: str, *labels: str) -> dict[Key, float]:
        """Return the growth of a counter per second, summed over all labels that are not requested."""
        return {key: growth / self.seconds for key, growth in self._growth(name, labels).items()}

    def histogram(self, name: str, *labels: str) -> dict[Key, Histogram]:
        """Return the observations of a histogram in the interval, summed over all labels that are not requested."""
        counts, totals = self._growth(f"{name}_count", labels), self._growth(f"{name}_sum", labels)
        buckets: dict[Key, list[tuple[float, float]]] = defaultdict(list)
        for (*key, bound), at_most in self._growth(f"{name}_bucket", (*labels, "le")).items():
            buckets[tuple(key)].append((float(bound), at_most))
        return {
            key: Histogram(self.seconds, count, totals.get(key, 0), sorted(buckets[key]))
            for key, count in counts.items()
        }

    def _growth(self, name: str, labels: Sequence[str]) -> dict[Key, float]:
        sums: dict[Key, float] = defaultdict(float)
        earlier = self.before.samples.get(name, {})
        for having, value in self.after.samples.get(name, {}).items():
            # A counter that decreased was reset by a restart; a new counter started at zero.
            before = earlier.get(having, 0.0)
            sums[_key(having, labels)] += value - before if value >= before else value
        return dict(sums)


def _key(having: Labels, labels: Sequence[str]) -> Key:
    values = dict(having)
    return tuple(values.get(label, "") for label in labels)
