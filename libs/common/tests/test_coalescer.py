"""Group commit: which calls form a batch, when it runs, and what each caller receives."""

import random
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from shop_common.batching import coalescer as coalescer_module
from shop_common.batching.coalescer import Coalescer, Limits
from shop_common.errors import (
    Contention,
    DatabaseUnavailable,
    LockTimeout,
    QueueFull,
    Refused,
    ShopError,
    TransactionTimeout,
)
from testkit.eventually import eventually

PATIENCE_SECONDS = 60.0


class SoldOut(Refused):
    reason = "SOLD_OUT"


@dataclass(frozen=True)
class Ask:
    """A request. `weight` counts against the limit of a batch. Requests with the same `key` and `content` fold."""

    content: int
    key: str | None = None
    weight: int = 1


class Bulk:
    """A bulk operation that doubles, remembers its batches, and can be blocked in the middle of one."""

    def __init__(self) -> None:
        self.batches: list[list[Ask]] = []
        self.running = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self.decides_max = 1_000_000
        self.failure: Callable[[Sequence[Ask]], BaseException | None] = lambda _: None

    def __call__(self, requests: Sequence[Ask]) -> list[int | ShopError]:
        self.batches.append(list(requests))
        requests = requests[: self.decides_max]
        self.running.release()
        assert self.open.wait(PATIENCE_SECONDS)
        failure = self.failure(requests)
        if failure is not None:
            raise failure
        return [SoldOut("no more") if each.content < 0 else 2 * each.content for each in requests]

    @contextmanager
    def held_up(self) -> Iterator[None]:
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


class Rig:
    """A coalescer over a bulk operation, and callers in threads."""

    def __init__(self, callers: ThreadPoolExecutor) -> None:
        self.bulk = Bulk()
        self.fatal_errors: list[str] = []
        self.made: list[Coalescer[Ask, int]] = []
        self._callers = callers

    def coalescer(self, **limits: Any) -> Coalescer[Ask, int]:
        def key(ask: Ask) -> Hashable | None:
            return ask.key

        made = Coalescer(
            "test",
            self.bulk,
            key=key,
            weigh=lambda ask: ask.weight,
            limits=Limits(**limits),
            on_fatal=lambda reason, error: self.fatal_errors.append(f"{reason}: {error}"),
        )
        self.made.append(made)
        return made

    def call(self, coalescer: Coalescer[Ask, int], *asks: Ask, seconds: float = PATIENCE_SECONDS) -> Future[Any]:
        return self._callers.submit(coalescer.submit_many, asks, deadline=time.monotonic() + seconds)

    def queue_up(self, coalescer: Coalescer[Ask, int], *asks: Ask) -> list[Future[Any]]:
        """Make one call per request, in this sequence. Call it while a flush is blocked, so that the calls wait."""
        calls = []
        for ask in asks:
            waiting = len(coalescer._queue) + 1
            calls.append(self.call(coalescer, ask))
            eventually(partial(self._waits, coalescer, waiting))
        return calls

    def _waits(self, coalescer: Coalescer[Ask, int], count: int) -> bool:
        return len(coalescer._queue) == count

    def busy(self, coalescer: Coalescer[Ask, int]) -> Future[Any]:
        """Make a first call. Returns when a flusher is running it."""
        call = self.call(coalescer, Ask(0))
        assert self.bulk.running.acquire(timeout=PATIENCE_SECONDS)
        return call


class Clock:
    """The coalescer's time, which a test can put ahead."""

    ahead_seconds = 0.0
    time_ns = staticmethod(time.time_ns)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(coalescer_module, "time", clock)
    return clock


def results(calls: Sequence[Future[Any]]) -> list[Any]:
    return [call.result(PATIENCE_SECONDS) for call in calls]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ThreadPoolExecutor(64) as callers:
        rig = Rig(callers)
        yield rig
        rig.bulk.open.set()
        for coalescer in rig.made:
            coalescer.close()


def test_one_call_alone_is_flushed_at_once(rig: Rig) -> None:
    coalescer = rig.coalescer()

    assert coalescer.submit(Ask(21), deadline=time.monotonic() + PATIENCE_SECONDS) == 42
    assert rig.bulk.batches == [[Ask(21)]]


