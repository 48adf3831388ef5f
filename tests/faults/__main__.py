"""Runs the fault suite from the command line: the long form in rounds, each with its own seed, or the short form.

./task faults --rounds 50
./task faults --rounds 1 --seed 1524288945 --only killed    # repeats a failure
./task faults --short                                       # the short form, which takes some minutes
"""

import argparse
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.conftest import SEED_VARIABLE, SHORT_MARK, SHORT_VARIABLE

FOLDER = Path(__file__).parent
SEEDS = 2**32
LONG = ("-n0",)
PRINTED_CHARACTERS = 20_000
SHORT = ("-n2", "--dist=loadgroup", "-m", SHORT_MARK)


@dataclass
class Report:
    """The results of each test in all rounds."""

    passed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Test → its seconds in each round that passed."""
    failed: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Test → the seeds of the rounds that failed."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Test → the reason."""
    errors: list[str] = field(default_factory=list)
    """Reasons why a round could not run."""

    @property
    def is_good(self) -> bool:
        return bool(self.passed) and not self.failed and not self.errors

    def show(self, console: Console) -> None:
        table = Table("test", "passed", "failed", "longest", "seeds to repeat")
        for name in sorted(self.passed.keys() | self.failed.keys() | self.skipped.keys()):
            seconds, seeds = self.passed.get(name, []), self.failed.get(name, [])
            longest = f"{max(seconds):.0f} s" if seconds else "skipped" if name in self.skipped else ""
            table.add_row(escape(name), str(len(seconds)), str(len(seeds)), longest, " ".join(map(str, seeds)))
        console.print(table)
        for reason in sorted(set(self.skipped.values())):
            console.print(f"skipped: {reason}", style="yellow", markup=False)
        for error in self.errors:
            console.print(error, style="red", markup=False)


class Watcher:
    """A pytest plugin for one round. With pytest-xdist, it runs in the controller, to which the workers report."""

    def __init__(self, report: Report, seed: int, progress: Progress, task: TaskID) -> None:
        self._report = report
        self._seed = seed
        self._progress = progress
        self._task = task
        self._seconds: dict[str, float] = {}
        self._tests = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._begin(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._begin(len(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._report.errors.append(f"{report.nodeid} cannot be collected")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._progress.update(self._task, description=_name(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _name(report.nodeid)
        # The time includes setup and teardown, such as the start of servers.
        self._seconds[name] = self._seconds.get(name, 0) + report.duration
        if report.failed and self._seed not in self._report.failed.get(name, ()):
            self._report.failed[name].append(self._seed)
        elif report.skipped:
            self._report.skipped[name] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else "")
        if report.when == "teardown":
            if name not in self._report.skipped and self._seed not in self._report.failed.get(name, ()):
                self._report.passed[name].append(self._seconds[name])
            self._progress.advance(self._task)

    def _begin(self, tests: int) -> None:
        # Every worker reports the same tests; only the first report resets the progress.
        if self._tests != tests:
            self._tests = tests
            self._progress.update(self._task, total=tests, completed=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds and print a report. Returns 1 if a test failed in any round, or if no test ran."""
    options = _options(arguments)
    console = Console(stderr=True)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(SEEDS)
    if options.short:
        os.environ[SHORT_VARIABLE] = "1"
    report = Report()
    began = time.monotonic()
    columns = (
        TextColumn("{task.description:60}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    log: Path = options.log.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as lines, Progress(*columns, console=console) as progress:
        rounds = progress.add_task("rounds", total=options.rounds)
        for number in range(options.rounds):
            seed = (first + number) % SEEDS
            os.environ[SEED_VARIABLE] = str(seed)
            tests = progress.add_task("", total=None)
            with redirect_stdout(lines):
                chosen = [*(SHORT if options.short else LONG), *(["-k", options.only] if options.only else [])]
                ended = pytest.main([str(FOLDER), *chosen], [Watcher(report, seed, progress, tests)])
            progress.remove_task(tests)
            if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                report.errors.append(f"the round with seed {seed} ended with {pytest.ExitCode(ended).name}")
                break
            progress.advance(rounds)
    if not report.is_good and not sys.stdout.isatty():
        # In CI the file may not be kept.
        print(log.read_text()[-PRINTED_CHARACTERS:])
    report.show(Console(width=None if sys.stdout.isatty() else 160))
    console.print(f"seed {first}, {time.monotonic() - began:.0f} s; the full output is in {log}", highlight=False)
    return 0 if report.is_good else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./task faults", description="Inject faults while clients work, then check every guarantee."
    )
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="run a subset of the tests, shortened, two at a time")
    parser.add_argument("--seed", type=int, help="seed of the first round; each later round adds one (default: random)")
    parser.add_argument("--only", metavar="NAME", help="run only tests whose names match, as pytest -k")
    parser.add_argument(
        "--log",
        type=Path,
        default=Path("run/faults.log"),
        help="file for test output (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def _name(nodeid: str) -> str:
    # With --dist loadgroup, pytest-xdist appends @ and the group, which is a path.
    return nodeid.partition("@")[0].rpartition("/")[2]


if __name__ == "__main__":
    sys.exit(main())
