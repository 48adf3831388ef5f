"""The run file: the processes of `dev` and their addresses, for all other tasks."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from shopctl.system import private_file
from shopctl.system.layout import INVENTORY_API, ORDER_API, Databases

PATH = Path("run/devstack.json")

# The operating system rounds a process's start time differently in different places.
_SAME_START_SECONDS = 1.0


class NotRunning(Exception):
    """The system, or a part of it, is not running; the message is for the user."""


@dataclass(frozen=True)
class Endpoint:
    """A process and its addresses. `address` is that of its API. Without an API, it is the same as `health`.

    `metrics` is None if metrics are off.
    """

    pid: int
    address: str
    metrics: str | None
    health: str


@dataclass(frozen=True)
class RunFile:
    """The running system. `started` distinguishes `dev` from a later process with the same pid.

    `certificates` is the folder with tls.crt, tls.key and ca.crt for clients, or None if the APIs use plain text.
    `traces_elsewhere` is the user's OTLP endpoint, empty if spans are dropped, None if `dev` collects the spans.
    """

    pid: int
    started: float
    bootstrap: str
    databases: Databases
    processes: dict[str, Endpoint]
    traces_elsewhere: str | None = None
    broker_pid: int | None = None
    certificates: str | None = None

    @property
    def apis(self) -> tuple[str, str]:
        """Return the addresses of inventory-api and order-api."""
        return self.processes[INVENTORY_API].address, self.processes[ORDER_API].address


def write(run: RunFile, path: Path = PATH) -> None:
    """Write the file atomically. It contains passwords, so only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    private_file.replace(path, (json.dumps(asdict(run), indent=2) + "\n").encode())


def read(path: Path = PATH) -> RunFile:
    """Return the running system. Raises NotRunning, also if the file is left over from a `dev` that has ended."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotRunning("dev is not running here; start it with ./task dev") from None
    run = RunFile(
        pid=content["pid"],
        started=content["started"],
        bootstrap=content["bootstrap"],
        databases=Databases(**content["databases"]),
        processes={name: Endpoint(**endpoint) for name, endpoint in content["processes"].items()},
        traces_elsewhere=content.get("traces_elsewhere"),
        broker_pid=content.get("broker_pid"),
        certificates=content.get("certificates"),
    )
    if not _still_runs(run):
        raise NotRunning(f"dev is no longer running ({path} is left over); start it with ./task dev")
    return run


def remove(path: Path = PATH) -> None:
    """Remove the file. May be repeated."""
    path.unlink(missing_ok=True)


def _still_runs(run: RunFile) -> bool:
    try:
        return abs(psutil.Process(run.pid).create_time() - run.started) < _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return False
