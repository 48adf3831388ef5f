"""Compares reservations of one hot product, by many concurrent callers: through the client, and by single calls.

`python -m benchmarks.client --help`
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmarks import command, stock
from benchmarks.client_callers import CALLS, SIDES, TASKS, THREADS, Job
from benchmarks.command import POSTGRESQL, SQLITE
from benchmarks.generator import Outcome
from benchmarks.http2 import LoadError
from benchmarks.subjects import ALONE, NO_BROKER, READY_SECONDS, STOP_SECONDS, fill_inventory
from devstack.stack import Options, Stack

CALLERS = (1, 128)
EXTRA_SECONDS = 90

Results = dict[tuple[str, int], list[Outcome]]

TITLES = {
    CALLS: "single calls, threads",
    THREADS: "client, threads",
    TASKS: "client, tasks",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code."""
    options = _options(argv)
    results = command.measured(partial(_measure, options))
    if results is None:
        return 1
    _show(results, command.output())
    return 0


def _measure(options: argparse.Namespace, console: Console) -> Results:
    results: Results = defaultdict(list)
    with ExitStack() as stack:
        new, pids = command.databases(options.database, stack, console)
        databases = new()
        fill_inventory(databases.inventory)
        system = Stack(databases, NO_BROKER, options=Options(environment=ALONE))
        server = system.inventory_api
        server.start()
        stack.callback(server.stop, STOP_SECONDS)
        server.wait_ready(READY_SECONDS)
        processes = {"server": [server.pid]} | ({"database": pids} if pids else {})
        # Measure in rounds, and both sides in each round: other load on the machine then affects both alike.
        for _ in range(options.rounds):
            for callers in options.callers:
                for side in SIDES:
                    console.print(f"{TITLES[side]}, {callers} callers", highlight=False)
                    job = Job(
                        side, system.inventory_address, callers, options.seconds, options.warmup_seconds, processes
                    )
                    results[side, callers].append(_run(job))
        granted = sum(outcome.succeeded for outcomes in results.values() for outcome in outcomes)
        stock.check_inventory(databases.inventory, granted, events=True)
    return results


def _run(job: Job) -> Outcome:
    """Run the job in a process of its own. Raises LoadError if a call failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.client_callers", json.dumps(asdict(job))],
        capture_output=True,
        text=True,
        timeout=job.warmup_seconds + job.seconds + EXTRA_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise LoadError(f"{TITLES[job.side]}, {job.callers} callers: {done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout))


def _show(results: Results, console: Console) -> None:
    table = Table("callers", "side", title="reservations of one product, medians of the rounds", title_justify="left")
    for name in (
        "a second",
        "ratio",
        "p50 ms",
        "p99 ms",
        "CPU server ms",
        "CPU database ms",
        "CPU client ms",
        "CPU ratio",
    ):
        table.add_column(name, justify="right")
    for (side, callers), outcomes in results.items():
        # The ratio to the single calls of the same round varies less than the numbers themselves.
        ratios = [own.rate / single.rate for own, single in zip(outcomes, results[CALLS, callers], strict=True)]
        spent = [
            f"{statistics.median(each.cpu_per_request.get(name, 0.0) for each in outcomes) * 1e3:.3f}"
            for name in ("server", "database", "client")
        ]
        costs = [_cpu(own) / _cpu(single) for own, single in zip(outcomes, results[CALLS, callers], strict=True)]
        table.add_row(
            str(callers),
            TITLES[side],
            f"{statistics.median(each.rate for each in outcomes):,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{statistics.median(each.p50 for each in outcomes) * 1e3:.1f}",
            f"{statistics.median(each.p99 for each in outcomes) * 1e3:.1f}",
            *spent,
            f"{statistics.median(costs):.2f}",
        )
    console.print(table)


def _cpu(outcome: Outcome) -> float:
    """Return the CPU time of a reservation in all processes."""
    return sum(outcome.cpu_per_request.values())


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__.partition("\n")[0])
    parser.add_argument("--database", choices=(POSTGRESQL, SQLITE), default=POSTGRESQL)
    parser.add_argument("--callers", nargs="+", type=int, default=CALLERS, help="concurrent callers (1 128)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement (%(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=1.0, help="warm-up before each one (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
