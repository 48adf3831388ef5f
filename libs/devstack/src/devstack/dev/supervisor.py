"""Restarts processes that end by themselves, as an orchestrator does in production."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devstack.process import Process, ProcessEnded

FIRST_DELAY_SECONDS = 0.5
DELAY_SECONDS_MAX = 30.0
STEADY_SECONDS = 60.0
"""If a process has run for longer than this, its next restart has the shortest delay again."""

_POLL_SECONDS = 0.2

Say = Callable[[str], None]


@dataclass
class _Life:
    began: float
    ends: int = 0
    """Consecutive ends, each within STEADY_SECONDS of a start."""
    start_at: float | None = None
    """The time of the next restart; None while the process is running."""
    is_recovering: bool = False
    """True after a restart until the process is ready."""


class Supervisor:
    """Supervises processes that have all been ready once.

    Calls `started` after each restart, when a process has a new pid.
    """

    def __init__(self, processes: Sequence[Process], say: Say, complain: Say, started: Callable[[], None]) -> None:
        self._processes = processes
        self._say = say
        self._complain = complain
        self._started = started
        self._lives = {process.name: _Life(time.monotonic()) for process in processes}

    def run(self, while_true: Callable[[], bool]) -> None:
        """Supervise while `while_true` returns true. Calls it several times a second."""
        while while_true():
            for process in self._processes:
                self._supervise(process, self._lives[process.name])
            time.sleep(_POLL_SECONDS)

    def _supervise(self, process: Process, life: _Life) -> None:
        if process.alive:
            self._report_recovery(process, life)
        elif life.start_at is None:
            self._schedule_restart(process, life)
        elif time.monotonic() >= life.start_at:
            self._start(process, life)

    def _start(self, process: Process, life: _Life) -> None:
        # End the children that the process left behind: they would keep its port in use.
        process.kill()
        life.began, life.start_at, life.is_recovering = time.monotonic(), None, True
        try:
            process.start()
        except OSError as failure:
            self._complain(f"cannot start {process.name}: {failure}")
        else:
            self._started()

    def _schedule_restart(self, process: Process, life: _Life) -> None:
        now = time.monotonic()
        if now - life.began > STEADY_SECONDS:
            life.ends = 0
        delay = delay_seconds(life.ends)
        life.ends += 1
        life.start_at = now + delay
        self._complain(f"{process.name} {how_it_ended(process)}; restarting it in {delay:g} s")

    def _report_recovery(self, process: Process, life: _Life) -> None:
        if not life.is_recovering:
            return
        try:
            if process.is_ready():
                life.is_recovering = False
                self._say(f"{process.name} serves again (pid {process.pid})")
        except ProcessEnded:
            return  # the next poll handles the end


def delay_seconds(ends: int) -> float:
    """Return the delay of the next restart. `ends` is the number of earlier consecutive ends."""
    # Limit the exponent: otherwise the power would overflow a float after some hours.
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(ends, 10), DELAY_SECONDS_MAX)


def how_it_ended(process: Process) -> str:
    """Return `was ended by SIGKILL`, or `ended with exit code 1`."""
    code = process.exit_code or 0
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
