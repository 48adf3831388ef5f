"""Limits how many large requests are decoded and processed at the same time.

A decoded message takes up to a hundred times its encoded size, because an empty entry of a list has only two encoded
bytes. Without a limit, a few callers could exhaust the memory with requests that validation then rejects.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from shop_common.batching.fair_queue import CALLER_SHARE, Sharer, sharer_of
from shop_common.errors import QueueFull
from shop_common.identity.current import caller
from shop_common.rpc.switch_interval import shortened

_T = TypeVar("_T")

LARGE_REQUEST_BYTES = 16 * 1024
"""Smaller requests need no limit: one is decoded and validated before the interpreter switches to another thread."""

WORKED_ON_BYTES_MAX = 1024 * 1024
"""The total size of the requests that are processed at the same time: one request of the maximum size, or several
smaller ones. A full batch of reservations has half a megabyte."""

WAITING_BYTES_MAX = 32 * 1024 * 1024


class LargeRequests:
    """Admission of large requests on one server. Safe to share between threads.

    While `is_shared` returns True, one caller may have a quarter of the bytes that wait, and a quarter of those that
    are processed, but at least one request. Otherwise its threads would keep the interpreter busy, and every other call
    would be slow.
    """

    def __init__(self, is_shared: Callable[[], bool]) -> None:
        self._is_shared = is_shared
        self._changed = threading.Condition()
        self._worked_on = 0
        self._waiting = 0
        self._worked_on_by: Counter[Sharer] = Counter()
        self._waiting_by: Counter[Sharer] = Counter()
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
        sharer = sharer_of(caller())
        with self._changed:
            if not self._may_wait(size, sharer):
                raise QueueFull("too many large requests are waiting; retry in a moment")
            self._waiting += size
            self._waiting_by[sharer] += size
            is_next = self._changed.wait_for(lambda: self._fits(size, sharer), seconds)
            self._waiting -= size
            _reduce(self._waiting_by, sharer, size)
            if not is_next:
                raise QueueFull("the server was busy with other large requests; retry in a moment")
            self._worked_on += size
            self._worked_on_by[sharer] += size
        try:
            with shortened() if self._is_shared() else nullcontext():
                yield
        finally:
            with self._changed:
                self._worked_on -= size
                _reduce(self._worked_on_by, sharer, size)
                self._changed.notify_all()

    def _may_wait(self, size: int, sharer: Sharer) -> bool:
        mine = self._waiting_by[sharer]
        if mine and mine + size > WAITING_BYTES_MAX // CALLER_SHARE and self._is_shared():
            return False
        # If one caller had filled everything while it was alone, the others have another quarter.
        reserve = WAITING_BYTES_MAX // CALLER_SHARE if mine < self._waiting else 0
        return self._waiting + size <= WAITING_BYTES_MAX + reserve

    def _fits(self, size: int, sharer: Sharer) -> bool:
        mine = self._worked_on_by[sharer]
        if mine and mine + size > WORKED_ON_BYTES_MAX // CALLER_SHARE and self._is_shared():
            return False
        return not self._worked_on or self._worked_on + size <= WORKED_ON_BYTES_MAX


def _reduce(bytes_by: Counter[Sharer], sharer: Sharer, size: int) -> None:
    bytes_by[sharer] -= size
    if not bytes_by[sharer]:
        del bytes_by[sharer]
