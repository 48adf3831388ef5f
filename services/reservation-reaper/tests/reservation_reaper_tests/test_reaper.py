"""One piece of work: its batches, its rounds, and how it takes failures."""

import threading
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from reservation_reaper import reaper
from reservation_reaper.reaper import Work
from reservation_reaper.triggers import Cron, Every
from shop_common.errors import DatabaseUnavailable, QueueFull

BATCH = 10
LONG_SECONDS = 3600


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def work_of(do: Callable[[int], int], interval_seconds: float = LONG_SECONDS) -> Work:
    return Work("sweep", do, Every(interval_seconds), batch_max=BATCH)


def answers(*counts: int | Exception) -> tuple[Callable[[int], int], list[int | Exception]]:
    """What an API answers, call by call; and the answers that are left."""
    left = list(counts)

    def do(_: int) -> int:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return do, left


def test_a_round_goes_on_while_batches_are_full(stop: threading.Event) -> None:
    do, left = answers(BATCH, BATCH, 3, 0)

    assert work_of(do).run_once(stop)

    assert left == [0]


def test_it_stops_between_two_batches_though_there_is_more(stop: threading.Event) -> None:
    def do(_: int) -> int:
        stop.set()
        return BATCH

    assert work_of(do).run_once(stop)


def test_it_is_ready_once_a_round_went_well_and_not_after_one_that_failed(stop: threading.Event) -> None:
    do, _ = answers(0, DatabaseUnavailable("away"), 0)
    work = work_of(do)

    ready = [work.ready]
    for _ in range(3):
        work.run_once(stop)
        ready.append(work.ready)

    assert ready == [False, True, False, True]


def test_it_stays_ready_while_the_api_says_that_it_is_too_busy(stop: threading.Event) -> None:
    do, _ = answers(QueueFull("full"), 0, QueueFull("full"), DatabaseUnavailable("away"), QueueFull("full"))
    work = work_of(do)

    ready = []
    for _ in range(5):
        work.run_once(stop)
        ready.append(work.ready)

    assert ready == [True, True, True, False, True]


def backlog(size: int, seconds_each: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[int], int], list[int]]:
    """An API with so much to do, each piece of which takes so long; and the sizes of the batches asked of it."""
    clock = 0.0
    asked: list[int] = []
    monkeypatch.setattr(time, "monotonic", lambda: clock)

    def do(most: int) -> int:
        nonlocal size, clock
        asked.append(most)
        done = min(most, size)
        size -= done
        clock += done * seconds_each
        return done

    return do, asked


@pytest.mark.parametrize(
    ("milliseconds_each", "fitting"), [(0.01, 1000), (0.04, 500), (0.05, 400), (10, reaper.BATCH_MIN)]
)
def test_a_batch_is_as_large_as_its_time_allows(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch, milliseconds_each: float, fitting: int
) -> None:
    do, asked = backlog(20_000, milliseconds_each / 1000, monkeypatch)

    assert Work("sweep", do, Every(LONG_SECONDS), batch_max=1000).run_once(stop)

    assert set(asked[8:]) <= set(range(fitting - 2, fitting + 1))
    assert max(asked) <= 1000


def test_a_batch_that_was_slow_once_is_soon_as_large_again(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    do, asked = backlog(20_000, 0.00005, monkeypatch)
    slow = 0.0

    def hesitant(most: int) -> int:
        nonlocal slow
        if len(asked) == 10:
            slow = 2.0
        return do(most)

    usual = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: usual() + slow)
    Work("sweep", hesitant, Every(LONG_SECONDS), batch_max=1000).run_once(stop)

    assert asked[9:13] == pytest.approx([400, 400, 200, 400], abs=2)


def test_it_is_ready_while_a_backlog_is_worked_off(stop: threading.Event) -> None:
    ready: list[bool] = []

    def do(most: int) -> int:
        ready.append(work.ready)
        return most if len(ready) < 3 else 0

    work = work_of(do)
    work.run_once(stop)

    assert ready == [False, True, True]


def test_a_failure_is_said_once_until_it_changes(stop: threading.Event) -> None:
    away, full = DatabaseUnavailable("away"), QueueFull("full")
    do, _ = answers(away, away, away, full, full, 0, away)
    work = work_of(do)

    with capture_logs() as lines:
        for _ in range(7):
            work.run_once(stop)

    tried = "failed, is tried again"
    assert [line["event"] for line in lines] == [tried, tried, "works again", tried]


def test_at_times_of_day_it_is_ready_before_the_first_round_and_not_after_one_that_failed(
    stop: threading.Event,
) -> None:
    do, _ = answers(DatabaseUnavailable("away"), 0)
    work = Work("sweep", do, Cron("0 3 * * *"), batch_max=BATCH)

    ready = [work.ready]
    for _ in range(2):
        work.run_once(stop)
        ready.append(work.ready)

    assert ready == [True, False, True]


def test_a_failed_round_is_repeated_until_it_goes_well(stop: threading.Event) -> None:
    do, left = answers(DatabaseUnavailable("away"), DatabaseUnavailable("away"), 0, 0)

    work_of(do).run(stop)

    assert left == [0]


def test_no_round_follows_one_that_went_well_or_that_was_stopped(stop: threading.Event) -> None:
    def do(_: int) -> int:
        stop.set()
        raise DatabaseUnavailable("away")

    work_of(do).run(stop)

    assert stop.is_set()
