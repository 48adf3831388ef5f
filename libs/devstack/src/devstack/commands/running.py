"""Finds the processes of the running `dev`, and sends signals to them.

Signals are enough, since `dev` itself notices when a process ends.
"""

import argparse
import os
import signal
import time
from contextlib import suppress

import psutil

from shopctl.system import grpc_health, runfile
from shopctl.system.process_state import state_of
from shopctl.system.runfile import NotRunning, RunFile
from shopctl.terminal.colours import BROKER, COLOURS
from shopctl.terminal.failures import CommandFailed

PROCESSES = [name for name in COLOURS if name != BROKER]

_POLL_SECONDS = 0.1


def add_process(parser: argparse.ArgumentParser, *, broker: bool = True) -> None:
    """Add the argument PROCESS."""
    names = [*PROCESSES, *([BROKER] if broker else [])]
    parser.add_argument("process", metavar="PROCESS", choices=names, help=", ".join(names))


def pid_of(run: RunFile, name: str) -> int:
    """Return the pid of a process. Raises CommandFailed if it is not running."""
    pid = run.broker_pid if name == BROKER else run.processes[name].pid
    # If the system has reused the pid, the new process is not a child of dev.
    with suppress(psutil.NoSuchProcess):
        if pid and psutil.Process(pid).ppid() == run.pid and state_of(pid) != "gone":
            return pid
    raise CommandFailed(f"{name} is not running; ./task status shows its state")


def signal_group(run: RunFile, name: str, signum: signal.Signals) -> int:
    """Send a signal to the process and its children. Returns the pid of the process.

    Raises CommandFailed if the process is not running.
    """
    pid = pid_of(run, name)
    with suppress(ProcessLookupError):
        os.killpg(pid, signum)
    return pid


def wait_until_it_serves(name: str, former_pid: int, seconds: float) -> int:
    """Wait until dev has restarted the process and the process serves. Returns the new pid.

    Raises CommandFailed if the process does not serve in time, or if dev ends.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            endpoint = runfile.read().processes[name]
        except NotRunning:
            raise CommandFailed(f"dev ended before {name} served again; ./task logs dev shows why") from None
        if endpoint.pid != former_pid and grpc_health.health(endpoint.health, timeout_seconds=1) == "SERVING":
            return endpoint.pid
        time.sleep(_POLL_SECONDS)
    raise CommandFailed(f"{name} does not serve after {seconds:g} s; ./task logs {name} may show why")
