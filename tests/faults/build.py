"""Temporary builds: copies of the programs with changes at failpoints, which run instead of them through PYTHONPATH.

Comments in the source mark the failpoints. At `# failpoint: NAME` on a line of its own, a build inserts code, for
example to end the process. At the end of a line, the comment marks that line, which a mutant replaces. The comments
have no effect in the product.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "libs/common/src/shop_common",
    "services/inventory-api/src/inventory_api",
    "services/order-api/src/order_api",
    "services/reservation-reaper/src/reservation_reaper",
    "services/event-relay/src/event_relay",
)

_FAILPOINT = re.compile(r"^( *)(\S.*)?# failpoint: ([a-z-]+)\n", re.MULTILINE)

Mutant = Mapping[str, str]
"""Failpoint → the code that replaces its line."""

LOCALHOST: Mutant = {"server-name": "options = [*self._options, ('grpc.ssl_target_name_override', 'localhost')]"}
"""Every build expects the name localhost in certificates of servers. gRPC cannot verify the servers of a list of
addresses otherwise, and the tests call all processes of a kind at such a list."""


def failpoints() -> list[str]:
    """The names of all failpoints in the source, with repeats."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return [match[3] for file in files for match in _FAILPOINT.finditer(file.read_text())]


class Build:
    """A build in a folder, which it creates. Raises ValueError for a failpoint that the source does not have."""

    def __init__(self, folder: Path, code: Mutant | None = None) -> None:
        self.folder = folder
        code = {**LOCALHOST, **(code or {})}
        used: set[str] = set()

        def replaced(line: re.Match[str]) -> str:
            indent, _, name = line.groups()
            if name not in code:
                return line[0]
            used.add(name)
            return f"{indent}{code[name]}\n"

        for package in PACKAGES:
            source = ROOT / package
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            for file in (folder / source.name).rglob("*.py"):
                file.write_text(_FAILPOINT.sub(replaced, file.read_text()))
        if missing := code.keys() - used:
            raise ValueError(f"the source has no failpoint {', '.join(sorted(missing))}")

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment in which the changed programs run instead of the installed ones."""
        return {"PYTHONPATH": str(self.folder)}


_FAILPOINTS_MODULE = '''"""Kills or freezes the process at a failpoint that its test has armed."""

import os
import signal
import sys
from pathlib import Path

_ARMED = Path(__file__).parent / "armed"
_ME = Path(sys.argv[0]).parent.name
_passed = {}


def reached(name):
    file = _ARMED / f"{_ME} {name}"
    try:
        kind, passes = file.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] <= int(passes):
        return
    try:
        file.unlink()  # only one of several processes that get here succeeds
    except FileNotFoundError:
        return
    _passed[name] = 0
    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
'''

BEFORE_COMMIT, AFTER_COMMIT = "before-commit", "after-commit"
BEFORE_PRODUCE, BEFORE_DELETE = "before-produce", "before-delete"
BEFORE_OFFSET = "before-offset-commit"
BEFORE_INSERT, BEFORE_CONFIRMED = "before-order-insert", "before-order-confirmed"
BEFORE_CHANGED = "before-order-changed"

STOP_POINTS = (
    BEFORE_COMMIT,
    AFTER_COMMIT,
    BEFORE_PRODUCE,
    BEFORE_DELETE,
    BEFORE_OFFSET,
    BEFORE_INSERT,
    BEFORE_CONFIRMED,
    BEFORE_CHANGED,
)


class StoppableBuild(Build):
    """A build, or a mutant, in which a test can kill or freeze each program at a failpoint."""

    def __init__(self, folder: Path, mutant: Mutant | None = None) -> None:
        reached = {name: f"__import__('failpoints').reached({name!r})" for name in STOP_POINTS}
        super().__init__(folder, {**reached, **(mutant or {})})
        (folder / "failpoints.py").write_text(_FAILPOINTS_MODULE)
        self._armed = folder / "armed"
        self._armed.mkdir()

    def arm(self, process: str, failpoint: str, kind: Literal["kill", "freeze"], passes: int = 0) -> None:
        """Kill or freeze a process of this name at the failpoint, once, after it has passed it `passes` times."""
        file = self._armed / f"{process.replace('-', '_')} {failpoint}"
        part = file.with_suffix(".part")
        part.write_text(f"{kind} {passes}")
        part.replace(file)
