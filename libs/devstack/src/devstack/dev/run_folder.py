"""The run folder has one owner: the `dev` that runs in it.

python -m devstack.dev.run_folder    # exit code 1, and a sentence, while somebody owns it
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
    """Another `dev` runs in this folder; the message names it."""

    def __init__(self, pid: str) -> None:
        super().__init__(f"dev is already running here (pid {pid}): ./task stop ends it")
        self.pid = pid


@contextmanager
def owned(path: Path = LOCK) -> Iterator[None]:
    """Own the folder for the block. Raises Owned, and OSError where the folder can't be made.

    The kernel keeps the lock for as long as this process has the file open. So it ends with the process, however that
    ends, and a file that was left behind is no lock.
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
    """The pid of the `dev` that owns the folder, also while that is still starting; None when there is none."""
    with suppress(OSError, ValueError, psutil.Error):
        pid = int(path.read_text())
        # A number that was left behind may be another's by now.
        if any("devstack.dev" in word for word in psutil.Process(pid).cmdline()):
            return pid
    return None


def main() -> int:
    """Whether the folder is free: its exit code."""
    try:
        with owned():
            return 0
    except Owned as refusal:
        print(refusal, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
