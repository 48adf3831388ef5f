"""Measures how fast the reaper expires a backlog of due reservations under load.

See `python -m benchmarks.reaping --help`.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from benchmarks import command, rows, stock
from benchmarks.command import POSTGRESQL, SQLITE
from benchmarks.generator import Outcome
from benchmarks.http2 import LoadError
from benchmarks.load import Generator
from benchmarks.results import verdict
from benchmarks.scenarios import RESERVE_SPREAD
from benchmarks.subjects import ALONE, NO_BROKER, Stored
from devstack.ports import free_ports
from devstack.stack import Databases, Options, Stack
from inventory_api.store import tables
from shopctl.system.layout import REAPER
from shopctl.watch.scrape import scrape
from shopctl.watch.unavailable import Unavailable

CONNECTIONS = 8
HOLDS_PER_SECOND_GOAL = 10_000
P99_GOAL = 2.0
GIVE_UP_SECONDS = 600
_DONE = "shop_reaper_done_total"
_POLL_SECONDS = 0.25


@dataclass
class Reaped:
    """The results on one database. CPU times are in seconds, without the time of the concurrent calls."""

    holds_per_second: float
    cpu_per_hold: dict[str, float]
    windows: dict[str, list[Outcome]]

    def p99(self, phase: str) -> float:
        """Return the median p99 of the windows of a phase, in seconds."""
        return statistics.median(window.p99 for window in self.windows[phase])

    def p50(self, phase: str) -> float:
        return statistics.median(window.p50 for window in self.windows[phase])


class Backlog(Stored):
    """The two APIs, with a backlog of due reservations in the database."""

    def __init__(
        self,
        database: str,
        databases: Databases,
        generator: Generator,
        database_pids: list[int],
        system: Stack,
        holds: int,
    ) -> None:
        super().__init__("ours", database, databases, generator, database_pids)
        self.serve_by(system)
        self._holds = holds

    def fill(self) -> None:
        super().fill()
        rows.fill_expired_holds(self.databases.inventory, self._holds, datetime.now(UTC))

    @property
    def granted(self) -> int:
        """The number of successful calls so far."""
        return self.count(lambda scenario: scenario.reservations)

    def check(self) -> None:
        stock.check_inventory(self.databases.inventory, self.granted, events=False)
        _check_expired(self.databases.inventory, self._holds)


class Progress:
    """Polls the number of reservations that the reaper has expired, on its own thread."""

    def __init__(self, address: str, holds: int) -> None:
        self._address = address
        self._holds = holds
        self._stop = threading.Event()
        self.samples: list[tuple[float, float]] = []

    @property
    def expired(self) -> float:
        return self.samples[-1][1] if self.samples else 0.0

    @property
    def rate(self) -> float:
        """Expired reservations per second, from the first sample to the last. Raises LoadError."""
        if len(self.samples) < 2:
            raise LoadError(f"{self._holds} reservations expired before a rate could be measured: use more")
        (start, before), *_, (end, after) = self.samples
        return (after - before) / (end - start)

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        task = ("task", "expire-reservations")
        while self.expired < self._holds and not self._stop.wait(_POLL_SECONDS):
            found = scrape(self._address)
            if isinstance(found, Unavailable):
                continue
            if done := next((n for of, n in found.samples.get(_DONE, {}).items() if task in of), 0.0):
                self.samples.append((found.at, done))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code: a wrong count fails the run, a missed goal does not."""
    options = _options(argv)
    found = command.measured(lambda console: _measure(options, console))
    if found is None:
        return 1
    _show(found, options, command.output())
    return 0


def _measure(options: argparse.Namespace, console: Console) -> dict[str, Reaped]:
    with ExitStack() as stack:
        return {database: _on(database, options, stack, console) for database in options.databases}


