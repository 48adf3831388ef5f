"""Shortens the interpreter's switch interval while a large request runs beside calls of other callers.

A large request keeps the interpreter busy for many milliseconds. A small call needs the interpreter several times, and
would wait for it up to the whole switch interval of the process each time.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SHARED_SWITCH_SECONDS = 0.001


class _Shortened:
    """The number of blocks that run with the short interval, and the interval to restore after the last of them."""

    lock = threading.Lock()
    blocks = 0
    normal_seconds = 0.0


@contextmanager
def shortened() -> Iterator[None]:
    """Run the block with the short switch interval. Safe to use on several threads at the same time."""
    with _Shortened.lock:
        if not _Shortened.blocks:
            _Shortened.normal_seconds = sys.getswitchinterval()
            sys.setswitchinterval(min(SHARED_SWITCH_SECONDS, _Shortened.normal_seconds))
        _Shortened.blocks += 1
    try:
        yield
    finally:
        with _Shortened.lock:
            _Shortened.blocks -= 1
            if not _Shortened.blocks:
                sys.setswitchinterval(_Shortened.normal_seconds)
