"""Shares of a queue: whose turn it is, and how much of the queue one caller may have."""

from collections.abc import Sequence

import pytest

from shop_common.batching.fair_queue import SHARED_SECONDS, FairQueue, sharer_of
from shop_common.identity.caller import ANYONE, Caller

Job = tuple[str, int]
"""The sharer and the weight of an entry."""


def queue_of(
    *jobs: Job, size_max: int = 1_000, share_max: int = 1_000, entry_max: int = 1_000, now: float = 0.0
) -> FairQueue[Job]:
    queue: FairQueue[Job] = FairQueue(size_max=size_max, share_max=share_max, entry_max=entry_max)
    for job in jobs:
        assert queue.add(job[0], [job], now)
    return queue


def batch_of(queue: FairQueue[Job], weight_max: int = 10_000, now: float = 0.0, *, is_done: bool = True) -> list[Job]:
    """Take a batch of at most this weight, and end it at once if `is_done`."""
    queue.begin_batch(now)
    batch: list[Job] = []
    weight = 0
    while (job := queue.head()) is not None and weight + job[1] <= weight_max:
        if not queue.exceeds_share(job[1]):
            batch.append(queue.pop(job[1]))
            weight += job[1]
    if is_done:
        for sharer, _ in batch:
            queue.end(sharer, now)
    return batch


def sharers(batch: Sequence[Job]) -> str:
    return "".join(sharer for sharer, _ in batch)


def test_the_entries_of_one_caller_stay_in_arrival_order() -> None:
    queue = queue_of(*(("a", weight) for weight in (3, 1, 200, 7)))

    assert batch_of(queue) == [("a", 3), ("a", 1), ("a", 200), ("a", 7)]
    assert len(queue) == queue.lanes == 0


def test_callers_take_turns_whenever_they_arrive() -> None:
    queue = queue_of(*[("a", 1)] * 5, ("b", 1), ("c", 1))

    assert sharers(batch_of(queue)) == "abcaaaa"


def test_a_turn_is_weighed() -> None:
    queue = queue_of(*[("a", 10)] * 3, *[("b", 1)] * 25)

    taken = sharers(batch_of(queue))

    # After its first entry, `a` waits until `b` has had the same weight.
    assert taken == "a" + "b" * 10 + "a" + "b" * 10 + "a" + "b" * 5


def test_turns_go_on_in_the_next_batch() -> None:
    queue = queue_of(*[("a", 1)] * 3, *[("b", 1)] * 3)

    assert [sharers(batch_of(queue, weight_max=1)) for _ in range(6)] == ["a", "b"] * 3


def test_a_caller_pays_nothing_for_what_it_takes_alone() -> None:
    queue = queue_of(*[("a", 100)] * 10)
    assert sharers(batch_of(queue, weight_max=500)) == "aaaaa"

    assert queue.add("b", [("b", 1)] * 3, 0.0)

    assert sharers(batch_of(queue, weight_max=102)) == "abb"


def test_a_batch_takes_no_more_than_its_share_from_a_caller_while_others_use_the_queue() -> None:
    queue = queue_of(*[("a", 20)] * 20, ("b", 1), share_max=100)

    assert sharers(batch_of(queue)).count("a") == 5
    assert queue.longest == 15
    # The queue counts as shared for some time, although `b` waits for nothing now.
    assert sharers(batch_of(queue, now=SHARED_SECONDS / 2)) == "a" * 5
    assert sharers(batch_of(queue, now=SHARED_SECONDS * 2)) == "a" * 10


def test_a_request_larger_than_the_share_takes_all_of_it_while_others_use_the_queue() -> None:
    queue = queue_of(("a", 150), ("a", 1), ("b", 1), ("b", 1), share_max=100, entry_max=200)

    assert [batch_of(queue) for _ in range(2)] == [[("a", 150), ("b", 1), ("b", 1)], [("a", 1)]]


def test_a_very_large_request_is_the_only_one_of_its_batch_while_others_use_the_queue() -> None:
    queue = queue_of(("a", 500), ("a", 500), ("b", 1), ("b", 1), share_max=100, entry_max=100)

    assert [batch_of(queue) for _ in range(3)] == [[("a", 500)], [("b", 1), ("b", 1)], [("a", 500)]]


def test_a_caller_alone_may_have_several_large_requests_in_a_batch() -> None:
    queue = queue_of(("a", 500), ("a", 500), share_max=100, entry_max=100)

    assert batch_of(queue) == [("a", 500), ("a", 500)]


