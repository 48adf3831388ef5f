"""Compares reservations of one hot product through the client with row locks, versions, and a lock in Redis.

Also counts the units that each way oversells if a process is paused while it holds a lock.

`python -m benchmarks.alternatives --help`
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import command, stock
from benchmarks.alternatives_callers import MEASURE, SELL, Job, Sale
from benchmarks.alternatives_ways import CLIENT, REDIS_LOCK, ROW_LOCKS, VERSIONS, WAYS, Way
from benchmarks.command import POSTGRESQL
from benchmarks.generator import Outcome
from benchmarks.http2 import LoadError
from benchmarks.scenarios import HOT_PRODUCT
from benchmarks.subjects import ALONE, NO_BROKER, READY_SECONDS, STOP_SECONDS, migrate
from devstack.ports import free_ports
from devstack.process import Process, wait_until_stopped
from devstack.stack import Options, Stack
from inventory_api.migrations import SCHEMA

CALLERS = (1, 16, 64, 128)
SCARCE_PRODUCT = 2
"""The product that the test with a paused process sells out."""
SELLERS = 16
EXTRA_SECONDS = 180
_POLL_SECONDS = 0.01

TITLES = {
    ROW_LOCKS: "row locks",
    VERSIONS: "versions, retried",
    REDIS_LOCK: "Redis lock",
    CLIENT: "client",
}


@dataclass(frozen=True)
class Paused:
    """The units that were sold of a scarce product: until the end of the pause, and in total."""

    units: int
    before_its_end: int
    sold: int


@dataclass
class Results:
    """The outcomes of each way and number of callers, a round each; and of the test with a paused process."""

    outcomes: dict[tuple[str, int], list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    uncounted: dict[str, int] = field(default_factory=dict)
    paused: dict[str, Paused] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code."""
    options = _options(argv)
    results = command.measured(partial(_measure, options))
    if results is None:
        return 1
    console = command.output()
    _show_rates(results, console)
    _show_paused(results, console)
    return 0


def _measure(options: argparse.Namespace, console: Console) -> Results:
    results = Results()
    with ExitStack() as stack:
        new, pids = command.databases(POSTGRESQL, stack, console)
        databases = new()
        system = Stack(databases, NO_BROKER, options=Options(environment=ALONE))
        ways = {kind: Way(kind, new().inventory) for kind in (ROW_LOCKS, VERSIONS)}
        processes = {kind: {"database": pids} for kind in WAYS}
        if redis := _redis(stack, console):
            ways[REDIS_LOCK] = Way(REDIS_LOCK, new().inventory, redis_port=int(redis.args[-1]))
            processes[REDIS_LOCK] = {"server": [redis.pid], "database": pids}
        ways[CLIENT] = Way(CLIENT, databases.inventory, system.inventory_address)
        for way in ways.values():
            migrate(way.database, SCHEMA)
            stock.add_items(way.database, [HOT_PRODUCT], stock.QUANTITY)
        server = system.inventory_api
        server.start()
        stack.callback(server.stop, STOP_SECONDS)
        server.wait_ready(READY_SECONDS)
        processes[CLIENT] = {"server": [server.pid], "database": pids}
        # Measure in rounds, with the ways next to each other: other load on the machine then affects all alike.
        for _ in range(options.rounds):
            for callers in options.callers:
                for kind, way in ways.items():
                    console.print(f"{TITLES[kind]}, {callers} callers", highlight=False)
                    job = Job(way, callers, options.seconds, options.warmup_seconds, processes[kind])
                    results.outcomes[kind, callers].append(_run(job))
        for kind, way in ways.items():
            results.uncounted[kind] = stock.uncounted_units(way.database)
            if kind != REDIS_LOCK:
                done = [each for (of, _), rounds in results.outcomes.items() if of == kind for each in rounds]
                stock.check_inventory(way.database, sum(each.succeeded for each in done), events=True)
        for kind, way in ways.items():
            console.print(f"{TITLES[kind]}, with a pause of {options.pause_seconds:g} s", highlight=False)
            short = replace(way, lock_seconds=options.lock_seconds)
            results.paused[kind] = _with_a_paused_process(short, server, options)
    return results


def _redis(stack: ExitStack, console: Console) -> Process | None:
    """Start a temporary Redis that keeps nothing on disk, or say that there is none."""
    program = shutil.which("redis-server")
    if program is None:
        console.print("[yellow]without Redis:[/] redis-server is not in PATH (Debian: apt-get install redis-server)")
        return None
    (port,) = free_ports(1)
    server = Process("redis", [program, "--bind", "127.0.0.1", "--save", "", "--port", str(port)])
    server.start()
    stack.callback(server.stop, STOP_SECONDS)
    server.wait_for_line("Ready to accept connections", READY_SECONDS)
    return server


