"""The results: medians over the rounds, the goals, and their tables."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.generator import Outcome
from benchmarks.scenarios import (
    AVAILABILITY,
    AVAILABILITY_PRODUCTS,
    CHECK_ONE,
    CREATE_ORDER,
    RESERVE_HOT,
    SCENARIOS,
    Scenario,
)

KINDS = ("server", "relay", "database", "client")
"""The parts whose CPU time is measured separately. SQLite runs inside the servers."""


@dataclass(frozen=True)
class Cell:
    """A cell of the results, measured once per round."""

    scenario: str
    database: str
    subject: str
    calls: int


def served(cpu_per_request: Mapping[str, float]) -> float:
    """Return the CPU time per request of everything except the client."""
    return sum(spent for kind, spent in cpu_per_request.items() if kind != "client")


@dataclass(frozen=True)
class Numbers:
    """Medians over the rounds; times in seconds."""

    rate: float
    p50: float
    p99: float
    cpu_per_request: dict[str, float]

    @property
    def served(self) -> float:
        """CPU time per request of everything except the client."""
        return served(self.cpu_per_request)


class Results:
    """The outcomes of a run, and their medians."""

    def __init__(self) -> None:
        self._outcomes: dict[Cell, list[Outcome]] = defaultdict(list)

    def add(self, cell: Cell, outcome: Outcome) -> None:
        self._outcomes[cell].append(outcome)

    def get(self, cell: Cell) -> Numbers | None:
        """Return the medians of a cell, or None if it was not measured."""
        outcomes = self._outcomes.get(cell)
        if not outcomes:
            return None
        kinds = outcomes[0].cpu_per_request
        return Numbers(
            rate=statistics.median(each.rate for each in outcomes),
            p50=statistics.median(each.p50 for each in outcomes),
            p99=statistics.median(each.p99 for each in outcomes),
            cpu_per_request={
                kind: statistics.median(each.cpu_per_request[kind] for each in outcomes) for kind in kinds
            },
        )

    def cells(self) -> list[tuple[Cell, Numbers]]:
        return [(cell, numbers) for cell in self._outcomes if (numbers := self.get(cell))]

    def as_json(self) -> dict[str, Any]:
        return {
            "cells": [{**asdict(cell), **asdict(numbers)} for cell, numbers in self.cells()],
            "goals": [asdict(goal) for goal in judged(self)],
        }


@dataclass(frozen=True)
class Judged:
    """A goal and its result; `met` is None if the goal was not measured."""

    goal: str
    measured: str
    met: bool | None


def judged(results: Results) -> list[Judged]:
    """Return the goals and their results, all on PostgreSQL."""

    def of(scenario: Scenario, subject: str, calls: int, database: str = "postgresql") -> Numbers | None:
        return results.get(Cell(scenario.name, database, subject, calls))

    def rate_at_least(factor: float, scenario: Scenario, other: str, database: str = "postgresql") -> Judged:
        goal = f"{scenario.title}: ≥ {factor:g} × {other} at 128 calls"
        mine, theirs = of(scenario, "ours", 128), of(scenario, other, 128, database)
        if mine is None or theirs is None:
            return Judged(goal, "not measured", None)
        ratio = mine.rate / theirs.rate
        return Judged(goal, f"{ratio:.2f} × ({mine.rate:,.0f} to {theirs.rate:,.0f} per second)", ratio >= factor)

    def no_slower(factor: float, scenario: Scenario) -> Judged:
        goal = f"{scenario.title}: ≤ {factor:g} × the time of plain at 1 call (p50)"
        mine, theirs = of(scenario, "ours", 1), of(scenario, "plain", 1)
        if mine is None or theirs is None:
            return Judged(goal, "not measured", None)
        ratio = mine.p50 / theirs.p50
        return Judged(goal, f"{ratio:.2f} × ({mine.p50 * 1e3:.2f} to {theirs.p50 * 1e3:.2f} ms)", ratio <= factor)

    def cpu_at_most(milliseconds: float, scenario: Scenario) -> Judged:
        goal = f"{scenario.title}: ≤ {milliseconds:g} ms of CPU, servers and database, at 64 calls"
        mine = of(scenario, "ours", 64)
        if mine is None:
            return Judged(goal, "not measured", None)
        parts = ", ".join(f"{kind} {spent * 1e3:.2f}" for kind, spent in mine.cpu_per_request.items())
        return Judged(goal, f"{mine.served * 1e3:.2f} ms ({parts})", mine.served * 1e3 <= milliseconds)

    def watched_at_most(factor: float, scenario: Scenario) -> Judged:
        goal = f"{scenario.title}: ≤ {factor:g} × the CPU with metrics, and 1 % of traces, at 64 calls"
        without, watched = of(scenario, "ours", 64), of(scenario, "watched", 64)
        if without is None or watched is None:
            return Judged(goal, "not measured", None)
        ratio = watched.served / without.served
        shown = f"{ratio:.2f} × ({watched.served * 1e3:.2f} to {without.served * 1e3:.2f} ms)"
        return Judged(goal, shown, ratio <= factor)

    return [
        rate_at_least(3, RESERVE_HOT, "pgbench"),
        rate_at_least(5, RESERVE_HOT, "plain"),
        rate_at_least(0.5, RESERVE_HOT, "echo", database="none"),
        rate_at_least(5, CREATE_ORDER, "plain"),
        no_slower(1.2, RESERVE_HOT),
        no_slower(1.2, CREATE_ORDER),
        cpu_at_most(0.6, RESERVE_HOT),
        cpu_at_most(1.5, CREATE_ORDER),
        watched_at_most(1.1, RESERVE_HOT),
        watched_at_most(1.1, CREATE_ORDER),
        _cheaper_together(results, 40),
    ]


def _cheaper_together(results: Results, factor: float) -> Judged:
    goal = f"{AVAILABILITY.title}: ≤ 1/{factor:g} of the CPU of as many CheckStock, at 16 calls"
    together, alone = (
        results.get(Cell(scenario.name, "postgresql", "ours", 16)) for scenario in (AVAILABILITY, CHECK_ONE)
    )
    if together is None or alone is None:
        return Judged(goal, "not measured", None)
    of_all = AVAILABILITY_PRODUCTS * alone.served
    ratio = of_all / together.served
    shown = f"1/{ratio:.0f} ({together.served * 1e3:.2f} to {of_all * 1e3:.0f} ms)"
    return Judged(goal, shown, ratio >= factor)


def show(results: Results, console: Console) -> None:
    """Print a table for each kind of call, and one of the goals."""
    cells = results.cells()
    for scenario in SCENARIOS:
        found = [(cell, numbers) for cell, numbers in cells if cell.scenario == scenario.name]
        if found:
            console.print(_table(scenario, found))
    goals = Table("goal", "measured", "", title="Goals (PostgreSQL)", title_justify="left")
    for goal in judged(results):
        goals.add_row(goal.goal, goal.measured, verdict(goal.met))
    console.print(goals)


def verdict(met: bool | None) -> str:
    """Format whether a goal is met; None means not measured."""
    return {True: "[green]met[/]", False: "[red]missed[/]", None: "–"}[met]


def _table(scenario: Scenario, found: Sequence[tuple[Cell, Numbers]]) -> Table:
    kinds = [kind for kind in KINDS if any(kind in numbers.cpu_per_request for _, numbers in found)]
    table = Table(title=f"{scenario.title}; CPU in ms per request", title_justify="left")
    for name in ("database", "variant"):
        table.add_column(name)
    for name in ("calls", "requests/s", "p50 ms", "p99 ms", *(f"CPU {kind}" for kind in kinds), "all but client"):
        table.add_column(name, justify="right")
    last = found[0][0].calls
    for cell, numbers in sorted(found, key=_place):
        if last != cell.calls:
            table.add_section()
        last = cell.calls
        table.add_row(
            cell.database,
            cell.subject,
            str(cell.calls),
            f"{numbers.rate:,.0f}",
            _milliseconds(numbers.p50, 2),
            _milliseconds(numbers.p99, 2),
            *(_milliseconds(numbers.cpu_per_request.get(kind), 3) for kind in kinds),
            _milliseconds(numbers.served, 3),
        )
    return table


def _place(found: tuple[Cell, Numbers]) -> tuple[int, str, str]:
    cell, _ = found
    return cell.calls, cell.database, cell.subject


def _milliseconds(seconds: float | None, digits: int) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.{digits}f}"