def _on(database: str, options: argparse.Namespace, stack: ExitStack, console: Console) -> Reaped:
    new, pids = command.databases(database, stack, console)
    databases = new()
    (metrics_port,) = free_ports(1)
    system = Stack(
        databases,
        NO_BROKER,
        options=Options(
            environment=ALONE,
            per_process={REAPER: {"METRICS_PORT": str(metrics_port)}},
        ),
    )
    stack.callback(system.stop)
    subject = Backlog(database, databases, stack.enter_context(Generator()), pids, system, options.holds)
    console.print(f"{database}: creating {options.holds:,} due reservations", highlight=False)
    subject.start()

    def window(phase: str) -> Outcome:
        console.print(f"{database}: {phase}", highlight=False)
        return subject.measure(RESERVE_SPREAD, CONNECTIONS, options.seconds, 1.0, rate=options.rate)

    windows = {"before": [window("before") for _ in range(options.windows)], "during": []}
    before, calls_before = subject.cpu_seconds(), subject.granted
    system.reaper.start()
    progress = Progress(f"localhost:{metrics_port}", options.holds)
    give_up = time.monotonic() + GIVE_UP_SECONDS
    with progress.watched():
        while progress.expired < options.holds:
            # The last window includes some time after the end of the backlog, so its latencies are slightly too low.
            windows["during"].append(window(f"during, {progress.expired:,.0f} are expired"))
            if not system.reaper.alive:
                raise LoadError(f"the reaper ended\n{system.reaper.tail()}")
            if time.monotonic() > give_up:
                raise TimeoutError(f"the backlog was not expired after {GIVE_UP_SECONDS} s\n{system.reaper.tail()}")
    calls = subject.granted - calls_before
    cpu_per_hold = {
        kind: (seconds - before[kind] - calls * _cpu_per_call(windows["before"], kind)) / options.holds
        for kind, seconds in subject.cpu_seconds().items()
    }
    windows["after"] = [window("after") for _ in range(options.windows)]
    subject.check()
    return Reaped(progress.rate, cpu_per_hold, windows)


def _cpu_per_call(windows: Sequence[Outcome], kind: str) -> float:
    return statistics.median(window.cpu_per_request[kind] for window in windows)


def _check_expired(url: str, holds: int) -> None:
    """Check that every reservation has expired and has its event. Raises WrongCount."""
    outbox, reservations = tables.outbox.table, tables.stock_reservations
    expiry_events, found = outbox.c.type == "STOCK_RESERVATION_EXPIRED", reservations.c.state == "EXPIRED"
    with stock.reading(url) as tx:
        counts = {
            "reservations EXPIRED": tx.execute(select(func.count()).where(found)).scalar_one(),
            "events of an expiry": tx.execute(select(func.count()).where(expiry_events)).scalar_one(),
        }
    stock.compare(counts, holds, "reservations were due")


def _show(found: dict[str, Reaped], options: argparse.Namespace, console: Console) -> None:
    title = f"{options.holds:,} expired reservations; {options.rate:g} ReserveStock calls per second meanwhile"
    table = Table("database", title=title, title_justify="left")
    for name in (
        "expired/s",
        "CPU ms per 1,000",
        "database part",
        "p50 before",
        "during",
        "after",
        "p99 before",
        "during",
        "after ms",
    ):
        table.add_column(name, justify="right")
    for database, reaped in found.items():
        p50s = [f"{reaped.p50(phase) * 1e3:.1f}" for phase in reaped.windows]
        p99s = [f"{reaped.p99(phase) * 1e3:.1f}" for phase in reaped.windows]
        spent = [sum(reaped.cpu_per_hold.values()) * 1e6, reaped.cpu_per_hold.get("database", 0) * 1e6]
        table.add_row(database, f"{reaped.holds_per_second:,.0f}", *(f"{each:.0f}" for each in spent), *p50s, *p99s)
    console.print(table)
    for database, reaped in found.items():
        ratio = reaped.p99("during") / reaped.p99("before")
        fast = reaped.holds_per_second >= HOLDS_PER_SECOND_GOAL
        console.print(f"{database}: ≥ {HOLDS_PER_SECOND_GOAL:,} reservations per second: {verdict(fast)}")
        console.print(f"{database}: p99 ≤ {P99_GOAL:g} × before: {ratio:.2f} × {verdict(ratio <= P99_GOAL)}")
    console.print("All units, reservations and events were checked at the end.")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reaping", description=__doc__)
    parser.add_argument("--databases", nargs="+", choices=(POSTGRESQL, SQLITE), default=(POSTGRESQL, SQLITE))
    parser.add_argument("--holds", type=int, default=1_000_000, help="number of due reservations (%(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="ReserveStock calls per second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each window of calls (%(default)s)")
    parser.add_argument("--windows", type=int, default=3, help="windows before and after (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