def test_a_refusal_is_raised_to_its_own_caller(rig: Rig) -> None:
    coalescer = rig.coalescer()

    with pytest.raises(SoldOut):
        coalescer.submit(Ask(-1), deadline=time.monotonic() + PATIENCE_SECONDS)
    with pytest.raises(QueueFull):
        coalescer.submit(Ask(1), deadline=time.monotonic() - 1)


def test_calls_that_arrive_during_a_flush_are_the_next_batch_in_arrival_order(rig: Rig) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        first = rig.busy(coalescer)
        others = rig.queue_up(coalescer, *(Ask(n) for n in range(1, 8)))

    assert results([first, *others]) == [[2 * n] for n in range(8)]
    assert rig.bulk.batches == [[Ask(0)], [Ask(n) for n in range(1, 8)]]


def test_a_batch_holds_no_more_requests_than_its_limit(rig: Rig) -> None:
    coalescer = rig.coalescer(requests_max=3)
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(7)))

    assert results(calls) == [[2 * n] for n in range(7)]
    assert [len(batch) for batch in rig.bulk.batches] == [1, 3, 3, 1]


def test_a_batch_stays_within_its_weight_limit_but_has_at_least_one_request(rig: Rig) -> None:
    coalescer = rig.coalescer(weight_max=10)
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n, weight=weight) for n, weight in enumerate([4, 6, 1, 10, 99, 2, 8])))

    results(calls)
    assert [[ask.weight for ask in batch] for batch in rig.bulk.batches] == [[1], [4, 6], [1], [10], [99], [2, 8]]


def test_several_batches_run_at_once_where_that_is_allowed(rig: Rig) -> None:
    coalescer = rig.coalescer(max_concurrency=2, requests_max=1)
    with rig.bulk.held_up():
        calls = [rig.busy(coalescer), rig.busy(coalescer)]
        calls += rig.queue_up(coalescer, Ask(3))
        assert len(rig.bulk.batches) == 2

    assert results(calls) == [[0], [0], [6]]


def test_requests_that_arrive_during_a_batch_are_one_batch_after_it(rig: Rig) -> None:
    coalescer = rig.coalescer(max_concurrency=4, patience_seconds=1000)
    with rig.bulk.held_up():
        calls = [rig.busy(coalescer), *rig.queue_up(coalescer, Ask(1), Ask(2), Ask(3))]
        assert len(rig.bulk.batches) == 1

    assert results(calls) == [[0], [2], [4], [6]]
    assert rig.bulk.batches == [[Ask(0)], [Ask(1), Ask(2), Ask(3)]]


def test_the_next_batch_starts_beside_a_slow_one(rig: Rig) -> None:
    coalescer = rig.coalescer(max_concurrency=4, patience_seconds=0.05, requests_max=2)
    with rig.bulk.held_up():
        calls = [rig.busy(coalescer), *(rig.call(coalescer, Ask(n)) for n in range(1, 6))]
        # All six requests are in running batches, although no batch has ended.
        eventually(lambda: sum(map(len, rig.bulk.batches)) == 6)

    assert sorted(results(calls)) == [[0], [2], [4], [6], [8], [10]]


def test_a_call_of_many_requests_may_be_decided_in_several_batches(rig: Rig) -> None:
    coalescer = rig.coalescer(requests_max=2)

    outcomes = rig.call(coalescer, *(Ask(n) for n in (1, 2, -1, 4, 5))).result(PATIENCE_SECONDS)

    assert [each if isinstance(each, int) else type(each) for each in outcomes] == [2, 4, SoldOut, 8, 10]
    assert coalescer.submit_many([], deadline=0.0) == []


def test_equal_requests_under_one_key_are_folded_and_share_the_outcome(rig: Rig) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, Ask(7, "k"), Ask(8, "other"), Ask(7, "k"), Ask(7, "k"), Ask(7), Ask(7))

    assert results(calls) == [[14], [16], [14], [14], [14], [14]]
    assert rig.bulk.batches[1:] == [[Ask(7, "k"), Ask(8, "other"), Ask(7), Ask(7)]]


