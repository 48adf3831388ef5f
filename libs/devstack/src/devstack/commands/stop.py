"""End the running `dev` gracefully, as Ctrl-C in its terminal does.

Shows what dev waits for. The exit code is 1 if dev does not end in time.
"""

import argparse
import os
import signal
import time
from contextlib import suppress

import psutil

from devstack.dev import run_folder
from devstack.dev.screen import DEV
from shopctl.system import log_book, runfile
from shopctl.system.process_state import state_of
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import console

_SECONDS_MAX = 120.0


def configure(parser: argparse.ArgumentParser) -> None:
    del parser


def run(_: argparse.Namespace) -> int:
    """Raises NotRunning, and CommandFailed if dev does not end in time."""
    dev = psutil.Process(run_folder.owner() or runfile.read().pid)
    deadline = time.monotonic() + _SECONDS_MAX

    def still_runs(seconds: float) -> bool:
        time.sleep(seconds)
        return _runs(dev) and time.monotonic() < deadline

    lines = log_book.follow(log_book.PATH, still_runs)
    with suppress(ProcessLookupError):
        os.kill(dev.pid, signal.SIGINT)
    for line in lines:
        if line.process == DEV:
            console().print(line.line, markup=False, highlight=False, soft_wrap=True)
    if _runs(dev):
        raise CommandFailed(f"dev (pid {dev.pid}) is still running after {_SECONDS_MAX:g} s")
    return 0


def _runs(dev: psutil.Process) -> bool:
    return dev.is_running() and state_of(dev.pid) != "gone"
