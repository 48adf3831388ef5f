"""The periodic tasks of a reaper, running concurrently on the threads of the scheduler."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from structlog.testing import capture_logs

from reservation_reaper.periodic_task import PeriodicTask
from reservation_reaper.schedule import Schedule
from reservation_reaper.triggers import Cron, Every
from shop_common.errors import DatabaseUnavailable

BATCH = 10
LONG_SECONDS = 60
"""A limit for what takes milliseconds on an idle machine."""

Run = Callable[..., Schedule]


def nothing(_: object, __: object = None) -> None:
    pass


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts a schedule of these tasks, and stops it after the test."""
    with ExitStack() as cleanup:

        def start(
            *tasks: PeriodicTask,
            set_ready: Callable[[bool], None] = nothing,
            on_fatal: Callable[[str, BaseException], None] = nothing,
        ) -> Schedule:
            schedule = Schedule(tasks, set_ready=set_ready, on_fatal=on_fatal)
            cleanup.callback(schedule.stop)
            schedule.start()
            return schedule

        yield start


def task_of(do: Callable[[int], int], interval_seconds: float = 3600, name: str = "sweep") -> PeriodicTask:
    return PeriodicTask(name, do, Every(interval_seconds), batch_max=BATCH)


def test_runs_repeat_at_the_interval(run: Run) -> None:
    third = threading.Event()
    runs = 0

    def count(_: int) -> int:
        nonlocal runs
        runs += 1
        if runs == 3:
            third.set()
        return 0

    run(task_of(count, interval_seconds=0.01))

    assert third.wait(LONG_SECONDS)


def test_a_failed_run_is_repeated_long_before_the_next_is_due(run: Run) -> None:
    succeeded = threading.Event()
    failures = [DatabaseUnavailable("away"), DatabaseUnavailable("away")]

    def flaky(_: int) -> int:
        if failures:
            raise failures.pop()
        succeeded.set()
        return 0

    run(task_of(flaky))

    assert succeeded.wait(LONG_SECONDS)


def test_a_hanging_task_does_not_delay_the_others_and_does_not_start_twice(run: Run) -> None:
    release, others_ran, begun = threading.Event(), threading.Event(), 0

    def hang(_: int) -> int:
        nonlocal begun
        begun += 1
        release.wait(LONG_SECONDS)
        return 0

    runs = 0

    def other(_: int) -> int:
        nonlocal runs
        runs += 1
        if runs == 20:
            others_ran.set()
        return 0

    with capture_logs() as lines:
        run(task_of(hang, 0.01, "hangs"), task_of(other, 0.01, "other"))
        assert others_ran.wait(LONG_SECONDS)

    assert begun == 1
    assert lines == []
    release.set()


def test_stop_waits_for_the_running_batch_and_starts_no_other(run: Run) -> None:
    begun, release = threading.Event(), threading.Event()
    batches = []

    def batch(limit: int) -> int:
        begun.set()
        release.wait(LONG_SECONDS)
        batches.append(limit)
        return limit  # a full batch: there is more

    schedule = run(task_of(batch))
    assert begun.wait(LONG_SECONDS)
    stopping = threading.Thread(target=schedule.stop)
    stopping.start()
    assert batches == []
    release.set()
    stopping.join(LONG_SECONDS)

    assert not stopping.is_alive()
    assert len(batches) == 1


def test_stop_ends_a_task_that_waits_to_retry(run: Run) -> None:
    failed = threading.Event()

    def away(_: int) -> int:
        failed.set()
        raise DatabaseUnavailable("away")

    schedule = run(task_of(away))
    assert failed.wait(LONG_SECONDS)

    schedule.stop()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("task", "APScheduler"))]


def test_an_exception_from_a_task_is_fatal(run: Run) -> None:
    fatal_errors: list[tuple[str, BaseException]] = []
    reported = threading.Event()

    def on_fatal(reason: str, error: BaseException) -> None:
        fatal_errors.append((reason, error))
        reported.set()

    def broken(_: int) -> int:
        raise ZeroDivisionError("a defect")

    run(task_of(broken), on_fatal=on_fatal)

    assert reported.wait(LONG_SECONDS)
    assert [(reason, str(error)) for reason, error in fatal_errors] == [("the task sweep failed", "a defect")]


def test_it_is_ready_when_all_tasks_are(run: Run) -> None:
    release, ready = threading.Event(), threading.Event()
    reported: list[bool] = []

    def set_ready(now: bool) -> None:
        reported.append(now)
        if now:
            ready.set()

    def slow(_: int) -> int:
        release.wait(LONG_SECONDS)
        return 0

    nightly = PeriodicTask("purge", lambda _: 0, Cron("0 3 * * *"), batch_max=BATCH)
    run(task_of(slow), task_of(lambda _: 0, name="quick"), nightly, set_ready=set_ready)
    release.set()

    assert ready.wait(LONG_SECONDS)
    assert sorted(reported) == reported
