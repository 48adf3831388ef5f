"""The CPU time of a process and its descendants, from /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def seconds(root: int) -> float:
    """Return user and system time, including children that have ended: their time is added to a parent that waits."""
    total, queue = 0.0, [root]
    while queue:
        process = Path("/proc", str(queue.pop()))
        try:
            stat = (process / "stat").read_text()
            children = [task.joinpath("children").read_text() for task in (process / "task").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended, so its time counts for its parent
        # Fields after the name, which may contain spaces: user, system, and both of children.
        total += sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICKS
        queue += [int(child) for line in children for child in line.split()]
    return total
