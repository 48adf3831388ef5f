"""Large requests, of which few are worked on at a time.

A message takes up to a hundred times its bytes once it is decoded: two bytes are enough for an empty entry of a list.
So a few callers at once could take all memory with requests that are refused as soon as they are looked at.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import TypeVar

from shop_common.errors import QueueFull

_T = TypeVar("_T")

LARGE_REQUEST_BYTES = 64 * 1024
"""What is smaller is decoded and refused before the interpreter passes to another thread."""

WORKED_ON_BYTES_MAX = 1024 * 1024
"""The largest request, or several smaller ones: a full batch of reservations has half a megabyte."""

WAITING_BYTES_MAX = 32 * 1024 * 1024


class LargeRequests:
    """The large requests of one server. Safe to share between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._worked_on = 0
        self._waiting = 0
        self._decoder = futures.ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def decoded(self, decode: Callable[[bytes], _T], data: bytes) -> _T:
        """The message in these bytes. Raises what `decode` raises.

        On one thread for all: the C library keeps apart what each thread has freed, and others do not use it again.
        """
        return self._decoder.submit(decode, data).result()

    @contextmanager
    def turn(self, size: int, seconds: float) -> Iterator[None]:
        """Work on a request of so many bytes in this block, after it has waited for others, at most so long.

        Raises QueueFull when too much waits already, or the time is up.
        """
        with self._changed:
            if self._waiting + size > WAITING_BYTES_MAX:
                raise QueueFull("the server has as many large requests as it takes on; retry after a moment")
            self._waiting += size
            is_next = self._changed.wait_for(lambda: self._fits(size), seconds)
            self._waiting -= size
            if not is_next:
                raise QueueFull("the server was busy with other large requests; retry after a moment")
            self._worked_on += size
        try:
            yield
        finally:
            with self._changed:
                self._worked_on -= size
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._worked_on or self._worked_on + size <= WORKED_ON_BYTES_MAX
