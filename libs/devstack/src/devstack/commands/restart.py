"""End a process of the running `dev`, gracefully (restart) or at once (kill), and wait until it serves again.

A restart acts like an upgrade: after SIGTERM, the process finishes its work. A kill (SIGKILL) acts like a crash. `dev`
starts the process again. Neither oversells stock or loses events. To try this under load, run ./task load at the same
time. If the embedded broker is killed, dev ends, too, because the broker keeps all events in memory.
"""

import argparse
import signal
import time

from devstack.commands import running
from shopctl.system import runfile
from shopctl.system.running import end_gracefully, signal_group
from shopctl.terminal.colours import BROKER
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import console

_SECONDS_MAX = 90.0
"""The time in which a process can finish its work and become ready again, even on a busy machine."""


def configure(parser: argparse.ArgumentParser) -> None:
    running.add_process(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed if the process does not serve again in time."""
    dev, name, graceful = runfile.read(), options.process, options.graceful
    if name == BROKER and graceful:
        raise CommandFailed(
            "the embedded broker cannot be restarted alone: it would lose its events. Stop dev and start it again"
        )
    began = time.monotonic()
    pid = end_gracefully(dev, name) if graceful else signal_group(dev, name, signal.SIGKILL)
    console().print(f"{name} (pid {pid}) {'is ending' if graceful else 'was killed'}", highlight=False)
    if name == BROKER:
        console().print("dev ends, too; ./task dev starts it again")
        return 0
    new_pid = running.wait_until_it_serves(name, pid, _SECONDS_MAX)
    console().print(f"{name} serves again after {time.monotonic() - began:.1f} s (pid {new_pid})", highlight=False)
    return 0
