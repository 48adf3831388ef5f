"""What a process does before its imports, which take a second: called by `__main__`, and loads nothing itself.

    from shop_common.environment import startup

    startup.prepare()
    from inventory_api.main import main

From then on SIGTERM and SIGINT end the process although it has not started, standard output never fails, and a start
that takes too long shows where it hangs.
"""

import faulthandler
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

SLOW_START_SECONDS = 20.0

_STALLED_SECONDS = 1.0
_CHUNK_BYTES = select.PIPE_BUF


def prepare() -> None:
    """Take signals, protect the outputs, watch over the start. To be called before anything else."""
    # The kernel sends process 1 of a container no signal that it has no handler for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    _open_closed_files()
    sys.stdout, sys.stderr = _text(1), _text(2)
    # By a thread in C: it works although a library keeps the interpreter, or an import never ends.
    faulthandler.dump_traceback_later(SLOW_START_SECONDS, file=2)


def is_over() -> None:
    """The process serves, or waits for something on purpose and says so: it needs no watching any more."""
    faulthandler.cancel_dump_traceback_later()


def count_lost_with(count: Callable[[], None]) -> None:
    """Call this for each write that is lost from now on."""
    _Losses.count = count


class _Losses:
    """What hears of lost writes."""

    count: Callable[[], None] | None = None


class Output(io.RawIOBase):
    """Standard output or error, whose writes never fail.

    What cannot be written is lost: a full disk, a closed pipe, or a pipe that nobody reads for a second must not fail a
    call, end a thread, or change an exit code. `print`, logs, tracebacks and argparse all write here.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._poll = select.poll()
        self._poll.register(file, select.POLLOUT)
        self._is_stalled = False
        self._lock = threading.Lock()

    def write(self, data: "Buffer", /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        with self._lock:
            try:
                while left:
                    self._wait_until_writable()
                    left = left[os.write(self._file, left[:_CHUNK_BYTES]) :]
            except OSError:
                if _Losses.count is not None:
                    _Losses.count()
        return size

    def _wait_until_writable(self) -> None:
        # When nobody has read for a second, the next lines are lost at once, until somebody reads again.
        seconds = 0.0 if self._is_stalled else _STALLED_SECONDS
        self._is_stalled = not self._poll.poll(seconds * 1000)
        if self._is_stalled:
            raise BlockingIOError

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file

    @property
    def name(self) -> int:
        return self._file

    def isatty(self) -> bool:
        return os.isatty(self._file)


def _text(file: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(Output(file), encoding="utf-8", errors="backslashreplace", write_through=True)


def _open_closed_files() -> None:
    """A closed standard file would be the number of the next one that is opened, such as a database."""
    for file in (0, 1, 2):
        try:
            os.fstat(file)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _end(number: int, _frame: FrameType | None) -> None:
    # Nothing is served yet, and unwinding could wait for a thread.
    os._exit(128 + number)
