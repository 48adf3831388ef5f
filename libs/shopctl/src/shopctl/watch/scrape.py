"""The metrics of a process, scraped as Prometheus does it, and what two scrapes say of the time between them."""

import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from shopctl.watch.away import Away

_TIMEOUT_SECONDS = 2.0
# A proxy of the environment is meant for the outside, and the processes are not there.
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Labels: TypeAlias = frozenset[tuple[str, str]]
Key: TypeAlias = tuple[str, ...]
"""The values of the labels that are asked for, in their order."""


@dataclass(frozen=True)
class Scrape:
    """Every sample of a process at one moment, by the sample's name and its labels."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]


def scrape(address: str) -> Scrape | Away:
    """What http://ADDRESS/metrics says now."""
    try:
        with _DIRECTLY.open(f"http://{address}/metrics", timeout=_TIMEOUT_SECONDS) as answer:
            text = answer.read().decode()
    except (OSError, ValueError) as error:  # URLError and a connection that breaks off are OSErrors
        return Away(str(getattr(error, "reason", error)))
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return Scrape(time.monotonic(), samples)


@dataclass(frozen=True)
class Histogram:
    """What was observed in a time: how often a value was at most so large, by ascending bounds."""

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
        """As histogram_quantile has it: spread evenly within a bucket; above the last bound, that bound."""
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
        """A gauge as it is now, summed over the labels that are not asked for."""
        sums: dict[Key, float] = defaultdict(float)
        for having, value in self.after.samples.get(name, {}).items():
            sums[_key(having, labels)] += value
        return dict(sums)

    def rate(self, name: str, *labels: str) -> dict[Key, float]:
        """By how much a counter grew a second."""
        return {key: growth / self.seconds for key, growth in self._growth(name, labels).items()}

    def histogram(self, name: str, *labels: str) -> dict[Key, Histogram]:
        """What a histogram observed in this time."""
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
            # A counter that fell began anew with its process; one that was not there began at nothing.
            before = earlier.get(having, 0.0)
            sums[_key(having, labels)] += value - before if value >= before else value
        return dict(sums)


def _key(having: Labels, labels: Sequence[str]) -> Key:
    values = dict(having)
    return tuple(values.get(label, "") for label in labels)
