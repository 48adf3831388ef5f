"""Calls that wait for their peer: for a message to arrive, or for a response to be read.

grpcio waits for a peer without an end, and mostly on a thread. So every such wait is registered here, and is ended
after some seconds, or as soon as too many calls wait: then the call that has waited longest is ended first. An honest
call, whose message travels with its headers, waits for microseconds.
"""

import threading
import time
from typing import Any

import grpc

SWEEP_SECONDS = 0.5


class PeerWaits:
    """The waiting calls of one server. At most `calls_max` wait at once, each for at most `seconds`.

    Safe to share between threads. Nothing ends by its time before `start`.
    """

    def __init__(self, name: str, *, calls_max: int, seconds: float, waits_for: str) -> None:
        self._name = name
        self._calls_max = calls_max
        self._seconds = seconds
        self._waits_for = waits_for
        # In the sequence in which they began to wait, so that the first one has waited longest.
        self._since: dict[grpc.ServicerContext, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @property
    def count(self) -> int:
        """How many calls wait now."""
        return len(self._since)

    def begin(self, context: grpc.ServicerContext) -> None:
        """This call waits from now on; one that waits already begins anew."""
        longest = None
        with self._lock:
            if self._since:
                self._since.pop(context, None)
            self._since[context] = time.monotonic()
            if len(self._since) > self._calls_max:
                longest = next(iter(self._since))
                del self._since[longest]
        if longest is not None:
            # Clients may send it again: nothing of it was done.
            _end(
                longest, grpc.StatusCode.UNAVAILABLE, f"ended while waiting for {self._waits_for}: too many calls wait"
            )

    def end(self, context: grpc.ServicerContext) -> bool:
        """This call waits no more. False if it was ended here, or did not wait."""
        with self._lock:
            return self._since.pop(context, None) is not None

    def start(self) -> None:
        """End from now on what has waited too long."""
        threading.Thread(target=self._sweep, name=f"{self._name} waits", daemon=True).start()

    def stop(self) -> None:
        """Stop ending calls by their time."""
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
    """End a call from a thread that is not its own, whatever its peer does."""
    # The public `context.cancel()` is this call without arguments, which tells the client CANCELLED and no reason.
    context._rpc_event.call.cancel(code.value[0], why)  # noqa: SLF001
