"""Show live what the running processes do, from their metrics: refreshed in place until Ctrl-C.

Rates and quantiles are of the last interval; a gauge is as it is now. Rows in which nothing moves are left out unless
asked for. A process that does not answer is shown as away, also in the tables that it would fill, until it is back; the
first line says why. Exit code 1 when one was away at the end.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from rich.live import Live

from shopctl.system import runfile
from shopctl.system.process_state import state_of
from shopctl.system.runfile import NotRunning
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import console
from shopctl.watch import top_page
from shopctl.watch.away import Away
from shopctl.watch.scrape import Interval, Scrape, scrape

_INTERVAL_SECONDS_MIN, _INTERVAL_SECONDS_MAX = 0.2, 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--process",
        action="append",
        type=_named_address,
        metavar="NAME=HOST:PORT",
        help="where the metrics of a process are; may be repeated (default: those of ./task dev)",
    )
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--once", action="store_true", help="show the first interval and end")
    parser.add_argument("--all", action="store_true", help="show also rows in which nothing moves")


def run(options: argparse.Namespace) -> int:
    addresses = dict(options.process) if options.process else _of_dev()
    screen = console()
    in_place = sys.stdout.isatty() and not options.once
    try:
        with Live(console=screen, screen=True, auto_refresh=False) if in_place else nullcontext() as live:
            if live is not None:
                live.update("one moment", refresh=True)
            for intervals in _intervals(addresses, options.interval):
                page = top_page.page(addresses, intervals, idle=options.all)
                if live is not None:
                    live.update(page, refresh=True)
                else:
                    screen.print(page)
                if options.once:
                    break
    except KeyboardInterrupt:
        return 0  # it has no other end
    return 1 if any(isinstance(interval, Away) for interval in intervals.values()) else 0


def _of_dev() -> Mapping[str, str]:
    addresses = {name: endpoint.metrics for name, endpoint in runfile.read().processes.items()}
    found = {name: address for name, address in addresses.items() if address is not None}
    if not found:
        raise CommandFailed("dev was started with --no-metrics; start it without")
    return found


def _intervals(addresses: Mapping[str, str], seconds: float) -> Iterator[dict[str, Interval | Away]]:
    """One by one, of each process that answered at its beginning and at its end."""
    with ThreadPoolExecutor(len(addresses)) as threads:
        before = _scrape_all(addresses, threads)
        while True:
            time.sleep(seconds)
            after = _scrape_all(addresses, threads)
            yield {name: _interval(name, before[name], after[name]) for name in addresses}
            before = after


def _scrape_all(addresses: Mapping[str, str], threads: ThreadPoolExecutor) -> dict[str, Scrape | Away]:
    return dict(zip(addresses, threads.map(scrape, addresses.values()), strict=True))


def _interval(name: str, before: Scrape | Away, after: Scrape | Away) -> Interval | Away:
    if isinstance(after, Away):
        return _explained(name, after)
    return _explained(name, before) if isinstance(before, Away) else Interval(before, after)


def _explained(name: str, away: Away) -> Away:
    """The system knows better than a connection why a process of dev does not answer."""
    try:
        state = state_of(runfile.read().processes[name].pid)
    except (NotRunning, KeyError):
        return away
    return away if state == "running" else Away(state)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _INTERVAL_SECONDS_MIN <= seconds <= _INTERVAL_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be from {_INTERVAL_SECONDS_MIN:g} to {_INTERVAL_SECONDS_MAX:g}")
    return seconds


def _named_address(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not (name and equals and address):
        raise argparse.ArgumentTypeError("must be NAME=HOST:PORT")
    return name, address
