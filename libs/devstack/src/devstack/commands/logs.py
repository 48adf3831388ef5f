"""Show the logs of the processes and of `dev`, including those of earlier runs: run/ keeps the last 50 MB.

A line is shown if it matches all filters. A line of a traceback has the level of its log line. With --json, each line
is printed as an object with `time`, `process`, `level` and `line`.
"""

import argparse
import re
import time
from dataclasses import asdict
from datetime import datetime

from devstack.dev.screen import DEV, named, prefix
from shopctl.system import log_book, runfile
from shopctl.system.log_book import LEVELS, Line
from shopctl.system.runfile import NotRunning
from shopctl.terminal import since
from shopctl.terminal.colours import COLOURS
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, console, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    names = [*COLOURS, DEV]
    parser.add_argument(
        "process",
        nargs="*",
        metavar="PROCESS",
        help=f"only lines of these processes: {', '.join(names)} (default: all)",
    )
    parser.add_argument(
        "--level", type=str.lower, choices=LEVELS, default=LEVELS[0], help="only lines of this level or higher"
    )
    parser.add_argument("--since", type=since.parse, metavar="WHEN", help=f"only lines since this time: {since.FORMS}")
    parser.add_argument("--grep", type=_pattern, metavar="REGEX", help="only lines that match")
    parser.add_argument("-f", "--follow", action="store_true", help="continue with new lines, until dev ends or Ctrl-C")
    parser.set_defaults(known=names)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed if there are no logs."""
    if unknown := set(options.process) - set(options.known):
        raise CommandFailed(f"there is no process {min(unknown)}; there are {', '.join(options.known)}")
    if not log_book.PATH.exists():
        raise CommandFailed(f"there are no logs ({log_book.PATH}); ./task dev writes them")
    screen = console()
    for line in log_book.read(keep_following=_wait_while_dev_runs if options.follow else None):
        if not _matches(line, options):
            continue
        if options.json:
            print_json(asdict(line))
        elif screen.is_terminal:
            screen.print(named(line.process, line.line), soft_wrap=True)
        else:
            # Do not format colours for a pipe: without them, half a million lines take only seconds.
            print(prefix(line.process) + line.line)
    return 0


def _matches(line: Line, options: argparse.Namespace) -> bool:
    return (
        (not options.process or line.process in options.process)
        and LEVELS.index(line.level) >= LEVELS.index(options.level)
        and (options.since is None or datetime.fromisoformat(line.time) >= options.since)
        and (options.grep is None or options.grep.search(line.line) is not None)
    )


def _wait_while_dev_runs(seconds: float) -> bool:
    time.sleep(seconds)
    try:
        runfile.read()
    except NotRunning:
        return False
    return True


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"is not a regular expression: {error}") from None
