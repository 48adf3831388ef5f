"""Compares the cost of a call in the present tree and in another revision: `python -m benchmarks.compare REVISION`.

Both revisions run at the same time, each with its own environment and its own databases on one PostgreSQL. They are
measured in turn in short rounds, so that other load on the machine affects both alike. The exit code is 1 if a call
costs more than the limit with statistical confidence.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import command, stock
from benchmarks.command import POSTGRESQL
from benchmarks.generator import Outcome
from benchmarks.load import Generator
from benchmarks.ratios import Ratio, ratio_of
from benchmarks.results import served
from benchmarks.revisions import PRESENT, Tree, checked_out
from benchmarks.scenarios import CREATE_ORDER, RESERVE_HOT, Scenario
from benchmarks.subjects import ALONE, NO_BROKER, Echo, Services, Stored
from devstack.process import Process, ProcessEnded
from devstack.stack import Databases, Options, Ports, Stack

CALLS = 64
MIGRATE_SECONDS = 60

SAME_HASHES = {"PYTHONHASHSEED": "0"}
"""A fixed hash seed: otherwise the layout of dictionaries, and so their speed, differs from start to start."""

EMPTY = replace(RESERVE_HOT, name="empty", title="an empty call", reservations=0)
"""A call of the echo, which costs only what the server itself costs."""

Pairs = dict[Scenario, list[tuple[Outcome, Outcome]]]
"""By call and round: the outcome of the revision, and that of the present tree."""


class Side(Stored):
    """Both APIs of one source tree."""

    def __init__(self, tree: Tree, databases: Databases, generator: Generator, database_pid: int) -> None:
        super().__init__(tree.name, POSTGRESQL, databases, generator, [database_pid])
        self._tree = tree
        stack = Stack(databases, NO_BROKER, Ports.free(), Options(environment=ALONE))
        self.serve_by(stack)
        for process in self.processes["server"]:
            process.args[0] = tree.python

    def fill(self) -> None:
        """Migrate with the code of this tree."""
        for module, url in (("inventory_api", self.databases.inventory), ("order_api", self.databases.orders)):
            migration = Process(module, [self._tree.python, "-m", module, "migrate"], {"DATABASE_URL": url})
            if code := migration.start().wait(MIGRATE_SECONDS):
                raise ProcessEnded(f"the migration of {module} ended with exit code {code}\n{migration.tail()}")
        stock.fill_inventory(self.databases.inventory)
        stock.fill_orders(self.databases.orders)

    def start(self) -> None:
        """Start the APIs only: `fill` runs once, but there are several starts."""
        Services.start(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code."""
    options = _options(argv)
    pairs = command.measured(lambda console: _measure(options, console))
    if pairs is None:
        return 1
    ratios = {scenario: _ratio(found) for scenario, found in pairs.items()}
    _show(pairs, ratios, options, command.output())
    return 1 if any(ratio.verdict(options.limit) == "above" for ratio in ratios.values()) else 0


def _measure(options: argparse.Namespace, console: Console) -> Pairs:
    with ExitStack() as stack:
        console.print(f"{options.revision}: checking out and installing", highlight=False)
        then = stack.enter_context(checked_out(options.revision))
        server = command.synced_server(stack, console)
        generator = stack.enter_context(Generator())
        echoes = [Echo(generator, python=tree.python, folder=tree.folder) for tree in (then, PRESENT)]
        sides = [Side(tree, Databases.on_server(server), generator, server.pid) for tree in (then, PRESENT)]
        found: list[Services] = [*echoes, *sides]
        for side in sides:
            side.fill()
        for subject in found:
            stack.callback(subject.stop)
            for process in subject.processes["server"]:
                process.env.update(SAME_HASHES)
        calls: dict[Scenario, Sequence[Services]] = {EMPTY: echoes, RESERVE_HOT: sides, CREATE_ORDER: sides}
        pairs = _rounds(options, found, calls, console)
        for subject in found:
            subject.check()
    return pairs


def _rounds(
    options: argparse.Namespace,
    found: Sequence[Services],
    calls: dict[Scenario, Sequence[Services]],
    console: Console,
) -> Pairs:
    pairs: Pairs = defaultdict(list)
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.rounds * len(calls))
        for number in range(options.rounds):
            if number % -(-options.rounds // options.starts) == 0:
                _start_again(found)
            for scenario, (then, now) in calls.items():
                progress.update(task, description=scenario.title)
                # Alternate the sequence, because the first measurement affects the second.
                turns = (then, now) if number % 2 else (now, then)
                outcomes = {
                    turn: turn.measure(scenario, CALLS, options.seconds, options.warmup_seconds) for turn in turns
                }
                pairs[scenario].append((outcomes[then], outcomes[now]))
                progress.advance(task)
    return pairs


def _start_again(found: Sequence[Services]) -> None:
    """Restart the processes.

    The memory layout differs from start to start, which makes a process some percent faster or slower.
    """
    for subject in found:
        subject.stop()
        subject.start()


def _ratio(found: Sequence[tuple[Outcome, Outcome]]) -> Ratio:
    then, now = ([served(each.cpu_per_request) for each in side] for side in zip(*found, strict=True))
    return ratio_of(then, now)


def _show(pairs: Pairs, ratios: dict[Scenario, Ratio], options: argparse.Namespace, console: Console) -> None:
    table = Table(
        "call",
        title=f"CPU per call, {CALLS} concurrent calls: then ({options.revision}) and now, {options.rounds} rounds",
        title_justify="left",
    )
    for name in (
        "then: server, ms",
        "database",
        "now: server, ms",
        "database",
        "ratio",
        "95 %",
        f"≤ {options.limit:g}",
    ):
        table.add_column(name, justify="right")
    for scenario, found in pairs.items():
        ratio = ratios[scenario]
        cells = [_median_ms(found, side, kind) for side in (0, 1) for kind in ("server", "database")]
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        table.add_row(scenario.title, *cells, f"{ratio.median:.3f}", interval, ratio.verdict(options.limit))
    console.print(table)


def _median_ms(found: Sequence[tuple[Outcome, Outcome]], side: int, kind: str) -> str:
    spent = [pair[side].cpu_per_request[kind] for pair in found if kind in pair[side].cpu_per_request]
    return f"{statistics.median(spent) * 1e3:.3f}" if spent else "–"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("revision", help="the revision to compare with: a tag or a commit")
    parser.add_argument("--limit", type=float, default=1.05, help="the highest acceptable ratio (%(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of measurements per call (%(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="starts of the processes, over all rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.8, help="length of each measurement (%(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=0.2, help="warm-up before each one (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two rounds, briefly")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.starts, options.seconds, options.warmup_seconds = 2, 1, 0.5, 0.2
    return options


if __name__ == "__main__":
    sys.exit(main())
