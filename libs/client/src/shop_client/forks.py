"""Lets a program fork while it uses this client.

gRPC survives a fork only if no thread is in one of its functions. So a fork waits until the running RPCs have ended,
and other threads start new RPCs only after it. The threads of the parent, gRPC's included, do not exist in the child.
So the child makes new connections and new locks.
"""

import os
import threading
import time
from types import TracebackType

WAIT_SECONDS_MAX = 10.0
"""The longest time that a fork waits for the running RPCs. Then the process forks anyway."""

_POLL_SECONDS = 0.001


class Rpcs:
    """The running RPCs. `with` counts one; RPCs that end on another thread use `begin` and `end`."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        """Protects `_started`. Held during a fork, so that no RPC starts."""
        self._ending = threading.Lock()
        """Protects `_ended`. Never held during a fork by the thread that forks, since RPCs must end before it."""
        self._started = 0
        self._ended = 0
        self._is_paused = False

    def begin(self) -> None:
        """Count an RPC. Waits while another thread forks."""
        with self._starting:
            self._started += 1

    def end(self) -> None:
        with self._ending:
            self._ended += 1

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def pause(self) -> None:
        """Wait until no RPC is running, at most WAIT_SECONDS_MAX, and let none start before `resume`."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        # Use a timeout: a signal handler that forks may have interrupted `begin` on this thread, which has the lock.
        self._is_paused = self._starting.acquire(timeout=WAIT_SECONDS_MAX)
        while self._started > self._ended and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._starting.release()


class Process:
    """What clients need to know about their process."""

    def __init__(self) -> None:
        self.generation = 0
        """The number of forks between the process that imported this module and this process."""
        self.connecting = threading.Lock()
        """Held while a client connects or closes."""
        self.rpcs = Rpcs()
        self.inherited: list[object] = []
        """Connections of parent processes. They stay referenced: gRPC's destructors would wait for missing threads."""

    def before_fork(self) -> None:
        self.rpcs.pause()

    def continue_parent(self) -> None:
        self.rpcs.resume()

    def begin_child(self) -> None:
        self.generation += 1
        self.connecting = threading.Lock()
        self.rpcs = Rpcs()


PROCESS = Process()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=PROCESS.before_fork,
        after_in_parent=PROCESS.continue_parent,
        after_in_child=PROCESS.begin_child,
    )
