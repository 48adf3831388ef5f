"""Limits how many large requests are decoded and processed at the same time.

A decoded message takes up to a hundred times its encoded size, because an empty entry of a list has only two encoded
bytes. Without a limit, a few callers could exhaust the memory with requests that validation then rejects.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import TypeVar

from shop_common.errors import QueueFull

_T = TypeVar("_T")

LARGE_REQUEST_BYTES = 64 * 1024
"""Smaller requests need no limit: one is decoded and validated before the interpreter switches to another thread."""

WORKED_ON_BYTES_MAX = 1024 * 1024
"""The total size of the requests that are processed at the same time: one request of the maximum size, or several
smaller ones. A full batch of reservations has half a megabyte."""

WAITING_BYTES_MAX = 32 * 1024 * 1024


class LargeRequests:
    """Admission of large requests on one server. Safe to share between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._worked_on = 0
        self._waiting = 0
        self._decoder = futures.ThreadPoolExecutor(1, thread_name_prefix="decoder")

    def decoded(self, decode: Callable[[bytes], _T], data: bytes) -> _T:
        """Decode the message on the decoder thread. Raises what `decode` raises.

        All large messages are decoded on one thread, because the C library keeps freed memory per thread. If many
        threads decoded large messages, each thread would keep some memory.
        """
        return self._decoder.submit(decode, data).result()

    @contextmanager
    def turn(self, size: int, seconds: float) -> Iterator[None]:
        """Wait up to `seconds` for other large requests, then run the block for a request of `size` bytes.

        Raises QueueFull after `seconds`, and at once if too many bytes are waiting already.
        """
        with self._changed:
            if self._waiting + size > WAITING_BYTES_MAX:
                raise QueueFull("too many large requests are waiting; retry in a moment")
            self._waiting += size
            is_next = self._changed.wait_for(lambda: self._fits(size), seconds)
            self._waiting -= size
            if not is_next:
                raise QueueFull("the server was busy with other large requests; retry in a moment")
            self._worked_on += size
        try:
            yield
        finally:
            with self._changed:
                self._worked_on -= size
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._worked_on or self._worked_on + size <= WORKED_ON_BYTES_MAX
