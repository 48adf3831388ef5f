"""When works run: a job of APScheduler for each.

Each job has a thread of its own, so an API that is away does not hold up the work at the other.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from reservation_reaper.reaper import Work
from shop_common.telemetry import logs

_WATCH_SECONDS = 0.2
_CLOCK_STEP_SECONDS = 0.5

_log = logs.get(__name__)


class Schedule:
    """Runs each work when its trigger says so, one run at a time, until `stop`.

    `set_ready` hears again and again whether all works are ready. `on_fatal` ends the process: it is called with what a
    work raised, which is a defect, since a failing API is none.
    """

    def __init__(
        self,
        works: Sequence[Work],
        *,
        set_ready: Callable[[bool], None],
        on_fatal: Callable[[str, BaseException], None],
    ) -> None:
        self._works = works
        self._set_ready = set_ready
        self._on_fatal = on_fatal
        self._stop = threading.Event()
        # It tells of each run, and warns each time that a work takes longer than its interval, as during a backlog.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        pool = ThreadPoolExecutor(len(works), {"thread_name_prefix": "work"})
        self._scheduler = BackgroundScheduler(executors={"default": pool}, timezone=UTC)
        for work in works:
            # A run that comes late is made up for once, however late it is.
            self._scheduler.add_job(
                self._run, work.trigger, [work], id=work.name, max_instances=1, coalesce=True, misfire_grace_time=None
            )

    def start(self) -> None:
        """Begin. A first run of what has an interval is due at once."""
        self._scheduler.start()
        threading.Thread(target=self._watch, name="schedule-watch", daemon=True).start()

    def stop(self) -> None:
        """Let running batches finish, begin no others, and end. May be repeated."""
        self._stop.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def _run(self, work: Work) -> None:
        try:
            work.run(self._stop)
        except BaseException as error:
            self._on_fatal(f"{work.name} failed", error)

    def _watch(self) -> None:
        offset = _clock_offset()
        try:
            # Asked again and again, since a call that hangs says nothing.
            while not self._stop.wait(_WATCH_SECONDS):
                self._set_ready(all(work.ready for work in self._works))
                before, offset = offset, _clock_offset()
                if offset < before - _CLOCK_STEP_SECONDS:
                    self._reschedule(before - offset)
        except BaseException as error:
            self._on_fatal("the watch over the schedule failed", error)

    def _reschedule(self, seconds: float) -> None:
        """The system's clock was set back. APScheduler would wait until it shows the time of the next run again."""
        _log.warning("the clock was set back; all work is scheduled anew", seconds=round(seconds, 3))
        for job in self._scheduler.get_jobs():
            job.reschedule(job.trigger)


def _clock_offset() -> float:
    """Changes only when the clock is set, or drifts."""
    return time.time() - time.monotonic()
