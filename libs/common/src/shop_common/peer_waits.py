"""Calls that wait for their peer: for a message to arrive, or for a response to be read.

grpcio waits for a peer without an end, and mostly on a thread. So every such wait is registered here, and is ended
after some seconds, or earlier when too many calls wait: then the call that has waited longest is ended first. An honest
call, whose message travels with its headers, waits for microseconds; on a busy machine, in a burst of calls, longer.
"""

import threading
import time
from collections.abc import Iterable
from typing import Any

import grpc

SWEEP_SECONDS = 0.5

PATIENCE_SECONDS = 0.5
"""A call that has waited for less may be one of an honest burst. It is ended for others only when very many wait."""


class PeerWaits:
    """The waiting calls of one server, each for at most `seconds`.

    At most `calls_max` wait for longer than PATIENCE_SECONDS, and never more than `burst_max` at once.

    Safe to share between threads. Nothing ends by its time before `start`.
    """

    def __init__(self, name: str, *, calls_max: int, burst_max: int, seconds: float, waits_for: str) -> None:
        self._name = name
        self._calls_max = calls_max
        self._burst_max = burst_max
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
        now = time.monotonic()
        with self._lock:
            if self._since:
                self._since.pop(context, None)
            self._since[context] = now
            crowded_out = self._crowded_out(now) if len(self._since) > self._calls_max else []
        self._end_for_others(crowded_out)

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
            now = time.monotonic()
            with self._lock:
                overdue = self._take_longest(len(self._since), begun_before=now - self._seconds)
                # Also here: when every thread waits, no further call begins to.
                crowded_out = self._crowded_out(now)
            for context in overdue:
                why = f"ended after {self._seconds:g} s of waiting for {self._waits_for}"
                _end(context, grpc.StatusCode.DEADLINE_EXCEEDED, why)
            self._end_for_others(crowded_out)

    def _crowded_out(self, now: float) -> list[grpc.ServicerContext]:
        """The calls that wait beyond the bound, those that have waited longest; they are waiting no more."""
        at_once = self._take_longest(len(self._since) - self._burst_max, begun_before=now)
        return at_once + self._take_longest(len(self._since) - self._calls_max, begun_before=now - PATIENCE_SECONDS)

    def _take_longest(self, count: int, *, begun_before: float) -> list[grpc.ServicerContext]:
        """Take out at most so many calls, of those that began to wait by then. Needs the lock."""
        taken: list[grpc.ServicerContext] = []
        for context, since in self._since.items():
            if len(taken) >= count or since > begun_before:
                break
            taken.append(context)
        for context in taken:
            del self._since[context]
        return taken

    def _end_for_others(self, calls: Iterable[grpc.ServicerContext]) -> None:
        for context in calls:
            # Clients may send it again under its request_id.
            _end(
                context, grpc.StatusCode.UNAVAILABLE, f"ended while waiting for {self._waits_for}: too many calls wait"
            )


def _end(context: Any, code: grpc.StatusCode, why: str) -> None:
    """End a call from a thread that is not its own, whatever its peer does."""
    # The public `context.cancel()` is this call without arguments, which tells the client CANCELLED and no reason.
    context._rpc_event.call.cancel(code.value[0], why)  # noqa: SLF001
