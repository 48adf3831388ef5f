"""A periodic task: its batches, its runs, and its handling of failures."""

import threading
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from reservation_reaper import periodic_task
from reservation_reaper.periodic_task import PeriodicTask
from reservation_reaper.triggers import Cron, Every
from shop_common.errors import DatabaseUnavailable, QueueFull

BATCH = 10
LONG_SECONDS = 3600


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def task_of(do: Callable[[int], int], interval_seconds: float = LONG_SECONDS) -> PeriodicTask:
    return PeriodicTask("sweep", do, Every(interval_seconds), batch_max=BATCH)


def responses(*counts: int | Exception) -> tuple[Callable[[int], int], list[int | Exception]]:
    """Return a function that returns or raises these in order, and the list of those that are left."""
    left = list(counts)

    def do(_: int) -> int:
        response = left.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    return do, left


def test_a_run_continues_while_batches_are_full(stop: threading.Event) -> None:
    do, left = responses(BATCH, BATCH, 3, 0)

    assert task_of(do).run_once(stop)

    assert left == [0]


def test_a_stop_ends_the_run_after_the_current_batch(stop: threading.Event) -> None:
    def do(_: int) -> int:
        stop.set()
        return BATCH

    assert task_of(do).run_once(stop)


def test_it_is_ready_after_a_successful_run_and_not_after_a_failed_one(stop: threading.Event) -> None:
    do, _ = responses(0, DatabaseUnavailable("away"), 0)
    task = task_of(do)

    ready = [task.ready]
    for _ in range(3):
        task.run_once(stop)
        ready.append(task.ready)

    assert ready == [False, True, False, True]


def test_it_stays_ready_while_the_api_is_overloaded(stop: threading.Event) -> None:
    do, _ = responses(QueueFull("full"), 0, QueueFull("full"), DatabaseUnavailable("away"), QueueFull("full"))
    task = task_of(do)

    ready = []
    for _ in range(5):
        task.run_once(stop)
        ready.append(task.ready)

    assert ready == [True, True, True, False, True]


def backlog(size: int, seconds_each: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[int], int], list[int]]:
    """Return a function that works off a backlog of `size`, and the list of the batch sizes that it was called with."""
    clock = 0.0
    limits: list[int] = []
    monkeypatch.setattr(time, "monotonic", lambda: clock)

    def do(limit: int) -> int:
        nonlocal size, clock
        limits.append(limit)
        done = min(limit, size)
        size -= done
        clock += done * seconds_each
        return done

    return do, limits


@pytest.mark.parametrize(
    ("milliseconds_each", "fitting"), [(0.01, 1000), (0.04, 500), (0.05, 400), (10, periodic_task.BATCH_MIN)]
)
def test_the_batch_size_adapts_to_the_duration_of_batches(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch, milliseconds_each: float, fitting: int
) -> None:
    do, limits = backlog(20_000, milliseconds_each / 1000, monkeypatch)

    assert PeriodicTask("sweep", do, Every(LONG_SECONDS), batch_max=1000).run_once(stop)

    assert set(limits[8:]) <= set(range(fitting - 2, fitting + 1))
    assert max(limits) <= 1000


def test_the_batch_size_recovers_after_one_slow_batch(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    do, limits = backlog(20_000, 0.00005, monkeypatch)
    slow = 0.0

    def slow_once(limit: int) -> int:
        nonlocal slow
        if len(limits) == 10:
            slow = 2.0
        return do(limit)

    real_clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real_clock() + slow)
    PeriodicTask("sweep", slow_once, Every(LONG_SECONDS), batch_max=1000).run_once(stop)

    assert limits[9:13] == pytest.approx([400, 400, 200, 400], abs=2)


def test_it_is_ready_while_it_works_off_a_backlog(stop: threading.Event) -> None:
    ready: list[bool] = []

    def do(limit: int) -> int:
        ready.append(task.ready)
        return limit if len(ready) < 3 else 0

    task = task_of(do)
    task.run_once(stop)

    assert ready == [False, True, True]


def test_a_failure_is_logged_once_until_its_reason_changes(stop: threading.Event) -> None:
    away, full = DatabaseUnavailable("away"), QueueFull("full")
    do, _ = responses(away, away, away, full, full, 0, away)
    task = task_of(do)

    with capture_logs() as lines:
        for _ in range(7):
            task.run_once(stop)

    failed = "task failed, retrying"
    assert [line["event"] for line in lines] == [failed, failed, "task succeeded again", failed]


def test_with_a_cron_trigger_it_is_ready_before_the_first_run_and_not_after_a_failed_one(
    stop: threading.Event,
) -> None:
    do, _ = responses(DatabaseUnavailable("away"), 0)
    task = PeriodicTask("sweep", do, Cron("0 3 * * *"), batch_max=BATCH)

    ready = [task.ready]
    for _ in range(2):
        task.run_once(stop)
        ready.append(task.ready)

    assert ready == [True, False, True]


def test_a_failed_run_is_repeated_until_it_succeeds(stop: threading.Event) -> None:
    do, left = responses(DatabaseUnavailable("away"), DatabaseUnavailable("away"), 0, 0)

    task_of(do).run(stop)

    assert left == [0]


def test_a_stopped_run_is_not_repeated(stop: threading.Event) -> None:
    def do(_: int) -> int:
        stop.set()
        raise DatabaseUnavailable("away")

    task_of(do).run(stop)

    assert stop.is_set()
