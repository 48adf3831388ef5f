"""Starts processes again that end by themselves, which is what an orchestrator does in production."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devstack.process import Process, ProcessEnded

FIRST_DELAY_SECONDS = 0.5
DELAY_SECONDS_MAX = 30.0
STEADY_SECONDS = 60.0
"""A process that has lived so long begins anew with the shortest delay."""

_POLL_SECONDS = 0.2

Say = Callable[[str], None]


@dataclass
class _Life:
    began: float
    ends: int = 0
    """In a row, each within STEADY_SECONDS of its start."""
    start_at: float | None = None
    """When it is to be started again; None while it runs."""
    returns: bool = False
    """Whether it was started again and is not ready yet."""


class Supervisor:
    """Looks after processes that have all been ready once.

    `started` is called after each start, when a process has another pid than before.
    """

    def __init__(self, processes: Sequence[Process], say: Say, complain: Say, started: Callable[[], None]) -> None:
        self._processes = processes
        self._say = say
        self._complain = complain
        self._started = started
        self._lives = {process.name: _Life(time.monotonic()) for process in processes}

    def run(self, while_true: Callable[[], bool]) -> None:
        """Until the condition, which is looked at several times a second, holds no more."""
        while while_true():
            for process in self._processes:
                self._look_after(process, self._lives[process.name])
            time.sleep(_POLL_SECONDS)

    def _look_after(self, process: Process, life: _Life) -> None:
        if process.alive:
            self._welcome(process, life)
        elif life.start_at is None:
            self._plan(process, life)
        elif time.monotonic() >= life.start_at:
            self._start(process, life)

    def _start(self, process: Process, life: _Life) -> None:
        # What it left behind of its own children would hold its port.
        process.kill()
        life.began, life.start_at, life.returns = time.monotonic(), None, True
        try:
            process.start()
        except OSError as failure:
            self._complain(f"{process.name} can't be started: {failure}")
        else:
            self._started()

    def _plan(self, process: Process, life: _Life) -> None:
        now = time.monotonic()
        if now - life.began > STEADY_SECONDS:
            life.ends = 0
        delay = delay_seconds(life.ends)
        life.ends += 1
        life.start_at = now + delay
        self._complain(f"{process.name} {how_it_ended(process)}; it is started again in {delay:g} s")

    def _welcome(self, process: Process, life: _Life) -> None:
        if not life.returns:
            return
        try:
            if process.is_ready():
                life.returns = False
                self._say(f"{process.name} serves again (pid {process.pid})")
        except ProcessEnded:
            return  # seen in the next round


def delay_seconds(ends: int) -> float:
    """How long to wait before the next start, after so many ends in a row before this one."""
    # Without a bound of its own the power would pass what a float holds, after some hours.
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(ends, 10), DELAY_SECONDS_MAX)


def how_it_ended(process: Process) -> str:
    """`was ended by SIGKILL`, or `ended with exit code 1`."""
    code = process.exit_code or 0
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