def test_other_content_under_one_key_waits_for_the_next_batch_and_keeps_its_place(rig: Rig) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, Ask(1, "k"), Ask(2, "k"), Ask(3, "k"), Ask(4))
    results(calls)

    assert rig.bulk.batches[1:] == [[Ask(1, "k"), Ask(4)], [Ask(2, "k")], [Ask(3, "k")]]


def test_a_call_whose_time_ran_out_in_the_queue_is_not_executed(rig: Rig) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        rig.busy(coalescer)
        late = rig.call(coalescer, Ask(13), seconds=0.15)
        with pytest.raises(QueueFull, match="nothing was done"):
            late.result(PATIENCE_SECONDS)
        calls = rig.queue_up(coalescer, Ask(1))

    results(calls)
    assert [Ask(13)] not in rig.bulk.batches
    assert rig.bulk.batches[1:] == [[Ask(1)]]


def test_a_call_that_would_miss_its_deadline_is_refused_for_the_benefit_of_others(rig: Rig, clock: Clock) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        first = rig.busy(coalescer)
        hasty = rig.call(coalescer, Ask(13), seconds=8)
        eventually(lambda: len(coalescer._queue) == 1)
        patient = rig.call(coalescer, Ask(1), seconds=60)
        eventually(lambda: len(coalescer._queue) == 2)
        clock.ahead_seconds = 5.0

    assert results([first, patient]) == [[0], [2]]
    (refused,) = hasty.result(PATIENCE_SECONDS)
    assert isinstance(refused, QueueFull)
    assert rig.bulk.batches == [[Ask(0)], [Ask(1)]]


def test_when_every_call_would_miss_its_deadline_one_still_runs(rig: Rig, clock: Clock) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        rig.busy(coalescer)
        first, last = rig.queue_up(coalescer, Ask(1), Ask(2))
        clock.ahead_seconds = 50.0

    (refused,) = first.result(PATIENCE_SECONDS)
    assert isinstance(refused, QueueFull)
    assert results([last]) == [[4]]


def test_a_deadline_that_expires_during_the_flush_is_an_unknown_outcome(rig: Rig) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        late = rig.call(coalescer, Ask(13), seconds=0.3)
        with pytest.raises(DatabaseUnavailable) as unknown:
            late.result(PATIENCE_SECONDS)

    assert not unknown.value.rolled_back
    assert rig.bulk.batches == [[Ask(13)]]


def test_after_the_deadline_the_decided_requests_of_a_call_have_their_outcomes(rig: Rig) -> None:
    coalescer = rig.coalescer()
    rig.bulk.decides_max = 2
    rig.bulk.failure = lambda _: rig.bulk.open.clear()  # holds up the second batch
    try:
        late = rig.call(coalescer, Ask(1), Ask(-1), Ask(3), Ask(4), Ask(5), seconds=1.5)
        first, refused, *unknown = late.result(PATIENCE_SECONDS)
    finally:
        rig.bulk.failure = lambda _: None
        rig.bulk.open.set()

    assert first == 2
    assert isinstance(refused, SoldOut)
    assert [isinstance(each, DatabaseUnavailable) and each.rolled_back for each in unknown] == [False] * 3
    coalescer.close()
    assert [len(batch) for batch in rig.bulk.batches] == [5, 3], "requests without a caller are not started"


def test_the_response_arrives_before_the_callers_deadline(rig: Rig) -> None:
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        rig.busy(coalescer)
        deadline = time.monotonic() + 0.3
        with pytest.raises(QueueFull):
            coalescer.submit(Ask(1), deadline=deadline)
        assert time.monotonic() < deadline


def test_a_full_queue_refuses_requests(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescer_module, "QUEUE_REQUESTS_MAX", 3)
    coalescer = rig.coalescer()
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, Ask(1), Ask(2))
        with pytest.raises(QueueFull, match="too many"):
            coalescer.submit_many([Ask(3), Ask(4)], deadline=time.monotonic() + PATIENCE_SECONDS)
        calls += rig.queue_up(coalescer, Ask(3))

    assert results(calls) == [[2], [4], [6]]


