"""The works of a reaper side by side, on the threads of the scheduler."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from structlog.testing import capture_logs

from reservation_reaper.reaper import Work
from reservation_reaper.schedule import Schedule
from reservation_reaper.triggers import Cron, Every
from shop_common.errors import DatabaseUnavailable

BATCH = 10
LONG_SECONDS = 60
"""For what happens at once on a machine that is not busy."""

Run = Callable[..., Schedule]


def nothing(_: object, __: object = None) -> None:
    pass


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts a schedule of these works; it is stopped after the test."""
    with ExitStack() as at_the_end:

        def start(
            *works: Work,
            set_ready: Callable[[bool], None] = nothing,
            on_fatal: Callable[[str, BaseException], None] = nothing,
        ) -> Schedule:
            schedule = Schedule(works, set_ready=set_ready, on_fatal=on_fatal)
            at_the_end.callback(schedule.stop)
            schedule.start()
            return schedule

        yield start


def work_of(do: Callable[[int], int], interval_seconds: float = 3600, name: str = "sweep") -> Work:
    return Work(name, do, Every(interval_seconds), batch_max=BATCH)


def test_rounds_follow_each_other(run: Run) -> None:
    third = threading.Event()
    rounds = 0

    def count(_: int) -> int:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            third.set()
        return 0

    run(work_of(count, interval_seconds=0.01))

    assert third.wait(LONG_SECONDS)


def test_a_failed_round_is_repeated_long_before_the_next_is_due(run: Run) -> None:
    went_well = threading.Event()
    failures = [DatabaseUnavailable("away"), DatabaseUnavailable("away")]

    def flaky(_: int) -> int:
        if failures:
            raise failures.pop()
        went_well.set()
        return 0

    run(work_of(flaky))

    assert went_well.wait(LONG_SECONDS)


def test_a_work_that_hangs_neither_holds_up_the_others_nor_begins_twice(run: Run) -> None:
    release, others_ran, begun = threading.Event(), threading.Event(), 0

    def hang(_: int) -> int:
        nonlocal begun
        begun += 1
        release.wait(LONG_SECONDS)
        return 0

    rounds = 0

    def other(_: int) -> int:
        nonlocal rounds
        rounds += 1
        if rounds == 20:
            others_ran.set()
        return 0

    with capture_logs() as lines:
        run(work_of(hang, 0.01, "hangs"), work_of(other, 0.01, "other"))
        assert others_ran.wait(LONG_SECONDS)

    assert begun == 1
    assert lines == []
    release.set()


def test_stopping_waits_for_a_running_batch_and_begins_no_other(run: Run) -> None:
    begun, release = threading.Event(), threading.Event()
    batches = []

    def batch(most: int) -> int:
        begun.set()
        release.wait(LONG_SECONDS)
        batches.append(most)
        return most  # there is more

    schedule = run(work_of(batch))
    assert begun.wait(LONG_SECONDS)
    stopping = threading.Thread(target=schedule.stop)
    stopping.start()
    assert batches == []
    release.set()
    stopping.join(LONG_SECONDS)

    assert not stopping.is_alive()
    assert len(batches) == 1


def test_stopping_ends_a_work_that_waits_to_be_repeated(run: Run) -> None:
    failed = threading.Event()

    def away(_: int) -> int:
        failed.set()
        raise DatabaseUnavailable("away")

    schedule = run(work_of(away))
    assert failed.wait(LONG_SECONDS)

    schedule.stop()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("work", "APScheduler"))]


def test_what_a_work_raises_is_the_end_of_the_process(run: Run) -> None:
    fatal_errors: list[tuple[str, BaseException]] = []
    reported = threading.Event()

    def on_fatal(reason: str, error: BaseException) -> None:
        fatal_errors.append((reason, error))
        reported.set()

    def broken(_: int) -> int:
        raise ZeroDivisionError("a defect")

    run(work_of(broken), on_fatal=on_fatal)

    assert reported.wait(LONG_SECONDS)
    assert [(reason, str(error)) for reason, error in fatal_errors] == [("sweep failed", "a defect")]


def test_it_is_ready_when_all_its_works_are(run: Run) -> None:
    release, ready = threading.Event(), threading.Event()
    heard: list[bool] = []

    def set_ready(now: bool) -> None:
        heard.append(now)
        if now:
            ready.set()

    def slow(_: int) -> int:
        release.wait(LONG_SECONDS)
        return 0

    at_night = Work("purge", lambda _: 0, Cron("0 3 * * *"), batch_max=BATCH)
    run(work_of(slow), work_of(lambda _: 0, name="quick"), at_night, set_ready=set_ready)
    release.set()

    assert ready.wait(LONG_SECONDS)
    assert sorted(heard) == heard
