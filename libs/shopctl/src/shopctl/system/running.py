"""Sends signals to the processes of the running `dev`. `dev` itself notices when a process ends."""

import os
import signal
from contextlib import suppress

import psutil

from shopctl.system.process_state import state_of
from shopctl.system.runfile import RunFile
from shopctl.terminal.colours import BROKER
from shopctl.terminal.failures import CommandFailed


def signal_group(run: RunFile, name: str, signum: signal.Signals) -> int:
    """Send a signal to the process and its children. Returns the pid of the process.

    Raises CommandFailed if the process is not running.
    """
    pid = _pid_of(run, name)
    with suppress(ProcessLookupError):
        os.killpg(pid, signum)
    return pid


def end_gracefully(run: RunFile, name: str) -> int:
    """Let the process finish its work and end. Returns its pid. Raises CommandFailed if it is not running."""
    # Thaw the process first: a frozen process does not handle SIGTERM.
    pid = signal_group(run, name, signal.SIGCONT)
    # Send SIGTERM only to the process, not to its group: the process ends its children itself.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return pid


def _pid_of(run: RunFile, name: str) -> int:
    """Return the pid of a process. Raises CommandFailed if it is not running."""
    pid = run.broker_pid if name == BROKER else run.processes[name].pid
    # If the system has reused the pid, the new process is not a child of dev.
    with suppress(psutil.NoSuchProcess):
        if pid and psutil.Process(pid).ppid() == run.pid and state_of(pid) != "gone":
            return pid
    raise CommandFailed(f"{name} is not running; ./task status shows its state")
