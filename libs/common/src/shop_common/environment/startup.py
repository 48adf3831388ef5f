"""Prepares a process before its imports, which take a second. `__main__` imports this small module first.

    from shop_common.environment import startup

    startup.prepare()
    from inventory_api.main import main

After `prepare`, SIGTERM and SIGINT end the process even while it starts, writes to standard output never fail, and a
slow start or a crash in native code prints a traceback of each thread.
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
    """Handle signals, protect stdout and stderr, and watch for a slow start. Call it before anything else."""
    # The kernel drops signals to process 1 of a container unless that process has installed a handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    # By default gRPC logs each failed TLS handshake, so any peer that can connect could fill the log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # noqa: TID251 - set for gRPC, which reads it at its import
    _open_closed_files()
    sys.stdout, sys.stderr = _text(1), _text(2)
    # A crash in a library's native code would otherwise leave nothing but the number of the signal.
    faulthandler.enable(file=2)
    # This uses a C thread: it works even if a library holds the interpreter lock or an import hangs.
    faulthandler.dump_traceback_later(SLOW_START_SECONDS, file=2)


def is_over() -> None:
    """Stop watching for a slow start. Call it once the process serves, or waits on purpose and logs that."""
    faulthandler.cancel_dump_traceback_later()


def count_lost_with(count: Callable[[], None]) -> None:
    """Set the function to call for each write that is lost."""
    _Losses.count = count


class _Losses:
    """The function to call for each lost write."""

    count: Callable[[], None] | None = None


class Output(io.RawIOBase):
    """Standard output or error, whose writes never fail.

    Output that cannot be written is dropped, for example if the disk is full, the pipe is closed, or nobody reads the
    pipe for a second. It must not fail a call, end a thread, or change an exit code. `print`, logs, tracebacks and
    argparse all write here.
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
        # After one second without a reader, later writes are dropped at once until the pipe is read again.
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
    """Open /dev/null for closed standard files. Otherwise the next file, such as a database, would get their number."""
    for file in (0, 1, 2):
        try:
            os.fstat(file)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _end(number: int, _frame: FrameType | None) -> None:
    # No call is running yet, and a normal exit could block on a thread.
    os._exit(128 + number)
