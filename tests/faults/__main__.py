"""The long form: the tests of this folder, round after round, each round with a seed of its own.

./task faults --rounds 50
./task faults --rounds 1 --seed 1524288945 --only killed    # what a failure printed, once more
"""

import argparse
import os
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.faults.conftest import SEED_VARIABLE

FOLDER = Path(__file__).parent
SEEDS = 2**32


@dataclass
class Report:
    """What became of each test in all rounds."""

    passed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds that each round took, by test."""
    failed: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Seeds, by test."""
    skipped: set[str] = field(default_factory=set)

    def show(self, console: Console) -> None:
        table = Table("test", "passed", "failed", "longest", "seeds to repeat")
        for name in sorted(self.passed.keys() | self.failed.keys() | self.skipped):
            seconds, seeds = self.passed.get(name, []), self.failed.get(name, [])
            longest = f"{max(seconds):.0f} s" if seconds else "skipped" if name in self.skipped else ""
            table.add_row(name, str(len(seconds)), str(len(seeds)), longest, " ".join(map(str, seeds)))
        console.print(table)


class Watcher:
    """Pytest's plugin for one round."""

    def __init__(self, report: Report, seed: int, progress: Progress, task: TaskID) -> None:
        self._report = report
        self._seed = seed
        self._progress = progress
        self._task = task

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._progress.update(self._task, total=len(session.items), completed=0)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._progress.update(self._task, description=_name(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _name(report.nodeid)
        if report.failed:
            self._report.failed[name].append(self._seed)
        elif report.skipped:
            self._report.skipped.add(name)
        elif report.when == "call":
            self._report.passed[name].append(report.duration)
        if report.when == "teardown":
            self._progress.advance(self._task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 1 when a promise was broken in any round."""
    options = _options(arguments)
    console = Console(stderr=True)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(SEEDS)
    report = Report()
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    log: Path = options.log.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as lines, Progress(*columns, console=console) as progress:
        rounds, tests = progress.add_task("rounds", total=options.rounds), progress.add_task("")
        for number in range(options.rounds):
            seed = (first + number) % SEEDS
            os.environ[SEED_VARIABLE] = str(seed)
            with redirect_stdout(lines):
                chosen = ["-k", options.only] if options.only else []
                pytest.main(["-n0", str(FOLDER), *chosen], [Watcher(report, seed, progress, tests)])
            progress.advance(rounds)
    report.show(Console(width=None if sys.stdout.isatty() else 160))
    console.print(f"everything that was said is in {log}", highlight=False)
    if not report.passed and not report.failed:
        console.print("[red]no test ran[/]")
        return 1
    return 1 if report.failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./task faults", description="Break what can break, and count every unit.")
    parser.add_argument("--rounds", type=int, default=1, help="how often (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the first round; each next one has the next (default: drawn)")
    parser.add_argument("--only", metavar="NAME", help="tests whose names have this in them, as pytest -k")
    parser.add_argument(
        "--log", type=Path, default=Path("run/faults.log"), help="where output goes (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def _name(nodeid: str) -> str:
    return nodeid.rpartition("/")[2]


if __name__ == "__main__":
    sys.exit(main())
