"""Bounds the time that calls wait for their peer to send a message or to read a response.

grpcio waits for a peer without a limit, and usually blocks a thread. So every such wait is registered here. A call that
waits too long is ended. If too many calls wait, the call that has waited longest is ended. A well-behaved client sends
its message with the headers, so its call waits only for microseconds.
"""

import threading
import time
from typing import Any

import grpc

SWEEP_SECONDS = 0.5


class PeerWaits:
    """The waiting calls of one server: at most `calls_max` at once, each for at most `seconds`.

    `waits_for` completes the error message "ended while waiting for …". Safe to share between threads. Calls do not
    time out before `start`.
    """

    def __init__(self, name: str, *, calls_max: int, seconds: float, waits_for: str) -> None:
        self._name = name
        self._calls_max = calls_max
        self._seconds = seconds
        self._waits_for = waits_for
        # The calls are in the order in which their waits began, so the first call has waited longest.
        self._since: dict[grpc.ServicerContext, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def count(self) -> int:
        """Return the number of calls that are waiting."""
        return len(self._since)

    def begin(self, context: grpc.ServicerContext) -> None:
        """Register that this call waits. If the call is waiting already, its time starts again."""
        longest = None
        with self._lock:
            if self._since:
                self._since.pop(context, None)
            self._since[context] = time.monotonic()
            if len(self._since) > self._calls_max:
                longest = next(iter(self._since))
                del self._since[longest]
        if longest is not None:
            # UNAVAILABLE lets clients retry. A call without its message had no effect. One with an unread response may
            # have had its effect.
            _end(
                longest, grpc.StatusCode.UNAVAILABLE, f"ended while waiting for {self._waits_for}: too many calls wait"
            )

    def end(self, context: grpc.ServicerContext) -> bool:
        """Register that this call no longer waits. Returns False if it was ended before, or was not waiting."""
        with self._lock:
            return self._since.pop(context, None) is not None

    def start(self) -> None:
        """Start the thread that ends calls after they have waited too long."""
        threading.Thread(target=self._sweep, name=f"{self._name} waits", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread that ends calls."""
        self._stopped.set()

    def _sweep(self) -> None:
        while not self._stopped.wait(SWEEP_SECONDS):
            begun_before = time.monotonic() - self._seconds
            overdue = []
            with self._lock:
                for context, since in self._since.items():
                    if since > begun_before:
                        break
                    overdue.append(context)
                for context in overdue:
                    del self._since[context]
            for context in overdue:
                why = f"ended after {self._seconds:g} s of waiting for {self._waits_for}"
                _end(context, grpc.StatusCode.DEADLINE_EXCEEDED, why)


def _end(context: Any, code: grpc.StatusCode, why: str) -> None:
    """End a call from another thread, even if its peer does nothing."""
    # The public `context.cancel()` calls this without arguments, so the client would get CANCELLED and no reason.
    context._rpc_event.call.cancel(code.value[0], why)  # noqa: SLF001
