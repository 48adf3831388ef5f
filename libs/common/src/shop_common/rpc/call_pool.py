"""Admits calls and runs them on threads, so that no caller can take all of them from the others.

grpcio only needs an executor with `submit`. The standard one creates a Future, a work item and three locks for each
call. This pool creates few objects, which saves about a tenth of the CPU time of a small call.
"""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from queue import SimpleQueue
from typing import Any

from shop_common.batching.fair_queue import CALLER_SHARE, FairQueue, Sharer, Sharing, sharer_of
from shop_common.identity.caller import ANYONE, Caller
from shop_common.rpc.peer_waits import PeerWaits
from shop_common.rpc.sharers import Sharers, Unknown
from shop_common.telemetry import logs

_log = logs.get(__name__)

_REFUSING_THREADS = 4
_UNBOUNDED = 2**31
_EVERYBODY = sharer_of(ANYONE)

_Task = tuple[Callable[..., Any], tuple[Any, ...], Sharer]


class _Thread(threading.local):
    """What a thread is doing."""

    is_refusing = False
    sharer: Sharer = None
    """The sharer for whom the present call of the thread counts."""


_thread = _Thread()


def is_refusing() -> bool:
    """Return whether this thread runs calls only to refuse them, because there are too many."""
    return _thread.is_refusing


class CallPool(futures.Executor):
    """Runs calls on up to `threads_max` threads. Starts a thread when a call needs one.

    Without `sharers`, all calls count as those of one caller. Otherwise callers take turns for threads. A caller alone
    may have `calls_max` waiting and running calls. While several callers have calls, or have had some within the last
    second, each of them may have a quarter of `calls_max` or of the threads, whichever is less. If one caller has used
    up `calls_max` while it was alone, the others together may have a further quarter.

    Further calls run on threads where `is_refusing` returns True. Refusals have their own threads, because they must be
    sent even if all other threads are busy. `calls` is the number of admitted calls. They are counted here, not in the
    handlers, because a call that is cancelled while it waits never reaches its handler.
    """

    def __init__(self, threads_max: int, calls_max: int, waits: PeerWaits, sharers: Sharers | None) -> None:
        self.calls = 0
        self._threads_max = threads_max
        self._calls_max = calls_max
        self._share_max = max(1, min(calls_max, threads_max) // CALLER_SHARE)
        self._waits = waits
        self._sharers = sharers
        self._sharing = Sharing()
        self._waiting: FairQueue[_Task] = FairQueue(size_max=_UNBOUNDED, share_max=_UNBOUNDED, entry_max=_UNBOUNDED)
        self._wake: SimpleQueue[bool] = SimpleQueue()
        """True for each call that waits in `_waiting`; False ends a thread."""
        self._threads: list[threading.Thread] = []
        self._refusing = futures.ThreadPoolExecutor(
            _REFUSING_THREADS, thread_name_prefix="refusing", initializer=_begin_refusing
        )
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> futures.Future[Any]:
        """Queue or refuse the call. Always returns the same finished Future, because grpcio reads nothing from it."""
        sharer = _EVERYBODY
        if self._sharers is not None:
            sharer = self._sharers.of_event(args[1])
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            now = time.monotonic()
            is_admitted = self._has_room(sharer, now)
            if is_admitted:
                self.calls += 1
                self._sharing.begin(sharer, 1, now)
                self._waiting.add(sharer, ((fn, args, sharer),), now)
                if self.calls > len(self._threads) < self._threads_max:
                    self._add_thread()
            else:
                self._sharing.note(sharer, now)
        if is_admitted:
            self._wake.put(True)
        else:
            self._refusing.submit(fn, *args)
        return _DONE

    def identify(self, metadata: Iterable[tuple[str, str | bytes]], certified: str | None, caller: Caller) -> None:
        """Count the call that this thread runs for its authenticated caller, also in later calls."""
        unknown = _thread.sharer
        if self._sharers is None or not isinstance(unknown, Unknown):
            return
        sharer = self._sharers.learn(metadata, certified, caller)
        with self._lock:
            self._sharing.move(unknown, sharer)
        _thread.sharer = sharer

    def is_shared(self) -> bool:
        """Return whether several callers have calls, or have had some within the last second."""
        with self._lock:
            return self._sharing.is_shared(time.monotonic())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. With `wait`, return after the accepted calls have run."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._wake.put(False)
        for thread in threads if wait else ():
            thread.join()
        self._refusing.shutdown(wait=wait)

    def _has_room(self, sharer: Sharer, now: float) -> bool:
        # Do not count calls whose message has not arrived: they are ended as soon as other calls need their threads.
        calls = self.calls - self._waits.count
        if self._sharing.is_shared_with(sharer, now):
            return (
                self._sharing.used_by(sharer) < self._share_max
                and calls < self._calls_max + self._calls_max // CALLER_SHARE
            )
        return calls < self._calls_max

    def _add_thread(self) -> None:
        # Use daemon threads, so that a call that never ends cannot keep the process alive.
        thread = threading.Thread(target=self._work, name=f"call-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        wake, lock, waiting, thread = self._wake.get, self._lock, self._waiting, _thread
        while wake():
            with lock:
                waiting.head()  # gives the turn to the next caller
                fn, args, thread.sharer = waiting.pop(1)
            try:
                fn(*args)
            except Exception:
                # grpcio catches every exception of a handler, so this is a defect in grpcio. Keep the thread.
                _log.exception("a call ended outside of its handler")
            # The event in `args` references the call's memory. Release it before waiting for the next call.
            del fn, args
            with lock:
                self.calls -= 1
                self._sharing.end(thread.sharer, 1, time.monotonic())


def _begin_refusing() -> None:
    _thread.is_refusing = True


_DONE: futures.Future[Any] = futures.Future()
_DONE.set_result(None)
