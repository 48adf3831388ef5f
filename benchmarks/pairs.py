"""Measures two sides of a comparison in turn, in short rounds, and shows the ratios of their costs.

Other load on the machine affects both measurements of a round alike, so the ratio varies less than the numbers.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.generator import Outcome
from benchmarks.ratios import Ratio, ratio_of
from benchmarks.results import served
from benchmarks.scenarios import Scenario
from benchmarks.subjects import Services

CALLS = 64

SAME_HASHES = {"PYTHONHASHSEED": "0"}
"""A fixed hash seed: otherwise the layout of dictionaries, and so their speed, differs from start to start."""

Pairs = dict[Scenario, list[tuple[Outcome, Outcome]]]
"""By call and round: the outcomes of the first side and of the second side."""


def measure(
    options: argparse.Namespace,
    found: Sequence[Services],
    calls: dict[Scenario, Sequence[Services]],
    console: Console,
) -> Pairs:
    """Measure each call on both of its sides, and restart all services in `found` a few times in between."""
    pairs: Pairs = defaultdict(list)
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.rounds * len(calls))
        for number in range(options.rounds):
            if number % -(-options.rounds // options.starts) == 0:
                _start_again(found)
            for scenario, (first, second) in calls.items():
                progress.update(task, description=scenario.title)
                # Alternate the sequence, because the first measurement affects the second.
                turns = (first, second) if number % 2 else (second, first)
                outcomes = {
                    turn: turn.measure(scenario, CALLS, options.seconds, options.warmup_seconds) for turn in turns
                }
                pairs[scenario].append((outcomes[first], outcomes[second]))
                progress.advance(task)
    return pairs


def _start_again(found: Sequence[Services]) -> None:
    """Restart the processes.

    The memory layout differs from start to start, which makes a process some percent faster or slower.
    """
    for subject in found:
        subject.stop()
        subject.start()


def ratios(pairs: Pairs) -> dict[Scenario, Ratio]:
    """Return, for each call, the CPU time of the second side divided by that of the first."""
    return {scenario: _ratio(found) for scenario, found in pairs.items()}


def exit_code(pairs: Pairs, options: argparse.Namespace) -> int:
    """Return 1 if a call costs more than the limit with confidence, else 0. A smoke run is too short to tell."""
    is_above = any(ratio.verdict(options.limit) == "above" for ratio in ratios(pairs).values())
    return 1 if is_above and not options.quick else 0


def show(pairs: Pairs, sides: tuple[str, str], title: str, limit: float, console: Console) -> None:
    """Print the cost of each call on both sides, and their ratio."""
    table = Table("call", title=title, title_justify="left")
    first, second = sides
    for name in (
        f"{first}: server, ms",
        "database",
        f"{second}: server, ms",
        "database",
        "ratio",
        "95 %",
        f"≤ {limit:g}",
    ):
        table.add_column(name, justify="right")
    for scenario, ratio in ratios(pairs).items():
        cells = [_median_ms(pairs[scenario], side, kind) for side in (0, 1) for kind in ("server", "database")]
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        table.add_row(scenario.title, *cells, f"{ratio.median:.3f}", interval, ratio.verdict(limit))
    console.print(table)


def add_options(parser: argparse.ArgumentParser, *, limit: float) -> None:
    """Add the options of `measure`."""
    parser.add_argument("--limit", type=float, default=limit, help="the highest acceptable ratio (%(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of measurements per call (%(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="starts of the processes, over all rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.8, help="length of each measurement (%(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=0.2, help="warm-up before each one (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two rounds, briefly")


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options. `--quick` replaces the numbers."""
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.starts, options.seconds, options.warmup_seconds = 2, 1, 0.5, 0.2
    return options


def _ratio(found: Sequence[tuple[Outcome, Outcome]]) -> Ratio:
    first, second = ([served(each.cpu_per_request) for each in side] for side in zip(*found, strict=True))
    return ratio_of(first, second)


def _median_ms(found: Sequence[tuple[Outcome, Outcome]], side: int, kind: str) -> str:
    spent = [pair[side].cpu_per_request[kind] for pair in found if kind in pair[side].cpu_per_request]
    return f"{statistics.median(spent) * 1e3:.3f}" if spent else "–"
