"""Polls a condition until another thread or process makes it true."""

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

_POLL_SECONDS_MIN, _POLL_SECONDS_MAX = 0.001, 0.05


def eventually(condition: Callable[[], _T], within_seconds: float = 60.0, describe: Callable[[], str] = str) -> _T:
    """Poll until the condition is true, and return what it returned.

    Raises AssertionError after `within_seconds`. Its message has the result of `describe`, such as the end of a log.
    Only a failing test waits that long. So make the limit generous, because a busy machine is slow.
    """
    deadline = time.monotonic() + within_seconds
    pause = _POLL_SECONDS_MIN
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition was not true within {within_seconds:g} s {describe()}"
        time.sleep(pause)
        pause = min(2 * pause, _POLL_SECONDS_MAX)
    return value
