"""Generate load at a steady rate: check stock, create orders, then change, ship, return, cancel or abandon them.

The load generator calls the APIs as any client does. It has its own products and restocks them. One product is
always scarce, so some orders are refused. It ends after --minutes, or at Ctrl-C.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from shopctl.load.generator import LoadGenerator
from shopctl.system import target
from shopctl.terminal.output import error_console

_REPORT_SECONDS = 5.0
_REFRESH_SECONDS = 0.25


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate",
        type=_within(0.1, 500),
        default=20.0,
        metavar="N",
        help="attempted orders per second (default: %(default)g)",
    )
    parser.add_argument(
        "--minutes", type=_within(0.01, 24 * 60), default=10.0, metavar="N", help="default: %(default)g; a day at most"
    )
    target.add_apis(parser)


def run(options: argparse.Namespace) -> int:
    seconds = 60 * options.minutes
    with target.shop(options) as shop, _signals_end() as ended, LoadGenerator(shop, options.rate) as generator:
        began = time.monotonic()
        _report_progress(generator, ended, began, seconds)
    print(f"{time.monotonic() - began:.0f} s: {generator.summary()}")
    return 0


def _report_progress(generator: LoadGenerator, ended: threading.Event, began: float, seconds: float) -> None:
    """Show progress until the end: a progress bar in a terminal, otherwise a line every five seconds."""
    if not sys.stderr.isatty():
        while (left := began + seconds - time.monotonic()) > _REPORT_SECONDS and not ended.wait(_REPORT_SECONDS):
            print(f"{time.monotonic() - began:.0f} s: {generator.summary()}", file=sys.stderr, flush=True)
        ended.wait(left)
        return
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=error_console(), transient=True) as progress:
        bar = progress.add_task(generator.summary(), total=seconds)
        while (elapsed := time.monotonic() - began) < seconds and not ended.wait(_REFRESH_SECONDS):
            progress.update(bar, completed=elapsed, description=generator.summary())


@contextmanager
def _signals_end() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set. PID 1 of a container ignores SIGTERM unless it has a handler."""
    ended = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda _number, _frame: ended.set()) for number in numbers]
    try:
        yield ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _within(lowest: float, highest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not lowest <= number <= highest:
            raise argparse.ArgumentTypeError(f"must be a number from {lowest:g} to {highest:g}")
        return number

    return parse