def test_a_large_request_has_its_turn_although_small_ones_never_cease() -> None:
    queue = queue_of(("b", 1), ("a", 101), share_max=100, entry_max=100)
    batches: list[str] = []
    while len(queue) and len(batches) < 10:
        batches.append(sharers(batch_of(queue)))
        assert queue.add("b", [("b", 1)], 0.0)

    assert "a" in batches[:2]


def test_a_batch_beside_a_large_request_takes_only_small_ones() -> None:
    queue = queue_of(("a", 500), ("b", 1), share_max=100, entry_max=100)

    queue.begin_batch(0.0, takes_large=False)
    assert queue.exceeds_share(500)
    assert queue.pop(1) == ("b", 1)
    assert queue.head() is None

    assert batch_of(queue) == [("a", 500)]


def test_a_caller_alone_may_fill_the_queue() -> None:
    queue = queue_of(*[("a", 1)] * 100, size_max=100)

    assert not queue.add("a", [("a", 1)], 0.0)


def test_a_caller_has_a_quarter_while_others_use_the_queue() -> None:
    queue = queue_of(("b", 1), *[("a", 1)] * 25, size_max=100)

    assert not queue.add("a", [("a", 1)], 0.0)
    assert queue.add("b", [("b", 1)] * 24, 0.0)
    assert not queue.add("b", [("b", 1)], 0.0)


def test_a_caller_has_all_of_the_queue_again_after_the_others_have_left() -> None:
    queue = queue_of(("b", 1), *[("a", 1)] * 25, size_max=100)
    assert sharers(batch_of(queue, weight_max=2)) == "ba"

    assert not queue.add("a", [("a", 1)] * 50, SHARED_SECONDS / 2)
    assert queue.add("a", [("a", 1)] * 50, SHARED_SECONDS * 2)


def test_a_queue_is_shared_while_a_batch_with_requests_of_others_runs() -> None:
    queue = queue_of(("b", 1), *[("a", 1)] * 25, size_max=100)
    assert sharers(batch_of(queue, weight_max=1, is_done=False)) == "b"

    assert not queue.add("a", [("a", 1)] * 50, SHARED_SECONDS * 9)
    queue.end("b", SHARED_SECONDS * 10)
    assert not queue.add("a", [("a", 1)] * 50, SHARED_SECONDS * 10.5)
    assert queue.add("a", [("a", 1)] * 50, SHARED_SECONDS * 12)


def test_callers_that_come_one_after_the_other_do_not_share_the_queue() -> None:
    queue = queue_of(("b", 1), size_max=100)
    assert sharers(batch_of(queue)) == "b"

    assert queue.add("a", [("a", 1)] * 50, SHARED_SECONDS * 2)


def test_others_find_room_in_a_queue_that_one_caller_has_filled() -> None:
    queue = queue_of(*[("a", 1)] * 100, size_max=100)

    assert queue.add("b", [("b", 1)] * 20, 0.0)
    assert not queue.add("c", [("c", 1)] * 6, 0.0)
    assert queue.add("c", [("c", 1)] * 5, 0.0)
    assert not queue.add("a", [("a", 1)], 0.0)


def test_entries_that_were_put_back_cost_their_callers_nothing() -> None:
    queue = queue_of(("a", 10), ("a", 11), ("a", 12), *[("b", 1)] * 30)
    batch = batch_of(queue, weight_max=30, is_done=False)

    for job in reversed(batch):
        queue.put_back(job[0], job, job[1])

    assert sorted(batch) == sorted(batch_of(queue, weight_max=30))
    assert len(queue) == 33 - len(batch)


def test_a_lane_that_was_empty_is_put_back_in_front() -> None:
    queue = queue_of(("b", 1), *[("a", 1)] * 3)
    assert sharers(batch_of(queue, weight_max=1, is_done=False)) == "b"

    queue.put_back("b", ("b", 1), 1)

    assert sharers(batch_of(queue)) == "baaa"


@pytest.mark.parametrize(
    "other",
    [
        Caller("user:1", ANYONE.permissions, "1", "acme"),
        Caller("user:2", ANYONE.permissions, "2"),
        Caller("spiffe://shop/order-api", ANYONE.permissions, "1"),
        Caller("spiffe://shop/order-api", ANYONE.permissions, "2"),
        ANYONE,
    ],
    ids=lambda caller: f"{caller.tenant} {caller.name} {caller.subject}",
)
def test_tenant_name_and_subject_identify_a_sharer(other: Caller) -> None:
    one = Caller("user:1", frozenset(), "1")

    assert sharer_of(one) == sharer_of(Caller("user:1", ANYONE.permissions, "1"))
    assert sharer_of(one) != sharer_of(other)
