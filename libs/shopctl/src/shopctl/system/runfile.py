"""The run file: what `dev` runs and where it listens, for every other task to find."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from shopctl.system.layout import INVENTORY_API, ORDER_API, Databases

PATH = Path("run/devstack.json")

# Clocks of the system round differently when they tell when a process began.
_SAME_START_SECONDS = 1.0


class NotRunning(Exception):
    """What is needed does not run here; the message is for the person who needs it."""


@dataclass(frozen=True)
class Endpoint:
    """A process and where it listens: its API (for relay and reaper, health), metrics if they are on, and probes."""

    pid: int
    address: str
    metrics: str | None
    health: str


@dataclass(frozen=True)
class RunFile:
    """What runs. `started` tells the process of that number from a later one with the same.

    `traces_elsewhere` is the user's own OTLP endpoint, empty for nowhere; None when `dev` collects the spans itself.
    """

    pid: int
    started: float
    bootstrap: str
    databases: Databases
    processes: dict[str, Endpoint]
    traces_elsewhere: str | None = None
    broker_pid: int | None = None

    @property
    def apis(self) -> tuple[str, str]:
        """The addresses of inventory-api and order-api."""
        return self.processes[INVENTORY_API].address, self.processes[ORDER_API].address


def write(run: RunFile, path: Path = PATH) -> None:
    """Whoever reads it sees all of it or none. It names passwords, so only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.touch(mode=0o600)
    part.write_text(json.dumps(asdict(run), indent=2) + "\n")
    part.replace(path)


def read(path: Path = PATH) -> RunFile:
    """What runs now. Raises NotRunning, also where a file tells of a `dev` that is gone."""
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
    )
    if not _still_runs(run):
        raise NotRunning(f"dev is not running any more (it left {path}); start it with ./task dev")
    return run


def remove(path: Path = PATH) -> None:
    """Nothing runs any more. May be repeated."""
    path.unlink(missing_ok=True)


def _still_runs(run: RunFile) -> bool:
    try:
        return abs(psutil.Process(run.pid).create_time() - run.started) < _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return False