def test_bisection_fails_only_the_request_that_causes_the_error(rig: Rig) -> None:
    coalescer = rig.coalescer()
    rig.bulk.failure = lambda asks: ZeroDivisionError("poison") if Ask(5) in asks else None
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(1, 9)))

    for number, call in enumerate(calls, start=1):
        if number == 5:
            with pytest.raises(ZeroDivisionError):
                call.result(PATIENCE_SECONDS)
        else:
            assert call.result(PATIENCE_SECONDS) == [2 * number]
    assert [len(batch) for batch in rig.bulk.batches[1:]] == [8, 4, 4, 2, 1, 1, 2]


def test_bisection_has_a_time_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescer_module, "BISECT_SECONDS_MAX", -1.0)
    coalescer = rig.coalescer()
    rig.bulk.failure = lambda asks: ZeroDivisionError("poison") if Ask(1) in asks else None
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, Ask(1), Ask(2))

    for call in calls:
        with pytest.raises(ZeroDivisionError):
            call.result(PATIENCE_SECONDS)
    assert len(rig.bulk.batches) == 2


def test_an_error_that_no_request_caused_fails_the_batch_without_bisection(rig: Rig) -> None:
    coalescer = rig.coalescer()
    rig.bulk.failure = lambda asks: Contention("others hold the rows") if len(asks) > 1 else None
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, Ask(1), Ask(2), Ask(3))

    assert all(isinstance(outcome, Contention) for (outcome,) in results(calls))
    assert len(rig.bulk.batches) == 2


def test_undecided_requests_are_first_in_the_next_batch(rig: Rig) -> None:
    coalescer = rig.coalescer(requests_max=4)
    rig.bulk.decides_max = 3
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(1, 7)))

    assert results(calls) == [[2 * n] for n in range(1, 7)]
    assert [[ask.content for ask in batch] for batch in rig.bulk.batches] == [[0], [1, 2, 3, 4], [4, 5, 6]]


def test_undecided_folded_calls_share_their_outcome_later(rig: Rig) -> None:
    coalescer = rig.coalescer()
    rig.bulk.decides_max = 1
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, Ask(1), Ask(2, "a"), Ask(2, "a"), Ask(3))

    assert results(calls) == [[2], [4], [4], [6]]
    assert [len(batch) for batch in rig.bulk.batches] == [1, 3, 2, 1]


def test_a_deadline_that_expires_while_a_request_is_undecided_means_that_nothing_was_done(rig: Rig) -> None:
    coalescer = rig.coalescer()
    gone = threading.Event()

    def failure(asks: Sequence[Ask]) -> BaseException | None:
        if len(asks) == 3:
            return TransactionTimeout("took too long")
        if asks[0].content == 1:
            assert gone.wait(PATIENCE_SECONDS)
        return None

    rig.bulk.failure = failure
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, Ask(1), Ask(2))
        short = rig.call(coalescer, Ask(3), seconds=1)
        eventually(partial(rig._waits, coalescer, 3))

    assert isinstance(short.exception(PATIENCE_SECONDS), QueueFull)
    gone.set()
    assert results(calls) == [[2], [4]]


@pytest.mark.parametrize("timeout", [TransactionTimeout, LockTimeout])
def test_a_batch_that_times_out_is_tried_again_in_smaller_ones(rig: Rig, timeout: type[ShopError]) -> None:
    coalescer = rig.coalescer()
    rig.bulk.failure = lambda asks: timeout("took too long") if len(asks) > 5 else None
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(1, 33)))

    assert results(calls) == [[2 * n] for n in range(1, 33)]
    sizes = [len(batch) for batch in rig.bulk.batches]
    assert sizes[:5] == [1, 32, 16, 8, 4]
    assert max(sizes[5:]) <= 6


def test_callers_with_less_time_than_a_timeout_takes_are_in_the_smaller_batches(rig: Rig, clock: Clock) -> None:
    coalescer = rig.coalescer()

    def failure(asks: Sequence[Ask]) -> BaseException | None:
        if len(asks) <= 2:
            return None
        clock.ahead_seconds += 5.0
        return TransactionTimeout("took too long")

    rig.bulk.failure = failure
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = []
        for number in range(1, 5):
            calls.append(rig.call(coalescer, Ask(number), seconds=10))
            eventually(partial(rig._waits, coalescer, number))

    assert results(calls) == [[2], [4], [6], [8]]


