"""Decides when a periodic task is due: at an interval, or at the times of a cron expression.

APScheduler's own triggers list every run that was missed, one by one, before the runs are coalesced into one. If the
clock jumps ahead by years, as on a machine whose clock starts in 1970, that is a billion steps for an interval of a
second. These triggers never list a missed run.
"""

import random
import re
from datetime import UTC, datetime, timedelta
from typing import Protocol

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

JITTER = 0.1
"""Random variation of an interval, as a fraction, so that several reapers do not all run at the same time."""
CRON_JITTER_SECONDS = 30

_CRON_FIELDS = ("minute", "hour", "day", "month", "day_of_week")


class Trigger(Protocol):
    """The interface of Every and Cron. APScheduler defines it."""

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return the time of the next run. `previous_fire_time` is None before the first run."""


class Every(BaseTrigger):
    """A trigger that is due at once, and then at this interval between two starts, with jitter."""

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        if previous_fire_time is None:
            return now
        return now + self._interval * random.uniform(1 - JITTER, 1 + JITTER)


class Cron(BaseTrigger):
    """A trigger that is due at the times of a cron expression, in UTC, up to half a minute late.

    Raises ValueError if the expression is malformed or matches no time. The message begins with "must".
    Weekdays must be names, because APScheduler numbers them from Monday and cron from Sunday.
    """

    def __init__(self, expression: str) -> None:
        fields = expression.split()
        if len(fields) != len(_CRON_FIELDS):
            raise ValueError(f"must have five fields: {', '.join(_CRON_FIELDS)}")
        if re.search(r"\d", fields[-1]):
            raise ValueError("must name weekdays: mon, tue, wed, thu, fri, sat, sun")
        values = dict(zip(_CRON_FIELDS, fields, strict=True))
        try:
            self._cron = CronTrigger(**values, timezone=UTC, jitter=CRON_JITTER_SECONDS)
        except ValueError as error:
            raise ValueError(f"must be a cron expression in UTC: {error}") from None
        if self._cron.get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError("must be a cron expression that matches some day")

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        # If the clock was set back a little, a run may start just before its due time. The same time must not be due
        # twice.
        after = now if previous_fire_time is None else max(now, previous_fire_time + timedelta(microseconds=1))
        time: datetime = self._cron.get_next_fire_time(None, after)
        return time
