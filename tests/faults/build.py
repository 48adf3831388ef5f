"""A throw-away build: a copy of the programs with a line or two changed, run in their place by way of PYTHONPATH.

So a guard can be switched off, and a process be stopped at a very step, while the product has no hook for either.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Change:
    """In a file, such as `inventory_api/store/items.py`: this text, which is there so many times, becomes that one."""

    file: str
    old: str
    new: str
    times: int = 1


class Build:
    """In a folder that need not exist. Raises ValueError when a change does not fit the sources any more."""

    def __init__(self, folder: Path, changes: Sequence[Change]) -> None:
        self.folder = folder
        for package in PACKAGES:
            source = ROOT / package
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        for change in changes:
            path = folder / change.file
            text = path.read_text()
            if text.count(change.old) != change.times:
                raise ValueError(f"{change.file} has {text.count(change.old)} times: {change.old}")
            path.write_text(text.replace(change.old, change.new))

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

BEFORE_COMMIT, AFTER_COMMIT = "before commit", "after commit"
BEFORE_PRODUCE, BEFORE_DELETE = "before produce", "between acknowledgement and delete"
BEFORE_OFFSET = "between effect and offset"
BEFORE_INSERT, BEFORE_CONFIRMED = "between hold and order", "between confirmed stock and order"

_MARKS = (
    Change(
        "shop_common/db/database.py",
        "            phase.committing = True\n",
        "            phase.committing = True\n            __import__('steps').reached('before commit')\n",
    ),
    Change(
        "shop_common/db/database.py",
        "        for metric, counts in counted:\n",
        "        __import__('steps').reached('after commit')\n        for metric, counts in counted:\n",
    ),
    Change(
        "event_relay/relay.py",
        "            self._flight = self._shipper.send(",
        "            __import__('steps').reached('before produce')\n            self._flight = self._shipper.send(",
    ),
    Change(
        "event_relay/relay.py",
        "        arrived = self._ours_of_what_arrived()\n",
        "        arrived = self._ours_of_what_arrived()\n"
        "        if arrived:\n            __import__('steps').reached('between acknowledgement and delete')\n",
    ),
    Change(
        "shop_common/events/consumer.py",
        "                    self._reader.done(messages)\n",
        "                    __import__('steps').reached('between effect and offset')\n"
        "                    self._reader.done(messages)\n",
    ),
    Change(
        "order_api/operations/placing.py",
        "            return self._insert(held, deadline=deadline)\n",
        "            __import__('steps').reached('between hold and order')\n"
        "            return self._insert(held, deadline=deadline)\n",
    ),
    Change(
        "order_api/operations/confirming.py",
        "        return self._finish(Asked",
        "        __import__('steps').reached('between confirmed stock and order')\n        return self._finish(Asked",
    ),
)


class SteppedBuild(Build):
    """The programs as they are, or with these changes, but each can be made to stop at a named step of its work."""

    def __init__(self, folder: Path, changes: Sequence[Change] = ()) -> None:
        super().__init__(folder, [*changes, *_MARKS])
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
