"""Sends SIGSTOP to the processes of the container whose id is the argument. Prints the time and their number as JSON.

A test passes the source of this file to Python in a pod that shares the process namespace of its node. The first
process of a container ignores SIGSTOP from inside the container.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

container = sys.argv[1]


def belongs(process: Path) -> bool:
    try:
        return container in (process / "cgroup").read_text()
    except OSError:
        return False  # it has ended


pids = [int(process.name) for process in Path("/proc").iterdir() if process.name.isdigit() and belongs(process)]
began = time.time()
for pid in pids:
    os.kill(pid, signal.SIGSTOP)
print(json.dumps([began, len(pids)]))
