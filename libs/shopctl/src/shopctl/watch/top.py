"""Show live metrics of the running processes, refreshed in place until Ctrl-C.

Rates and quantiles cover the last interval; gauges are current values. Rows without activity are left out, except with
--all. A process that does not respond is shown as unavailable, in each table that would have its numbers. The first
line gives the reason. The exit code is 1 if a process was unavailable at the end.
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
from shopctl.watch.scrape import Interval, Scrape, scrape
from shopctl.watch.unavailable import Unavailable

_INTERVAL_SECONDS_MIN, _INTERVAL_SECONDS_MAX = 0.2, 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--process",
        action="append",
        type=_named_address,
        metavar="NAME=HOST:PORT",
        help="the metrics address of a process; may be repeated (default: the processes of ./task dev)",
    )
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--once", action="store_true", help="show the first interval and end")
    parser.add_argument("--all", action="store_true", help="also show rows without activity")


def run(options: argparse.Namespace) -> int:
    addresses = dict(options.process) if options.process else _of_dev()
    screen = console()
    in_place = sys.stdout.isatty() and not options.once
    try:
        with Live(console=screen, screen=True, auto_refresh=False) if in_place else nullcontext() as live:
            if live is not None:
                live.update("loading", refresh=True)
            for intervals in _intervals(addresses, options.interval):
                page = top_page.page(addresses, intervals, idle=options.all)
                if live is not None:
                    live.update(page, refresh=True)
                else:
                    screen.print(page)
                if options.once:
                    break
    except KeyboardInterrupt:
        return 0  # the normal end
    return 1 if any(isinstance(interval, Unavailable) for interval in intervals.values()) else 0


def _of_dev() -> Mapping[str, str]:
    addresses = {name: endpoint.metrics for name, endpoint in runfile.read().processes.items()}
    found = {name: address for name, address in addresses.items() if address is not None}
    if not found:
        raise CommandFailed("dev was started with --no-metrics; restart it without this option")
    return found


def _intervals(addresses: Mapping[str, str], seconds: float) -> Iterator[dict[str, Interval | Unavailable]]:
    """Yield one interval after another, with an Interval for each process that responded at both of its ends."""
    with ThreadPoolExecutor(len(addresses)) as threads:
        before = _scrape_all(addresses, threads)
        while True:
            time.sleep(seconds)
            after = _scrape_all(addresses, threads)
            yield {name: _interval(name, before[name], after[name]) for name in addresses}
            before = after


def _scrape_all(addresses: Mapping[str, str], threads: ThreadPoolExecutor) -> dict[str, Scrape | Unavailable]:
    return dict(zip(addresses, threads.map(scrape, addresses.values()), strict=True))


def _interval(name: str, before: Scrape | Unavailable, after: Scrape | Unavailable) -> Interval | Unavailable:
    if isinstance(after, Unavailable):
        return _explained(name, after)
    return _explained(name, before) if isinstance(before, Unavailable) else Interval(before, after)


def _explained(name: str, failure: Unavailable) -> Unavailable:
    """Replace the connection error by the state of the process, if it is a process of dev that is frozen or gone."""
    try:
        state = state_of(runfile.read().processes[name].pid)
    except (NotRunning, KeyError):
        return failure
    return failure if state == "running" else Unavailable(state)


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
