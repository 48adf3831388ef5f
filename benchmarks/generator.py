"""The load generator process: reads jobs as lines of JSON, and writes the outcome of each job as a line of JSON.

It also samples the CPU time of the measured processes, so that the samples match its measurement window.
"""

import base64
import json
import selectors
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import count, cycle

from benchmarks import cpu
from benchmarks.http2 import Connection, Credentials, LoadError, Tally

CONNECTIONS_MAX = 8
DRAIN_SECONDS = 30
_POLL_SECONDS = 0.1
_TAIL_DIGITS = 16


@dataclass(frozen=True)
class Job:
    """A job: `calls` concurrent calls for some time. The `bodies` are sent in turn.

    With a `tail_field`, each request gets a unique text in this field.

    With `credentials`, the fields of Credentials, the connections use TLS and the calls carry the token.

    With a `rate`, the job is an open loop instead: it sends `rate` calls per second on `calls` connections, even if
    earlier calls have not ended. The latency of a call counts from the time when the call was due.
    """

    target: str
    method: str
    bodies: list[str]  # base64
    calls: int
    seconds: float
    warmup_seconds: float
    tail_field: int | None = None
    rate: float | None = None
    processes: dict[str, list[int]] = field(default_factory=dict)
    credentials: dict[str, str] | None = None


@dataclass(frozen=True)
class Outcome:
    """The results of the window; `succeeded` and `failed` count the whole job. Times are in seconds."""

    rate: float
    p50: float
    p99: float
    cpu_per_request: dict[str, float]
    requests: int
    succeeded: int
    failed: int
    failure: str


def main() -> None:
    for line in sys.stdin:
        try:
            answer = asdict(run(Job(**json.loads(line))))
        except (LoadError, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def run(job: Job) -> Outcome:
    """Run the job: warm up, measure, and wait for the last calls."""
    tally = Tally()
    shares = min(job.calls, CONNECTIONS_MAX)
    next_request = _requests(job)
    credentials = Credentials(**job.credentials) if job.credentials else None
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        connections = []
        for share in range(shares):
            calls = 0 if job.rate else len(range(share, job.calls, shares))
            connection = Connection(job.target, job.method, calls, next_request, tally, credentials)
            stack.callback(connection.close)
            connections.append(connection)
            selector.register(connection, selectors.EVENT_READ, connection.receive)
            connection.start()
        pump = _paced(job.rate, connections) if job.rate else _pump
        pump(selector, job.warmup_seconds)
        before = _cpu(job)
        begin = time.perf_counter()
        tally.window = (begin, float("inf"))
        pump(selector, job.seconds)
        # On a busy machine a short window may end before its first response, so extend it until there is a response.
        give_up = time.perf_counter() + DRAIN_SECONDS
        while not (tally.latencies or tally.failed) and time.perf_counter() < give_up:
            pump(selector, _POLL_SECONDS)
        end = time.perf_counter()
        after = _cpu(job)
        tally.window = (begin, end)
        _drain(selector, connections)
    if not tally.latencies:
        raise LoadError(f"no call succeeded in time: {tally.failure or 'no response'}")
    return summary(
        len(tally.latencies) / (end - begin),
        tally.latencies,
        {name: after[name] - before[name] for name in before},
        succeeded=tally.succeeded,
        failed=tally.failed,
        failure=tally.failure,
    )


def summary(
    rate: float,
    latencies: Sequence[float],
    cpu_seconds: Mapping[str, float],
    *,
    succeeded: int,
    failed: int = 0,
    failure: str = "",
) -> Outcome:
    """Return the outcome of a window with these latencies and this CPU time."""
    ordered, requests = sorted(latencies), len(latencies)
    return Outcome(
        rate=rate,
        p50=ordered[requests // 2],
        p99=ordered[min(requests - 1, requests * 99 // 100)],
        cpu_per_request={name: spent / requests for name, spent in cpu_seconds.items()},
        requests=requests,
        succeeded=succeeded,
        failed=failed,
        failure=failure,
    )


def _pump(selector: selectors.BaseSelector, seconds: float) -> None:
    until = time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        for key, _ in selector.select(left):
            key.data()


def _paced(rate: float, connections: Sequence[Connection]) -> Callable[[selectors.BaseSelector, float], None]:
    """Return a function that does what `_pump` does, and also sends each call when it is due."""
    turns = cycle(connections)

    def pump(selector: selectors.BaseSelector, seconds: float) -> None:
        due = time.perf_counter()
        until = due + seconds
        while due < until:
            _pump(selector, due - time.perf_counter())
            next(turns).call(due)
            due += 1 / rate

    return pump


def _drain(selector: selectors.BaseSelector, connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.draining = True
    give_up = time.perf_counter() + DRAIN_SECONDS
    while not all(connection.is_idle for connection in connections):
        if time.perf_counter() > give_up:
            raise LoadError("the last calls got no response in time")
        for key, _ in selector.select(1):
            key.data()


def _cpu(job: Job) -> dict[str, float]:
    spent = {name: sum(map(cpu.seconds, roots)) for name, roots in job.processes.items()}
    return spent | {"client": time.process_time()}


def _requests(job: Job) -> Callable[[], bytes]:
    bodies = cycle([base64.b64decode(body) for body in job.bodies]).__next__
    if job.tail_field is None:
        return bodies
    head = bytes((job.tail_field << 3 | 2, _TAIL_DIGITS))
    number = count(time.time_ns()).__next__
    return lambda: bodies() + head + b"%016x" % number()


if __name__ == "__main__":
    main()
