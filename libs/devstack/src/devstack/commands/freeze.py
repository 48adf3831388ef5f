"""Stop a process of the running `dev` in the middle of whatever it does (SIGSTOP), or let it go on (thaw: SIGCONT).

A frozen process keeps its connections, locks and leases, as one does that its machine has forgotten for a while. What
needs it waits, or fails in time; the rest goes on. ./task status shows which are frozen. If it stands in the middle of
a write to an SQLite file, no other process can change that database until it is thawed or killed.
"""

import argparse
import signal

import psutil

from devstack.commands import running
from devstack.process import wait_until_stopped
from shopctl.system import runfile
from shopctl.terminal.output import console


def configure(parser: argparse.ArgumentParser) -> None:
    running.add_process(parser)


def run(options: argparse.Namespace) -> int:
    """May be repeated. Raises CommandFailed while it is not running."""
    name, freezes = options.process, options.freezes
    pid = running.signal_group(runfile.read(), name, signal.SIGSTOP if freezes else signal.SIGCONT)
    if freezes:
        wait_until_stopped([psutil.Process(pid)])
    done = f"is frozen; ./task thaw {name} lets it go on" if freezes else "goes on"
    console().print(f"{name} (pid {pid}) {done}", highlight=False)
    return 0
