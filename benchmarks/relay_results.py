"""The results of the relay's benchmark: medians over the rounds, the goals, and their tables."""

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import Judged

OURS, TWO, DEBEZIUM = "ours", "two-of-ours", "debezium"


@dataclass(frozen=True)
class Backlog:
    """The result for a backlog: events per second, and CPU seconds per event by process."""

    rate: float
    cpu: dict[str, float]


@dataclass(frozen=True)
class Delay:
    """The delay at an even rate: seconds from sending COMMIT until a consumer has the event."""

    rate: float
    p50: float
    p99: float
    longest: float
    commit_p50: float
    cpu: dict[str, float]


class Results:
    """The outcomes of a run. Goals are judged only if it is `complete`, that is, long and warm enough."""

    def __init__(self, *, complete: bool) -> None:
        self.complete = complete
        self.backlogs: dict[str, list[Backlog]] = defaultdict(list)
        self.delays: dict[str, Delay] = {}

    def add(self, side: str, backlog: Backlog) -> None:
        self.backlogs[side].append(backlog)

    def add_delay(self, side: str, delay: Delay) -> None:
        self.delays[side] = delay

    def backlog(self, side: str) -> Backlog | None:
        """Return the medians over the rounds, or None if the side was not measured."""
        rounds = self.backlogs.get(side)
        if not rounds:
            return None
        kinds = rounds[0].cpu
        return Backlog(
            statistics.median(each.rate for each in rounds),
            {kind: statistics.median(each.cpu[kind] for each in rounds) for kind in kinds},
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "backlogs": {side: [asdict(each) for each in rounds] for side, rounds in self.backlogs.items()},
            "delays": {side: asdict(delay) for side, delay in self.delays.items()},
            "goals": [asdict(goal) for goal in judged(self)],
        }


def judged(results: Results) -> list[Judged]:
    """Return the goals and their results."""
    goals = ["≥ 1.5 × Debezium's events per second", "≤ 1/3 of Debezium's CPU per event, without PostgreSQL's"]
    mine, theirs = results.backlog(OURS), results.backlog(DEBEZIUM)
    if mine is None or theirs is None:
        found = [Judged(goal, "not measured", None) for goal in goals]
    else:
        rate, spent = mine.rate / theirs.rate, mine.cpu["side"] / theirs.cpu["side"]
        found = [
            Judged(goals[0], f"{rate:.2f} × ({mine.rate:,.0f} to {theirs.rate:,.0f})", rate >= 1.5),
            Judged(
                goals[1],
                f"{spent:.2f} × ({mine.cpu['side'] * 1e3:.4f} to {theirs.cpu['side'] * 1e3:.4f} s per 1,000)",
                spent <= 1 / 3,
            ),
        ]
    for side, name in ((OURS, "one relay"), (TWO, "two relays")):
        goal = f"commit to Kafka, {name}: p50 ≤ 10 ms, p99 ≤ 20 ms"
        delay = results.delays.get(side)
        if delay is None:
            found.append(Judged(goal, "not measured", None))
        else:
            met = delay.p50 <= 0.010 and delay.p99 <= 0.020
            found.append(Judged(goal, f"{delay.p50 * 1e3:.1f} and {delay.p99 * 1e3:.1f} ms", met))
    return found if results.complete else [replace(goal, met=None) for goal in found]


def show(results: Results, console: Console) -> None:
    """Print a table of backlogs, one of delays, and one of the goals."""
    backlogs = Table(title="A backlog; CPU in seconds per 1,000 events", title_justify="left")
    _columns(backlogs, "side", "events/s", "rounds", "CPU side", "CPU database", "CPU broker")
    for side, rounds in results.backlogs.items():
        median = results.backlog(side)
        assert median is not None
        each = ", ".join(f"{one.rate:,.0f}" for one in rounds)
        backlogs.add_row(side, f"{median.rate:,.0f}", each, *_cpu(median.cpu))
    console.print(backlogs)
    if results.delays:
        delays = Table(title="From commit to Kafka, in ms; CPU in seconds per 1,000 events", title_justify="left")
        names = ("side", "events/s", "p50", "p99", "longest", "COMMIT p50", "CPU side", "CPU database", "CPU broker")
        _columns(delays, *names)
        for side, delay in results.delays.items():
            times = (delay.p50, delay.p99, delay.longest, delay.commit_p50)
            shown = (f"{seconds * 1e3:.1f}" for seconds in times)
            delays.add_row(side, f"{delay.rate:,.0f}", *shown, *_cpu(delay.cpu))
        console.print(delays)
    title = "Goals" if results.complete else "Goals: not judged, because the run was too short"
    goals = Table("goal", "measured", "", title=title, title_justify="left")
    for goal in judged(results):
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: "–"}[goal.met]
        goals.add_row(goal.goal, goal.measured, verdict)
    console.print(goals)


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")


def _cpu(spent: dict[str, float]) -> list[str]:
    return [f"{spent[kind] * 1e3:.4f}" if kind in spent else "" for kind in ("side", "database", "broker")]
