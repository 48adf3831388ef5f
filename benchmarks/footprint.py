"""Measures start-up time, memory at rest and after load, and the effect of more workers.

`python -m benchmarks.footprint --help`
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import command, cpu
from benchmarks.command import POSTGRESQL, SQLITE
from benchmarks.generator import Outcome
from benchmarks.load import Generator
from benchmarks.results import served
from benchmarks.scenarios import CREATE_ORDER, RESERVE_SPREAD, Scenario
from benchmarks.subjects import ALONE, NO_BROKER, QUIET, READY_SECONDS, Stored
from devstack import kafka
from devstack.process import Process
from devstack.stack import Options, Stack

CALLS = 64
WORKER_CALLS = 128
REST_SECONDS = 3.0
_POLL_SECONDS = 0.005
_MIB = 1024 * 1024


@dataclass
class Footprint:
    """The results on one database, by process; times in seconds, memory in bytes."""

    started: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Time until ready: elapsed time and CPU time."""
    at_rest: dict[str, int] = field(default_factory=dict)
    after_load: dict[str, int] = field(default_factory=dict)
    load: Outcome | None = None
    by_workers: dict[int, tuple[dict[Scenario, Outcome], int]] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code."""
    options = _options(argv)
    out = command.output()
    for database in options.databases:
        found = command.measured(partial(_on, database, options))
        if found is None:
            return 1
        _show(database, found, options, out)
    return 0


def _on(database: str, options: argparse.Namespace, console: Console) -> Footprint:
    footprint = Footprint()
    with ExitStack() as stack:
        new, pids = command.databases(database, stack, console)
        generator = stack.enter_context(Generator())
        _whole_system(footprint, Stored("ours", database, new(), generator, pids), options, console)
        for workers in options.workers:
            console.print(f"{database}: {workers} workers", highlight=False)
            subject = Stored("ours", database, new(), generator, pids)
            system = Stack(subject.databases, NO_BROKER, options=Options(environment=ALONE | {"WORKERS": str(workers)}))
            subject.serve_by(system)
            with ExitStack() as running:
                running.callback(system.stop)
                subject.start()
                outcomes = {
                    each: _measured(subject, each, WORKER_CALLS, options) for each in (RESERVE_SPREAD, CREATE_ORDER)
                }
                memory = sum(map(memory_of, (system.inventory_api, system.order_api)))
                subject.check()
            footprint.by_workers[workers] = outcomes, memory
    return footprint


def _whole_system(footprint: Footprint, subject: Stored, options: argparse.Namespace, console: Console) -> None:
    """Measure all four processes with a broker: at each start, at rest, and after a load of CreateOrder."""
    subject.fill()
    subject.events_stay = False
    with kafka.provide() as broker:
        system = Stack(subject.databases, broker, options=Options(environment=QUIET))
        subject.serve_by(system)
        try:
            for _ in range(options.rounds):
                console.print(f"{subject.database}: start", highlight=False)
                system.stop()
                for process in system.processes:
                    footprint.started[process.name].append((seconds_to_ready(process), cpu.seconds(process.pid)))
            time.sleep(REST_SECONDS)
            footprint.at_rest = {process.name: memory_of(process) for process in system.processes}
            console.print(f"{subject.database}: load", highlight=False)
            footprint.load = _measured(subject, CREATE_ORDER, CALLS, options)
            footprint.after_load = {process.name: memory_of(process) for process in system.processes}
        finally:
            system.stop()
        subject.check()


def _measured(subject: Stored, scenario: Scenario, calls: int, options: argparse.Namespace) -> Outcome:
    return subject.measure(scenario, calls, options.seconds, 1.0)


def seconds_to_ready(process: Process) -> float:
    """Start the process. Returns the time until its health service reports readiness."""
    began = time.monotonic()
    process.start()
    while not process.is_ready():
        if time.monotonic() > began + READY_SECONDS:
            raise TimeoutError(f"{process.name} is not ready after {READY_SECONDS} s\n{process.tail()}")
        time.sleep(_POLL_SECONDS)
    return time.monotonic() - began


def memory_of(process: Process) -> int:
    """Return the memory of the process and its children as PSS, which divides each shared page among its processes."""
    leader = psutil.Process(process.pid)
    pss: int = sum(each.memory_full_info().pss for each in (leader, *leader.children(recursive=True)))
    return pss


def _show(database: str, found: Footprint, options: argparse.Namespace, console: Console) -> None:
    assert found.load is not None
    table = Table(
        "process", title=f"{database}: {found.load.rate:,.0f} orders per second as load", title_justify="left"
    )
    for name in ("start, s", "of it CPU, s", "at rest, MiB", "after load, MiB"):
        table.add_column(name, justify="right")
    for name, starts in found.started.items():
        elapsed, spent = map(statistics.median, zip(*starts, strict=True))
        rest, loaded = found.at_rest[name] / _MIB, found.after_load[name] / _MIB
        table.add_row(name, f"{elapsed:.2f}", f"{spent:.2f}", f"{rest:.0f}", f"{loaded:.0f}")
    console.print(table)
    table = Table(
        "workers", title=f"{database}: {WORKER_CALLS} concurrent calls, {options.seconds:g} s", title_justify="left"
    )
    for name in ("ReserveStock/s", "p99 ms", "CPU ms", "CreateOrder/s", "p99 ms", "CPU ms", "both APIs, MiB"):
        table.add_column(name, justify="right")
    for workers, (outcomes, memory) in found.by_workers.items():
        cells = [
            (f"{each.rate:,.0f}", f"{each.p99 * 1e3:.1f}", f"{served(each.cpu_per_request) * 1e3:.2f}")
            for each in outcomes.values()
        ]
        table.add_row(str(workers), *cells[0], *cells[1], f"{memory / _MIB:.0f}")
    console.print(table)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__.partition("\n")[0])
    parser.add_argument("--databases", nargs="+", choices=(POSTGRESQL, SQLITE), default=(POSTGRESQL, SQLITE))
    parser.add_argument("--rounds", type=int, default=5, help="starts of each process (%(default)s)")
    parser.add_argument("--workers", nargs="*", type=int, default=(1, 2, 4), help="workers to compare (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