def test_batches_grow_again_once_they_succeed(rig: Rig) -> None:
    coalescer = rig.coalescer(requests_max=8)
    slow = True
    rig.bulk.failure = lambda asks: TransactionTimeout("took too long") if slow and len(asks) > 1 else None
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(4)))
    results(calls)
    slow = False
    while rig.bulk.running.acquire(blocking=False):
        pass
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(40)))

    results(calls)
    assert max(len(batch) for batch in rig.bulk.batches[-4:]) == 8


def test_a_request_that_times_out_alone_fails_without_delaying_others(rig: Rig) -> None:
    coalescer = rig.coalescer()
    rig.bulk.failure = lambda asks: TransactionTimeout("too long") if any(ask.content == 3 for ask in asks) else None
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(8)))

    outcomes = [outcome for (outcome,) in results(calls)]
    assert isinstance(outcomes.pop(3), TransactionTimeout)
    assert outcomes == [2 * n for n in range(8) if n != 3]


def test_a_commit_without_a_response_is_never_retried(rig: Rig) -> None:
    coalescer = rig.coalescer()
    rig.bulk.failure = lambda asks: DatabaseUnavailable("no answer", rolled_back=False) if len(asks) > 1 else None
    with rig.bulk.held_up():
        rig.busy(coalescer)
        calls = rig.queue_up(coalescer, *(Ask(n) for n in range(4)))

    assert all(isinstance(outcome, DatabaseUnavailable) for (outcome,) in results(calls))
    assert [len(batch) for batch in rig.bulk.batches] == [1, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_flusher_is_reported() -> None:
    fatal_errors: list[str] = []
    reported = threading.Event()

    def on_fatal(reason: str, error: BaseException) -> None:
        fatal_errors.append(f"{reason}: {error}")
        reported.set()

    def one_outcome_too_few(requests: Sequence[int]) -> list[int | ShopError]:
        return []

    coalescer: Coalescer[int, int] = Coalescer("counting", one_outcome_too_few, on_fatal=on_fatal)
    with pytest.raises(DatabaseUnavailable):
        coalescer.submit(1, deadline=time.monotonic() + 0.3)

    assert reported.wait(PATIENCE_SECONDS)
    assert fatal_errors == ["the counting flusher failed: counting: 0 outcomes for 1 requests"]
    coalescer.close()


def test_close_finishes_queued_requests_and_refuses_new_ones(rig: Rig) -> None:
    coalescer = rig.coalescer(requests_max=1)
    with rig.bulk.held_up():
        calls = [rig.busy(coalescer), *rig.queue_up(coalescer, Ask(1), Ask(2))]
        closing = threading.Thread(target=coalescer.close)
        closing.start()
        eventually(lambda: coalescer._closing)
        with pytest.raises(QueueFull):
            coalescer.submit(Ask(9), deadline=time.monotonic() + PATIENCE_SECONDS)

    assert results(calls) == [[0], [2], [4]]
    closing.join(PATIENCE_SECONDS)
    assert not closing.is_alive()


@pytest.mark.parametrize("max_concurrency", [1, 3])
def test_under_load_every_request_gets_its_own_outcome(rig: Rig, max_concurrency: int) -> None:
    coalescer = rig.coalescer(max_concurrency=max_concurrency, requests_max=40, weight_max=60)
    chance = random.Random(max_concurrency)
    calls = []
    for _ in range(400):
        asks = [
            Ask(number, key=chance.choice([None, None, f"{number % 7}"]), weight=chance.randint(1, 5))
            for number in (chance.randint(-50, 1000) for _ in range(chance.randint(1, 12)))
        ]
        calls.append((asks, rig.call(coalescer, *asks)))

    for asks, call in calls:
        outcomes = call.result(PATIENCE_SECONDS)
        assert [SoldOut if ask.content < 0 else 2 * ask.content for ask in asks] == [
            each if isinstance(each, int) else type(each) for each in outcomes
        ]
    assert rig.fatal_errors == []
    assert all(len(batch) <= 40 for batch in rig.bulk.batches)
    assert all(len(batch) == 1 or sum(ask.weight for ask in batch) <= 60 for batch in rig.bulk.batches)
