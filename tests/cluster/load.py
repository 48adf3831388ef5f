"""Load on the system from a pod of the cluster, with a record of each call."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.cluster.cluster import ADDRESSES, CALLER, CLIENTS, Cluster

CALLS_MIN = 200
_EXPECTED = {"INSUFFICIENT_STOCK"}
"""One product of the load generator is always scarce."""
_EXPIRED, _TTL_SECONDS = "RESERVATION_EXPIRED", 3.0
"""Some orders of the load generator hold their stock for only 3 seconds. A call that takes longer to create such an
order gets this reason, as the proto says."""


@dataclass(frozen=True)
class Call:
    """`began` is in seconds since the epoch. `reason` is that of the error, or empty."""

    began: float
    seconds: float
    reason: str

    @property
    def ended(self) -> float:
        return self.began + self.seconds

    @property
    def has_failed(self) -> bool:
        has_expired = self.reason == _EXPIRED and self.seconds > _TTL_SECONDS
        return bool(self.reason) and self.reason not in _EXPECTED and not has_expired


@dataclass
class Calls:
    """The calls of the load generator. Complete after its `with` block."""

    all: list[Call] = field(default_factory=list)

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.all if call.has_failed]

    def report(self, what: str) -> str:
        """Print the number of calls and of failed calls, and return the text for an assertion."""
        longest = max(call.seconds for call in self.all)
        rate = len(self.all) / (max(call.ended for call in self.all) - min(call.began for call in self.all))
        failed = dict(Counter(call.reason for call in self.failed))
        text = (
            f"{what}: {len(self.all)} calls ({rate:.0f} a second), failed: {failed or 0}, "
            f"the longest call took {longest:.1f} s"
        )
        print(text)
        return text


@contextmanager
def load(
    cluster: Cluster, caller: str = CALLER, namespace: str = CLIENTS, addresses: Sequence[str] = ADDRESSES
) -> Iterator[Calls]:
    """Generate load, 20 orders a second, during the `with` block, which begins after the first calls.

    `caller` is the pod that makes the calls, and `addresses` are those of both APIs as this pod knows them.
    """
    calls = Calls()
    with subprocess.Popen(
        cluster.python(namespace, caller, "load.py", *addresses),
        env=cluster.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as generator:
        assert generator.stdin is not None
        assert generator.stdout is not None
        try:
            assert generator.stdout.readline() == "started\n"
            yield calls
        finally:
            # The generator ends when its input is closed.
            generator.stdin.close()
        # The client may have logged lines before it, such as that it has reloaded its certificates.
        record = json.loads(generator.stdout.read().splitlines()[-1])
    calls.all += [Call(*call) for call in record]
    assert len(calls.all) >= CALLS_MIN
