"""Run the benchmarks: `python -m benchmarks --help`."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import command, subjects
from benchmarks.command import POSTGRESQL, SQLITE
from benchmarks.http2 import LoadError
from benchmarks.load import Generator
from benchmarks.pgbench import Pgbench, PgbenchMissing
from benchmarks.results import Cell, Results, show
from benchmarks.scenarios import CREATE_ORDER, RESERVE_HOT, SCENARIOS, Scenario
from benchmarks.subjects import Subject
from devstack import kafka
from devstack.dev.collector import collecting
from devstack.stack import Databases

CALLS = (1, 16, 128)
CPU_CALLS = 64


VARIANTS = ("ours", "watched", "plain", "pgbench", "echo")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code: a wrong count fails the run, a missed goal does not."""
    options = _options(argv)
    results = command.measured(lambda console: _measure(options, console))
    if results is None:
        return 1
    show(results, command.output())
    if options.json:
        options.json.write_text(json.dumps(results.as_json(), indent=2) + "\n")
    return 0


def _measure(options: argparse.Namespace, console: Console) -> Results:
    results = Results()
    with ExitStack() as stack:
        found = _subjects(options, stack, console)
        for subject in found:
            stack.callback(subject.stop)
        for subject in found:
            subject.start()
        cells = _cells(options, found)
        columns = (TextColumn("{task.description:55}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(cells) * options.rounds)
            # Measure in rounds, and all variants in each round: other load on the machine then affects all variants
            # alike.
            for _ in range(options.rounds):
                for subject, scenario, calls in cells:
                    description = f"{scenario.name}, {calls} calls, {subject.name} {subject.database}"
                    progress.update(task, description=description)
                    try:
                        outcome = subject.measure(scenario, calls, options.seconds, options.warmup_seconds)
                    except LoadError as error:
                        raise LoadError(f"{description}: {error}") from error
                    results.add(Cell(scenario.name, subject.database, subject.name, calls), outcome)
                    progress.advance(task)
        for subject in found:
            subject.check()
    return results


def _cells(options: argparse.Namespace, found: Sequence[Subject]) -> list[tuple[Subject, Scenario, int]]:
    return [
        (subject, scenario, calls)
        for scenario in SCENARIOS
        if options.only in (None, scenario.name)
        for calls in options.calls
        or sorted({*CALLS, *([CPU_CALLS] if scenario in (RESERVE_HOT, CREATE_ORDER) else [])})
        for subject in found
        if subject.measures(scenario)
    ]


def _subjects(options: argparse.Namespace, stack: ExitStack, console: Console) -> list[Subject]:
    generator = stack.enter_context(Generator())
    found: list[Subject] = [subjects.Echo(generator)]
    broker = stack.enter_context(kafka.provide()) if options.with_relay else None
    if POSTGRESQL in options.databases:
        server = command.synced_server(stack, console)
        try:
            found.append(Pgbench(server))
        except PgbenchMissing as missing:
            console.print(f"[yellow]without pgbench:[/] {missing}", highlight=False)
        pids = [server.pid]
        found.append(subjects.plain(POSTGRESQL, Databases.on_server(server), generator, pids))
        found.append(subjects.ours(POSTGRESQL, Databases.on_server(server), generator, pids, broker))
        collector = stack.enter_context(collecting(console.print, command.folder(stack) / "traces.db"))
        watched = subjects.ours(POSTGRESQL, Databases.on_server(server), generator, pids, broker, collector=collector)
        found.append(watched)
    if SQLITE in options.databases:
        folder = command.folder(stack)
        found.append(subjects.plain(SQLITE, Databases.in_folder(folder / "plain"), generator, []))
        found.append(subjects.ours(SQLITE, Databases.in_folder(folder / "ours"), generator, [], broker))
    return [subject for subject in found if options.variants is None or subject.name in options.variants]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--databases", nargs="+", choices=(POSTGRESQL, SQLITE), default=(POSTGRESQL, SQLITE))
    parser.add_argument("--only", choices=[scenario.name for scenario in SCENARIOS], help="only this kind of call")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="only these variants")
    parser.add_argument("--calls", nargs="+", type=int, help="concurrent calls (1 16 128, and 64 for the goals)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement (%(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=0.5, help="warm-up before each one (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each cell (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: each cell once, with 1 and 16 calls")
    parser.add_argument("--with-relay", action="store_true", help="also run the consumers, the relay and a broker")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    options = parser.parse_args(argv)
    if options.quick:
        options.seconds, options.warmup_seconds, options.rounds, options.calls = 0.3, 0.2, 1, [1, 16]
    return options


if __name__ == "__main__":
    sys.exit(main())
