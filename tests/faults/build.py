"""Throw-away builds: a copy of the programs, changed at named points, which runs in their place through PYTHONPATH.

The source names the points in comments. `# failpoint: NAME` on a line of its own is a place where code can be inserted,
such as one that ends the process there. At the end of a line it marks that line, which a mutant replaces. The comments
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
"""The name of a failpoint → the code that takes the place of its line."""


def failpoints() -> list[str]:
    """The names in the source, as often as they occur."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return [match[3] for file in files for match in _FAILPOINT.finditer(file.read_text())]


class Build:
    """A build in a folder, which need not exist. Raises ValueError for a failpoint that the source does not have."""

    def __init__(self, folder: Path, code: Mutant) -> None:
        self.folder = folder
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
        """With which the changed programs run instead of the installed ones."""
        return {"PYTHONPATH": str(self.folder)}


_STEPS = '''"""Where a process ends, or stands still, when its test has asked for it."""

import os
import signal
import sys
from pathlib import Path

_ARMED = Path(__file__).parent / "armed"
_ME = Path(sys.argv[0]).parent.name
_passed = {}


def reached(name):
    orders = _ARMED / f"{_ME} {name}"
    try:
        kind, passes = orders.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] <= int(passes):
        return
    try:
        orders.unlink()  # of several processes that come by, one does it
    except FileNotFoundError:
        return
    _passed[name] = 0
    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
'''

BEFORE_COMMIT, AFTER_COMMIT = "before-commit", "after-commit"
BEFORE_PRODUCE, BEFORE_DELETE = "before-produce", "before-delete"
BEFORE_OFFSET = "before-offset-commit"
BEFORE_INSERT, BEFORE_CONFIRMED = "before-order-insert", "before-order-confirmed"

STEPS = (
    BEFORE_COMMIT,
    AFTER_COMMIT,
    BEFORE_PRODUCE,
    BEFORE_DELETE,
    BEFORE_OFFSET,
    BEFORE_INSERT,
    BEFORE_CONFIRMED,
)


class SteppedBuild(Build):
    """A build, or a mutant, in which each program can be stopped at a step of its work."""

    def __init__(self, folder: Path, mutant: Mutant | None = None) -> None:
        reached = {step: f"__import__('steps').reached({step!r})" for step in STEPS}
        super().__init__(folder, {**reached, **(mutant or {})})
        (folder / "steps.py").write_text(_STEPS)
        self._armed = folder / "armed"
        self._armed.mkdir()

    def arm(self, process: str, step: str, kind: Literal["kill", "freeze"], passes: int = 0) -> None:
        """The next time that a process of this name has come by the step so often, it is killed or frozen there."""
        orders = self._armed / f"{process.replace('-', '_')} {step}"
        part = orders.with_suffix(".part")
        part.write_text(f"{kind} {passes}")
        part.replace(orders)

    def is_armed(self) -> bool:
        """Whether nobody has come by yet."""
        return any(self._armed.iterdir())
