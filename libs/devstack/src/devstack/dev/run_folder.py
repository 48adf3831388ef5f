"""Locks the run folder, so that only one `dev` can run in it.

python -m devstack.dev.run_folder    # exit code 1, and a message, if the folder is locked
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from shopctl.system import runfile

LOCK = runfile.PATH.with_name("dev.lock")


class Owned(Exception):
    """Another `dev` is running in this folder; the message contains its pid."""

    def __init__(self, pid: str) -> None:
        super().__init__(f"dev is already running here (pid {pid}): ./task stop ends it")
        self.pid = pid


@contextmanager
def owned(path: Path = LOCK) -> Iterator[None]:
    """Lock the folder for the block. Raises Owned if it is locked, or OSError if it cannot be created.

    The kernel holds the lock as long as this process has the file open. It releases the lock when the process ends for
    any reason, so a left-over file does not lock the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Owned(file.read().strip()) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def owner(path: Path = LOCK) -> int | None:
    """Return the pid of the `dev` that owns the folder, even if it is still starting, or None."""
    with suppress(OSError, ValueError, psutil.Error):
        pid = int(path.read_text())
        # The pid in a left-over file may belong to another process now.
        if any("devstack.dev" in word for word in psutil.Process(pid).cmdline()):
            return pid
    return None


def main() -> int:
    """Return exit code 0 if the folder is free, and 1 if it is locked."""
    try:
        with owned():
            return 0
    except Owned as refusal:
        print(refusal, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
