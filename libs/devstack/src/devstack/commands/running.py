"""The processes of the running `dev` that commands name, and waiting until one of them serves again."""

import argparse
import time

from shopctl.system import grpc_health, runfile
from shopctl.system.runfile import NotRunning
from shopctl.terminal.colours import BROKER, COLOURS
from shopctl.terminal.failures import CommandFailed

PROCESSES = [name for name in COLOURS if name != BROKER]

_POLL_SECONDS = 0.1


def add_process(parser: argparse.ArgumentParser, *, broker: bool = True) -> None:
    """Add the argument PROCESS."""
    names = [*PROCESSES, *([BROKER] if broker else [])]
    parser.add_argument("process", metavar="PROCESS", choices=names, help=", ".join(names))


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
