"""Freeze a process of the running `dev` (SIGSTOP), or let it continue (thaw: SIGCONT).

A frozen process keeps its connections and locks, and its leases until they expire, like a process on a suspended
machine. Its clients wait or time out; the other processes continue. ./task status shows frozen processes. If a process
is frozen while it writes to an SQLite file, no other process can change that database until the frozen process is
thawed or killed.
"""

import argparse
import signal

import psutil

from devstack.commands import running
from devstack.process import wait_until_stopped
from shopctl.system import runfile
from shopctl.system.running import signal_group
from shopctl.terminal.output import console


def configure(parser: argparse.ArgumentParser) -> None:
    running.add_process(parser)


def run(options: argparse.Namespace) -> int:
    """May be repeated. Raises CommandFailed if the process is not running."""
    name, freezes = options.process, options.freezes
    pid = signal_group(runfile.read(), name, signal.SIGSTOP if freezes else signal.SIGCONT)
    if freezes:
        wait_until_stopped([psutil.Process(pid)])
    done = f"is frozen; ./task thaw {name} lets it continue" if freezes else "continues"
    console().print(f"{name} (pid {pid}) {done}", highlight=False)
    return 0
