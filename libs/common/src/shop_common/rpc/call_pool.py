"""The thread pool that runs calls, and counts the calls that are waiting or running.

grpcio only needs an executor with `submit`. The standard one creates a Future, a work item and three locks for each
call. This pool creates a tuple and takes one lock, which saves about a tenth of the CPU time of a small call.
"""

import threading
from collections.abc import Callable
from concurrent import futures
from queue import SimpleQueue
from typing import Any

from shop_common.telemetry import logs

_log = logs.get(__name__)

_Task = tuple[Callable[..., Any], tuple[Any, ...]]


class CallPool(futures.Executor):
    """Runs calls in order of arrival on up to `threads_max` threads. Starts a thread when a call needs one.

    `calls` is the number of waiting and running calls. It is counted here, not in the handlers, because a call that is
    cancelled while it waits never reaches its handler.
    """

    def __init__(self, threads_max: int) -> None:
        self.calls = 0
        self._threads_max = threads_max
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> futures.Future[Any]:
        """Queue the call. Always returns the same finished Future, because grpcio reads nothing from it."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self.calls += 1
            if self.calls > len(self._threads) < self._threads_max:
                self._add_thread()
        self._queue.put((fn, args))
        return _DONE

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. With `wait`, return after the accepted calls have run."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._queue.put(None)
        for thread in threads if wait else ():
            thread.join()

    def _add_thread(self) -> None:
        # Use daemon threads, so that a call that never ends cannot keep the process alive.
        thread = threading.Thread(target=self._work, name=f"call-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        take, lock = self._queue.get, self._lock
        while (task := take()) is not None:
            fn, args = task
            try:
                fn(*args)
            except Exception:
                # grpcio catches every exception of a handler, so this is a defect in grpcio. Keep the thread.
                _log.exception("a call ended outside of its handler")
            # The event in `args` references the call's memory. Release it before waiting for the next call.
            del task, fn, args
            with lock:
                self.calls -= 1


_DONE: futures.Future[Any] = futures.Future()
_DONE.set_result(None)
