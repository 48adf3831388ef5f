"""One piece of work: its batches, its rounds, and how it takes failures."""

import threading
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from reservation_reaper.reaper import Work
from shop_common.errors import DatabaseUnavailable, QueueFull

BATCH = 10
LONG_SECONDS = 3600


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def work_of(do: Callable[[], int], interval_seconds: float = LONG_SECONDS) -> Work:
    return Work("sweep", do, batch_max=BATCH, interval_seconds=interval_seconds)


def answers(*counts: int | Exception) -> tuple[Callable[[], int], list[int | Exception]]:
    """What an API answers, call by call; and the answers that are left."""
    left = list(counts)

    def do() -> int:
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
    def do() -> int:
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


def test_a_failure_is_said_once_until_it_changes(stop: threading.Event) -> None:
    away, full = DatabaseUnavailable("away"), QueueFull("full")
    do, _ = answers(away, away, away, full, full, 0, away)
    work = work_of(do)

    with capture_logs() as lines:
        for _ in range(7):
            work.run_once(stop)

    tried = "failed, is tried again"
    assert [line["event"] for line in lines] == [tried, tried, "works again", tried]


def test_a_failed_round_is_tried_again_long_before_the_next_is_due(stop: threading.Event) -> None:
    went_well = threading.Event()
    do, left = answers(DatabaseUnavailable("away"), DatabaseUnavailable("away"))

    def flaky() -> int:
        if left:
            return do()
        went_well.set()
        return 0

    with running(work_of(flaky), stop):
        assert went_well.wait(10)


def test_rounds_follow_each_other_until_it_is_stopped_in_the_middle_of_a_wait(stop: threading.Event) -> None:
    rounds = 0

    def count() -> int:
        nonlocal rounds
        rounds += 1
        return 0

    with running(work_of(count, interval_seconds=0.01), stop):
        deadline = time.monotonic() + 10
        while rounds < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rounds >= 3
    with running(work_of(count), threading.Event()):
        pass


class running:  # noqa: N801  # reads as a with statement does
    """Runs the work on a thread; leaving stops it, which must not take long."""

    def __init__(self, work: Work, stop: threading.Event) -> None:
        self._stop = stop
        self._thread = threading.Thread(target=work.run, args=(stop,), daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()