def _run(job: Job) -> Outcome:
    """Run the job in a process of its own. Raises LoadError if a call failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.alternatives_callers", MEASURE, json.dumps(asdict(job))],
        capture_output=True,
        text=True,
        timeout=job.warmup_seconds + job.seconds + EXTRA_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise LoadError(f"{TITLES[job.way.kind]}, {job.callers} callers: {done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout))


def _with_a_paused_process(way: Way, server: Process, options: argparse.Namespace) -> Paused:
    """Sell a product out while a process is paused, in the middle of a reservation."""
    stock.add_items(way.database, [SCARCE_PRODUCT], options.units)
    with ExitStack() as stack:
        if way.kind == CLIENT:
            sellers = _sell(way, stack)
            # Pause inventory-api, which has the locks, in the middle of the sale.
            while sellers.alive and not stock.reserved_units(way.database, SCARCE_PRODUCT):
                time.sleep(_POLL_SECONDS)
            paused = server
            paused.freeze()
            stack.callback(paused.thaw)
        else:
            # Pause a caller that has read the item and not yet written it.
            paused = _sell(way, stack, stops=True)
            wait_until_stopped([psutil.Process(paused.pid)])
            sellers = _sell(way, stack)
        # With row locks and with the client, the sellers wait for the paused process.
        with suppress(TimeoutError):
            sellers.wait(options.pause_seconds)
        before_its_end = stock.reserved_units(way.database, SCARCE_PRODUCT)
        paused.thaw()
        if paused is not server:
            _finish(paused)
        _finish(sellers)
        # The paused process may have written what it read before the pause, so try to sell more.
        _finish(_sell(way, stack))
    return Paused(options.units, before_its_end, stock.reserved_units(way.database, SCARCE_PRODUCT))


def _sell(way: Way, stack: ExitStack, *, stops: bool = False) -> Process:
    sale = json.dumps(asdict(Sale(way, SCARCE_PRODUCT, SELLERS, stops)))
    name = f"the sellers of {TITLES[way.kind]}"
    process = Process(name, [sys.executable, "-m", "benchmarks.alternatives_callers", SELL, sale]).start()
    stack.callback(process.kill)
    return process


def _finish(process: Process) -> None:
    if process.wait(EXTRA_SECONDS) != 0:
        raise LoadError(f"{process.name} failed\n{process.tail()}")


def _show_rates(results: Results, console: Console) -> None:
    table = Table("callers", "way", title="reservations of one product, medians of the rounds", title_justify="left")
    for name in ("a second", "ratio", "p50 ms", "p99 ms", "CPU server ms", "database", "callers", "uncounted units"):
        table.add_column(name, justify="right")
    for (kind, callers), outcomes in results.outcomes.items():
        # The ratios of a round to the row locks beside it vary less than the numbers themselves.
        ratios = [
            own.rate / locks.rate for own, locks in zip(outcomes, results.outcomes[ROW_LOCKS, callers], strict=True)
        ]
        spent = [
            f"{statistics.median(each.cpu_per_request.get(name, 0.0) for each in outcomes) * 1e3:.3f}"
            for name in ("server", "database", "client")
        ]
        table.add_row(
            str(callers),
            TITLES[kind],
            f"{statistics.median(each.rate for each in outcomes):,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{statistics.median(each.p50 for each in outcomes) * 1e3:.1f}",
            f"{statistics.median(each.p99 for each in outcomes) * 1e3:.1f}",
            *spent,
            str(results.uncounted[kind]),
        )
    console.print(table)


def _show_paused(results: Results, console: Console) -> None:
    table = Table("way", title="a process is paused in the middle of a reservation", title_justify="left")
    for name in ("units", "sold until its end", "sold", "oversold"):
        table.add_column(name, justify="right")
    for kind, paused in results.paused.items():
        oversold = max(0, paused.sold - paused.units)
        table.add_row(TITLES[kind], *map(str, (paused.units, paused.before_its_end, paused.sold, oversold)))
    console.print(table)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alternatives", description=__doc__.partition("\n")[0])
    parser.add_argument("--callers", nargs="+", type=int, default=CALLERS, help="concurrent callers (1 16 64 128)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement (%(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=1.0, help="warm-up before each one (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way (%(default)s)")
    parser.add_argument("--units", type=int, default=500, help="units of the product that is sold out (%(default)s)")
    parser.add_argument("--lock-seconds", type=float, default=2.0, help="time of its lock in Redis (%(default)s)")
    parser.add_argument("--pause-seconds", type=float, default=15.0, help="longest pause of a process (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
