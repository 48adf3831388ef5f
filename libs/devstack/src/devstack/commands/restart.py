"""End a process of the running `dev` and wait until it serves again: in its own time (restart), or at once (kill).

A restart is what an upgrade does (SIGTERM: the process finishes what it has begun), a kill what a crash does (SIGKILL).
`dev` starts the process again. No unit is oversold and no event is lost by either: ./task load keeps shoppers coming
meanwhile. When the embedded broker is killed, dev ends, since the broker has all events in its memory.
"""

import argparse
import os
import signal
import time

from devstack.commands import running
from shopctl.system import runfile
from shopctl.terminal.colours import BROKER
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import console

_SECONDS_MAX = 90.0
"""To finish what was begun, and to be ready again on a busy machine."""


def configure(parser: argparse.ArgumentParser) -> None:
    running.add_process(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed when it does not come back."""
    dev, name, gently = runfile.read(), options.process, options.gently
    if name == BROKER and gently:
        raise CommandFailed("the broker has all events in its memory, so it can't be restarted; start dev again")
    began = time.monotonic()
    # A frozen one would not hear that it is to end.
    pid = running.signal_group(dev, name, signal.SIGCONT if gently else signal.SIGKILL)
    if gently:
        # To it alone: it looks after its own children.
        os.kill(pid, signal.SIGTERM)
    console().print(f"{name} (pid {pid}) {'ends' if gently else 'is killed'}", highlight=False)
    if name == BROKER:
        console().print("dev ends, too: ./task dev starts it again")
        return 0
    new_pid = running.wait_until_it_serves(name, pid, _SECONDS_MAX)
    console().print(f"{name} serves again after {time.monotonic() - began:.1f} s (pid {new_pid})", highlight=False)
    return 0
