"""Runs each periodic task as a job of APScheduler.

Each job has its own thread, so the tasks of one API run while the other API is unavailable.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from reservation_reaper.periodic_task import PeriodicTask
from shop_common.telemetry import logs

_WATCH_SECONDS = 0.2
_CLOCK_STEP_SECONDS = 0.5

_log = logs.get(__name__)


class Schedule:
    """Runs each task when its trigger is due, until `stop` is called. In one process, no task runs twice at once.

    Several reapers may run the same task at once. The APIs check the state of each row in the transaction that changes
    it.

    Calls `set_ready` several times a second with True if all tasks are ready. Calls `on_fatal` if a task raises an
    exception. This is a defect, because a task handles the failures of its API.
    """

    def __init__(
        self,
        tasks: Sequence[PeriodicTask],
        *,
        set_ready: Callable[[bool], None],
        on_fatal: Callable[[str, BaseException], None],
    ) -> None:
        self._tasks = tasks
        self._set_ready = set_ready
        self._on_fatal = on_fatal
        self._stop = threading.Event()
        # APScheduler logs each run, and warns when a run takes longer than its interval. A backlog makes that normal.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        pool = ThreadPoolExecutor(len(tasks), {"thread_name_prefix": "task"})
        self._scheduler = BackgroundScheduler(executors={"default": pool}, timezone=UTC)
        for task in tasks:
            # A late run still starts, and one run replaces all runs that were missed.
            self._scheduler.add_job(
                self._run, task.trigger, [task], id=task.name, max_instances=1, coalesce=True, misfire_grace_time=None
            )

    def start(self) -> None:
        """Start all tasks. A task with an interval runs at once."""
        self._scheduler.start()
        threading.Thread(target=self._watch, name="schedule-watch", daemon=True).start()

    def stop(self) -> None:
        """Let running batches finish, start no others, and end the threads. May be called again."""
        self._stop.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def _run(self, task: PeriodicTask) -> None:
        try:
            task.run(self._stop)
        except BaseException as error:
            self._on_fatal(f"the task {task.name} failed", error)

    def _watch(self) -> None:
        offset = _clock_offset()
        try:
            # Poll readiness, because a task whose call hangs cannot report that it is no longer ready.
            while not self._stop.wait(_WATCH_SECONDS):
                self._set_ready(all(task.ready for task in self._tasks))
                before, offset = offset, _clock_offset()
                if offset < before - _CLOCK_STEP_SECONDS:
                    self._reschedule(before - offset)
        except BaseException as error:
            self._on_fatal("the thread that watches the schedule failed", error)

    def _reschedule(self, seconds: float) -> None:
        """Schedule all tasks again after the clock was set back. Otherwise APScheduler would wait for the old times."""
        _log.warning("the clock was set back; all tasks are rescheduled", seconds=round(seconds, 3))
        for job in self._scheduler.get_jobs():
            job.reschedule(job.trigger)


def _clock_offset() -> float:
    """Return a number that changes only if the clock is set, or drifts."""
    return time.time() - time.monotonic()
