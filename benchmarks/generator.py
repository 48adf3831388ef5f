"""The load generator: a process of its own, which takes jobs as lines of JSON and answers each with one.

It samples the CPU time of the processes that it is told of, so that the moments are those of its own window.
"""

import base64
import json
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, cycle

from benchmarks import cpu
from benchmarks.http2 import Connection, LoadError, Tally

CONNECTIONS_MAX = 8
DRAIN_SECONDS = 30
_TAIL_DIGITS = 16


@dataclass(frozen=True)
class Job:
    """So many calls at once for so long. `bodies` are sent in turn, each with a text field that is never the same."""

    target: str
    method: str
    bodies: list[str]  # base64
    calls: int
    seconds: float
    warmup_seconds: float
    tail_field: int | None = None
    processes: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What the window showed; `succeeded` and `failed` are of the whole job. Times are in seconds."""

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
    """Do the job: warm up, measure, let the last calls end."""
    tally = Tally()
    shares = min(job.calls, CONNECTIONS_MAX)
    next_request = _requests(job)
    connections = [
        Connection(job.target, job.method, len(range(n, job.calls, shares)), next_request, tally) for n in range(shares)
    ]
    poll = select.epoll()
    by_file = {connection.fileno(): connection for connection in connections}
    for file, connection in by_file.items():
        poll.register(file, select.EPOLLIN)
        connection.start()
    begin = time.perf_counter() + job.warmup_seconds
    _pump(poll, by_file, begin)
    tally.window = (time.perf_counter(), float("inf"))
    before = _cpu(job)
    _pump(poll, by_file, tally.window[0] + job.seconds)
    end = time.perf_counter()
    after = _cpu(job)
    tally.window = (tally.window[0], end)
    for connection in connections:
        connection.draining = True
    give_up = time.perf_counter() + DRAIN_SECONDS
    while not all(connection.is_idle for connection in connections):
        if time.perf_counter() > give_up:
            raise LoadError("the last calls were not answered")
        for file, _ in poll.poll(0.1):
            by_file[file].receive()
    for connection in connections:
        connection.close()
    poll.close()
    if not tally.latencies:
        raise LoadError(f"no call succeeded: {tally.failure}")
    return summary(
        len(tally.latencies) / (end - tally.window[0]),
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
    """The outcome of a window with these latencies, in which this CPU time was spent."""
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


def _pump(poll: select.epoll, by_file: dict[int, Connection], until: float) -> None:
    while (left := until - time.perf_counter()) > 0:
        for file, _ in poll.poll(left):
            by_file[file].receive()


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
