"""Shares of a coalescer: a caller with many requests delays the others by one short batch at most, and only it is
refused.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import pytest

from shop_common.api.command import Command
from shop_common.batching.coalescer import LARGE_WEIGHT, QUEUE_REQUESTS_MAX, SHARED_WEIGHT_MAX, Coalescer, Limits
from shop_common.errors import QueueFull, ShopError
from shop_common.identity.caller import Caller
from shop_common.identity.current import set_caller
from testkit.eventually import eventually

PATIENCE_SECONDS = 60.0
DEADLINE_SECONDS = 1_000.0
"""Far longer than a held-up batch: a coalescer refuses calls that another batch as slow as the last one would delay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Command):
    """A request. Equal orders with the same `key` fold."""

    number: int = 0
    lines: int = 1
    key: str | None = None


class Shop:
    """A coalescer that records its batches, and callers in threads.

    Until `open` is set, all batches are blocked except those of SMALL alone. The first call is made at once.
    """

    def __init__(self, threads: ThreadPoolExecutor, limits: Limits | None = None, *first: Order) -> None:
        self.batches: list[list[Order]] = []
        self.open = threading.Event()
        self._threads = threads
        self.coalescer: Coalescer[Order, int] = Coalescer(
            "orders",
            self._bulk,
            key=lambda order: order.key,
            weigh=lambda order: order.lines,
            limits=limits,
            on_fatal=lambda reason, error: pytest.fail(f"{reason}: {error}"),
        )
        self.first = self._start("first", first or [Order()])
        eventually(lambda: self.batches)

    def call(self, name: str, *orders: Order) -> Future[list[int | ShopError]]:
        """Make a call as this caller, and wait until its orders are in the queue or refused."""
        waiting = len(self.coalescer._queue)
        call = self._start(name, orders)
        eventually(lambda: len(self.coalescer._queue) > waiting or call.done())
        return call

    def _start(self, name: str, orders: Sequence[Order]) -> Future[list[int | ShopError]]:
        return self._threads.submit(copy_context().run, self._submit, name, orders)

    def _submit(self, name: str, orders: Sequence[Order]) -> list[int | ShopError]:
        set_caller(caller(name))
        return self.coalescer.submit_many(orders, deadline=time.monotonic() + DEADLINE_SECONDS)

    def _bulk(self, orders: Sequence[Order]) -> list[int | ShopError]:
        self.batches.append(list(orders))
        if any(order.caller != SMALL for order in orders):
            assert self.open.wait(PATIENCE_SECONDS)
        return [order.number for order in orders]

    def close(self) -> None:
        self.open.set()
        self.coalescer.close()


def caller(name: str) -> Caller:
    return Caller(name, frozenset())


LARGE, SMALL = caller("large"), caller("small")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


@pytest.fixture
def shop(threads: ThreadPoolExecutor) -> Iterator[Shop]:
    shop = Shop(threads)
    yield shop
    shop.close()


def outcome(call: Future[Any]) -> Any:
    return call.result(PATIENCE_SECONDS)


def test_a_later_caller_is_in_the_next_batch(shop: Shop) -> None:
    large = [shop.call("large", *(Order(caller=LARGE, lines=10) for _ in range(500))) for _ in range(4)]
    small = shop.call("small", Order(caller=SMALL, number=7))
    shop.open.set()

    assert outcome(small) == [7]
    second = shop.batches[1]
    assert [order.caller for order in second[:2]] == [LARGE, SMALL]
    assert sum(order.lines for order in second if order.caller == LARGE) == SHARED_WEIGHT_MAX
    assert all(outcome(call) == [0] * 500 for call in large)


def test_a_small_request_does_not_wait_for_a_large_one_of_another_caller(threads: ThreadPoolExecutor) -> None:
    limits = Limits(max_concurrency=2, patience_seconds=DEADLINE_SECONDS)
    large, small = Order(caller=LARGE, lines=LARGE_WEIGHT + 1), Order(caller=SMALL, number=7)
    shop = Shop(threads, limits, large, small)
    eventually(lambda: len(shop.batches) == 2)
    second = shop.call("large", large)

    # While the first large request runs, the second one waits, so that the other thread can run small requests.
    assert outcome(shop.call("small", small)) == [7]
    assert shop.batches == [[large], [small], [small]]
    shop.open.set()
    assert outcome(second) == [0]
    shop.close()

    assert shop.batches == [[large], [small], [small], [large]]


def test_one_caller_alone_has_the_whole_batch(threads: ThreadPoolExecutor, shop: Shop) -> None:
    shop.open.set()
    outcome(shop.first)
    # The queue counts as shared for a second after "first".
    alone = Shop(threads)
    call = alone.call("first", *(Order(lines=10) for _ in range(500)))
    alone.close()

    assert outcome(call) == [0] * 500
    assert [sum(order.lines for order in batch) for batch in alone.batches[1:]] == [2000, 2000, 1000]


def test_a_caller_that_fills_the_queue_is_refused_alone(shop: Shop) -> None:
    quarter = QUEUE_REQUESTS_MAX // 4
    full = [shop.call("large", *(Order(caller=LARGE) for _ in range(500))) for _ in range(quarter // 500)]

    with pytest.raises(QueueFull):
        outcome(shop.call("large", Order(caller=LARGE)))
    small = shop.call("small", Order(caller=SMALL, number=3))
    shop.open.set()

    assert outcome(small) == [3]
    assert all(outcome(call) == [0] * 500 for call in full)


def test_the_requests_of_one_call_count_for_their_own_callers(threads: ThreadPoolExecutor) -> None:
    shop = Shop(threads)
    orders = [*(Order(caller=LARGE, lines=SHARED_WEIGHT_MAX // 2) for _ in range(10)), Order(caller=SMALL, number=1)]
    shop.call("delegate", *orders)
    shop.open.set()
    shop.close()

    assert [order.caller for order in shop.batches[1]] == [LARGE, SMALL, LARGE]


def test_only_the_requests_of_the_caller_without_room_are_refused(threads: ThreadPoolExecutor) -> None:
    shop = Shop(threads)
    quarter = QUEUE_REQUESTS_MAX // 4
    full = shop.call("delegate", *(Order(caller=LARGE) for _ in range(quarter)))
    mixed = shop.call("delegate", Order(caller=LARGE), Order(caller=SMALL, number=5))
    shop.open.set()
    shop.close()

    refused, served = outcome(mixed)
    assert isinstance(refused, QueueFull)
    assert served == 5
    assert outcome(full) == [0] * quarter


def test_a_folded_request_weighs_nothing(shop: Shop) -> None:
    half = SHARED_WEIGHT_MAX // 2
    twins = [shop.call("large", Order(caller=LARGE, number=1, lines=half, key="same")) for _ in range(10)]
    other = shop.call("large", Order(caller=LARGE, number=2, lines=half))
    shop.open.set()

    assert [outcome(call) for call in twins] == [[1]] * 10
    assert outcome(other) == [2]
    assert [order.number for order in shop.batches[1]] == [1, 2]
