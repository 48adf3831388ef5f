"""CPU time of a process with all that it has started, from /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def seconds(root: int) -> float:
    """User and system time so far, also of children that have ended: a parent that waits for them gets their time."""
    total, queue = 0.0, [root]
    while queue:
        process = Path("/proc", str(queue.pop()))
        try:
            stat = (process / "stat").read_text()
            children = [task.joinpath("children").read_text() for task in (process / "task").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended, and its parent has its time
        # Counted behind the name, which may hold spaces: user, system, and the same of children.
        total += sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICKS
        queue += [int(child) for line in children for child in line.split()]
    return total
