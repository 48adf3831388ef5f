"""Reads the CPU time of a process and its descendants from /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def seconds(root: int) -> float:
    """Return the user and system time of the process and its descendants.

    Includes descendants that have ended: the kernel adds their time to that of the parent that waits for them.
    """
    total, queue = 0.0, [root]
    while queue:
        process = Path("/proc", str(queue.pop()))
        try:
            stat = (process / "stat").read_text()
            children = [task.joinpath("children").read_text() for task in (process / "task").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended, so its time counts for its parent
        # Skip the name, which may contain spaces. The fields are the user and system time of the process, and those of
        # its ended children.
        total += sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICKS
        queue += [int(child) for line in children for child in line.split()]
    return total
