"""Threads for calls, which also know how many calls are in the system.

grpcio hands each call to an executor and cares for nothing but that it runs. The standard one makes a Future, a
work item and three locks for each; this one a tuple and one lock, which saves about a tenth of a small call's CPU.
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
    """Runs calls on up to `threads_max` threads, started as they are needed, in order of arrival.

    `calls` is how many wait or run. It is counted here, not in the handlers, since a call that is cancelled while it
    waits never reaches its handler.
    """

    def __init__(self, threads_max: int) -> None:
        self.calls = 0
        self._threads_max = threads_max
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> futures.Future[Any]:
        """Queue the call. The Future is always the same and always done: grpcio reads nothing from it."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self.calls += 1
            if self.calls > len(self._threads) < self._threads_max:
                self._add_thread()
        self._queue.put((fn, args))
        return _DONE

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, return when those taken have run."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._queue.put(None)
        for thread in threads if wait else ():
            thread.join()

    def _add_thread(self) -> None:
        # Daemons, so that a call that never ends cannot hold the process.
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
                # grpcio catches all that a handler raises, so this is a fault of grpcio's own; the thread lives on.
                _log.exception("a call ended outside of its handler")
            # The event in `args` holds the call's memory; it must not live until the next call comes.
            del task, fn, args
            with lock:
                self.calls -= 1


_DONE: futures.Future[Any] = futures.Future()
_DONE.set_result(None)
