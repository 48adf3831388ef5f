"""Group commit: concurrent calls become one bulk operation in one transaction.

A call joins the queue and blocks. A flusher thread takes the queued requests, runs the bulk operation on them, and
returns to each caller the outcomes of its own requests. An idle coalescer does not wait for more calls: it runs a
single call at once. While a batch runs, requests collect for the next batch. So batches grow with load, and a hot row
is locked once per batch, not once per call.

Calls reach the database only through a coalescer. So a caller never waits longer than its deadline, even if the
database does not respond. Calls use only the connections of the flusher threads, and there are few of these threads.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Generic, TypeVar, cast

from shop_common.api.command import Command
from shop_common.batching.coalescer_telemetry import CoalescerMetrics, Membership
from shop_common.batching.fair_queue import FairQueue, Sharer, sharer_of
from shop_common.db.database import is_statement_error
from shop_common.errors import TIMEOUTS, DatabaseUnavailable, QueueFull, ShopError
from shop_common.identity.caller import ANYONE
from shop_common.identity.current import caller
from shop_common.telemetry import metrics, tracing

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

BATCH_REQUESTS_MAX = 500
BATCH_WEIGHT_MAX = 2000
"""The limits of one transaction, for operations without `limits` of their own. Equal requests with the same key count
once. A request that is heavier than the limit is a batch of its own.
"""
SHARED_WEIGHT_MAX = 20
"""The weight that a batch takes from one caller while several callers use the coalescer, because the others wait for
the whole batch. A larger request may still be the caller's first one in a batch."""
LARGE_WEIGHT = 50
"""While several callers use the coalescer, a request that is heavier has a batch of its own, and only one such batch
runs at a time."""

QUEUE_REQUESTS_MAX = 10_000
BISECT_SECONDS_MAX = 5.0

ANSWER_SECONDS = 0.1
ANSWER_SECONDS_MAX = 0.5
ANSWER_SHARE = 0.15
"""The time reserved for sending the response, so that a caller gets the reason instead of only a timeout. It is a share
of the remaining time, because responses are slow where calls are slow. The first two values are its bounds."""


@dataclass(frozen=True)
class Limits:
    """Limits on the size of a batch and on the number of concurrent batches.

    While a batch runs, another one starts no sooner than `patience_seconds` after it has started. Until then requests
    collect, because a few large batches cost less than many small ones. If a batch is a single request above
    LARGE_WEIGHT, it delays no other batch.
    """

    requests_max: int = BATCH_REQUESTS_MAX
    weight_max: int = BATCH_WEIGHT_MAX
    max_concurrency: int = 1
    patience_seconds: float = 0.0


class _Call:
    """One call. Its lock is released when the last of its requests has an outcome."""

    __slots__ = ("abandoned", "arrived_at", "deadline", "done", "member", "started", "waiting")

    def __init__(self, size: int, member: Membership | None, deadline: float) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.waiting = size
        self.started = 0
        """The number of requests of this call that batches have taken."""
        self.abandoned = False
        self.arrived_at = time.monotonic()
        self.deadline = deadline
        """The time at which the caller stops waiting."""
        self.member = member


_UNDECIDED = object()


class _Entry(Generic[_Request, _Result]):
    """One request in the queue, and its outcome."""

    __slots__ = ("call", "outcome", "request", "sharer")

    def __init__(self, request: _Request, call: _Call, sharer: Sharer) -> None:
        self.request = request
        self.call = call
        self.sharer = sharer
        self.outcome: _Result | ShopError | Exception | object = _UNDECIDED

    def take(self) -> _Result | ShopError:
        """Return the outcome: a result or a ShopError. Raises any other exception that this request caused."""
        if isinstance(self.outcome, Exception) and not isinstance(self.outcome, ShopError):
            raise self.outcome
        return cast("_Result | ShopError", self.outcome)


def _sharer(request: object, of_call: Sharer) -> Sharer:
    """Return the sharer for whom a request counts. One call of a delegate may contain commands of many callers."""
    if isinstance(request, Command) and request.caller is not ANYONE:
        return sharer_of(request.caller)
    return of_call


def time_to_wait(deadline: float) -> float:
    """Return how many seconds a caller waits for its outcome. `deadline` is a value of time.monotonic."""
    seconds_left = deadline - time.monotonic()
    return max(0.0, seconds_left - min(max(ANSWER_SECONDS, ANSWER_SHARE * seconds_left), ANSWER_SECONDS_MAX))


class Coalescer(Generic[_Request, _Result]):
    """Runs the function `bulk` on batches of queued requests.

    `bulk` receives the requests of each caller in arrival order, and callers take turns (see FairQueue). It returns one
    outcome for each request, in order: a result, or the ShopError that refuses it. If all requests are too much work
    for one transaction, `bulk` may decide only the first ones, at least one, and return their outcomes. The remaining
    requests go into the next batch.

    If `bulk` raises:

    - A timeout means that nothing was done. The requests are retried in batches of half the size while their callers
      wait. A request that times out alone fails with that timeout. Each success lets batches grow again by an eighth.
    - Any other ShopError is the outcome of every request of the batch.
    - Any other exception means that nothing was done. If a request can have caused it, bisection finds that request,
      and only that request fails.

    Equal requests with the same `key` are folded: one of them runs, and all of them get its outcome. If two requests
    with the same key differ, the later one waits for the next batch. `weigh` returns the weight of a request; without
    `weigh` each request has the weight 1. A batch weighs at most `Limits.weight_max`, or has only one request. A folded
    request weighs nothing. `fold` returns the request that stands for a number of equal ones; without it, `bulk` cannot
    see how many were folded. A request counts for the caller that its command names, or else for the caller of the
    call. `on_fatal` is called if a flusher thread fails.
    """

    def __init__(
        self,
        name: str,
        bulk: Callable[[Sequence[_Request]], Sequence[_Result | ShopError]],
        *,
        key: Callable[[_Request], Hashable | None] | None = None,
        weigh: Callable[[_Request], int] | None = None,
        fold: Callable[[_Request, int], _Request] | None = None,
        limits: Limits | None = None,
        on_fatal: Callable[[str, BaseException], None],
    ) -> None:
        self._name = name
        self._bulk = bulk
        self._key = key
        self._weigh = weigh
        self._fold = fold
        self._limits = limits or Limits()
        self._on_fatal = on_fatal
        self._metrics = CoalescerMetrics(name) if metrics.is_enabled() else None
        self._queue: FairQueue[_Entry[_Request, _Result]] = FairQueue(
            size_max=QUEUE_REQUESTS_MAX, share_max=SHARED_WEIGHT_MAX, entry_max=LARGE_WEIGHT
        )
        self._mutex = threading.Lock()
        self._arrived = threading.Condition(self._mutex)
        self._idle_flushers = 0
        self._running_count = 0
        """The number of running batches, without a batch that is a single large request."""
        self._large_batch: list[list[_Entry[_Request, _Result]]] | None = None
        """The running batch of a request that must be alone in its batch."""
        self._last_start = 0.0
        self._requests_max = self._limits.requests_max
        """The size limit of the next batch. After a timeout it is less than the configured limit."""
        self._last_seconds = 0.0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-flusher-{n}", daemon=True)
            for n in range(self._limits.max_concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: _Request, *, deadline: float) -> _Result:
        """Return the result of the request. Raises its ShopError. `deadline` is a value of time.monotonic."""
        (outcome,) = self.submit_many([request], deadline=deadline)
        if isinstance(outcome, ShopError):
            raise outcome
        return outcome

    def submit_many(self, requests: Sequence[_Request], *, deadline: float) -> list[_Result | ShopError]:
        """Return one outcome per request, in order.

        The requests may run in different batches, and so in different transactions. Other calls may change rows between
        these transactions. So use this method only for RPCs that promise neither atomicity nor one snapshot for all
        their parts. Parts that need atomicity or one snapshot must be one request of `bulk`.

        If the deadline passes after some requests were decided, the outcome of the others is DatabaseUnavailable: they
        may have been done. Raises DatabaseUnavailable if a request was started, but none was decided before the
        deadline. Raises QueueFull if the queue or the caller's part of it is full, or if no request was started before
        the deadline: nothing was done. Raises an exception other than ShopError that one of the requests caused.
        """
        member = Membership.of_current_span()
        call = _Call(len(requests), member, deadline=time.monotonic() + time_to_wait(deadline))
        entries = self._entries(requests, call)
        if not entries:
            return []
        with self._mutex:
            if self._closing:
                raise self._full()
            # If requests collect while a batch runs, one flusher already waits until it may start the next batch. Do
            # not wake another flusher.
            is_watched = bool(self._queue) and self._patience() > 0
            self._enqueue(entries, call)
            if self._idle_flushers and not is_watched:
                self._arrived.notify()
        if not call.done.acquire(timeout=max(0.0, call.deadline - time.monotonic())):
            return self._give_up(call, entries)
        if member is not None:
            member.end_span(self._name)
        return [entry.take() for entry in entries]

    def close(self) -> None:
        """Finish the queued requests, then end the threads."""
        with self._mutex:
            self._closing = True
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join()

    def _entries(self, requests: Sequence[_Request], call: _Call) -> list[_Entry[_Request, _Result]]:
        of_call = sharer_of(caller())
        return [_Entry(request, call, _sharer(request, of_call)) for request in requests]

    def _enqueue(self, entries: Sequence[_Entry[_Request, _Result]], call: _Call) -> None:
        """Append the entries to the queue, and refuse those for which their callers have no room."""
        refused = 0
        for sharer, group in groupby(entries, key=attrgetter("sharer")):
            of_sharer = list(group)
            if not self._queue.add(sharer, of_sharer, call.arrived_at):
                refused += len(of_sharer)
                for entry in of_sharer:
                    entry.outcome = self._full()
        if refused == len(entries):
            raise self._full()
        call.waiting -= refused

    def _full(self) -> QueueFull:
        return QueueFull(f"{self._name}: too many calls are waiting; retry in a moment")

    def _give_up(self, call: _Call, entries: Sequence[_Entry[_Request, _Result]]) -> list[_Result | ShopError]:
        """Stop waiting for the requests that are not decided. Returns one outcome per request; see submit_many."""
        with self._mutex:
            call.abandoned = bool(call.waiting)
            is_decided = [entry.outcome is not _UNDECIDED for entry in entries]
        if call.member is not None:
            call.member.end_span(self._name, given_up=call.abandoned)
        error: ShopError = DatabaseUnavailable(f"{self._name}: no answer within the deadline", rolled_back=False)
        if not call.started:
            error = QueueFull(f"{self._name}: the call was not started before its deadline; nothing was done")
        if not any(is_decided):
            raise error
        return [entry.take() if decided else error for entry, decided in zip(entries, is_decided, strict=True)]

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._flush(batch)
        except BaseException as error:
            # Without a flusher every later call would wait until its deadline.
            self._on_fatal(f"the {self._name} flusher failed", error)
            raise

    def _next_batch(self) -> list[list[_Entry[_Request, _Result]]] | None:
        """Wait for a batch, and return one list of folded entries per distinct request; None if closed and empty."""
        with self._mutex:
            while True:
                while not self._queue or self._patience() > 0:
                    if self._closing and not self._queue:
                        return None
                    self._idle_flushers += 1
                    self._arrived.wait(self._patience() if self._queue else None)
                    self._idle_flushers -= 1
                batch = self._take()
                if batch:
                    if self._metrics is not None:
                        self._metrics.waiting(len(self._queue), self._queue.lanes, self._queue.longest)
                    if batch is not self._large_batch:
                        self._running_count += 1
                        self._last_start = time.monotonic()
                    if self._queue and self._idle_flushers:
                        self._arrived.notify()
                    return batch
                if self._queue:
                    # Only large requests wait, and one of them runs.
                    self._idle_flushers += 1
                    self._arrived.wait()
                    self._idle_flushers -= 1

    def _patience(self) -> float:
        """Return how many more seconds requests collect before another batch may start while one runs."""
        if not self._running_count or not self._limits.patience_seconds:
            return 0.0
        return self._last_start + self._limits.patience_seconds - time.monotonic()

    def _take(self) -> list[list[_Entry[_Request, _Result]]]:
        limits, key_of, queue = self._limits, self._key, self._queue
        batch: list[list[_Entry[_Request, _Result]]] = []
        by_key: dict[Hashable, list[_Entry[_Request, _Result]]] = {}
        later: list[_Entry[_Request, _Result]] = []
        weight = 0
        queue.begin_batch(time.monotonic(), takes_large=self._large_batch is None)
        while len(batch) < self._requests_max and (entry := queue.head()) is not None:
            if entry.call.abandoned or self._comes_too_late(entry.call):
                self._refuse(queue.pop(0))
                continue
            key = key_of(entry.request) if key_of else None
            same_key = by_key.get(key) if key is not None else None
            if same_key is not None:
                queue.pop(0)
                if same_key[0].request == entry.request:
                    entry.call.started += 1
                    same_key.append(entry)
                else:
                    later.append(entry)
                continue
            entry_weight = self._weight(entry)
            if batch and weight + entry_weight > limits.weight_max:
                break
            if queue.exceeds_share(entry_weight):
                continue
            queue.pop(entry_weight)
            weight += entry_weight
            entry.call.started += 1
            folded = [entry]
            batch.append(folded)
            if queue.is_alone(entry_weight):
                self._large_batch = batch
            if key is not None:
                by_key[key] = folded
        for entry in reversed(later):
            queue.put_back(entry.sharer, entry, 0)
        return batch

    def _comes_too_late(self, call: _Call) -> bool:
        """Return whether a batch that takes as long as the last one would end after the caller's deadline.

        Serving the oldest calls first under overload would fill every batch with calls that time out before it commits.
        """
        # Always run at least one request. Otherwise all calls could be refused forever after one slow batch, because
        # only another batch can show that the database is fast again.
        return len(self._queue) > 1 and time.monotonic() + self._last_seconds > call.deadline

    def _refuse(self, entry: _Entry[_Request, _Result]) -> None:
        call = entry.call
        self._queue.end(entry.sharer, time.monotonic())
        entry.outcome = QueueFull(f"{self._name}: the call could not end before its deadline; nothing was done")
        call.waiting -= 1
        if not call.waiting:
            call.done.release()

    def _flush(self, batch: list[list[_Entry[_Request, _Result]]]) -> None:
        began, began_ns = time.monotonic(), time.time_ns()
        calls = dict.fromkeys(entry.call for folded in batch for entry in folded)
        members = [call.member for call in calls if call.member is not None]
        requests = [self._request_of(folded) for folded in batch]
        attributes = {"shop.batch.size": len(requests), "shop.batch.calls": len(calls)}
        with tracing.batch_span(f"{self._name} batch", [each.span for each in members], attributes=attributes) as span:
            outcomes = self._outcomes(requests, began + BISECT_SECONDS_MAX)
        for member in members:
            member.add_batch(span, len(requests), began_ns)
        decided, rest = batch[: len(outcomes)], batch[len(outcomes) :]
        if rest:
            calls = dict.fromkeys(entry.call for folded in decided for entry in folded)
        if self._metrics is not None:
            waits = [began - call.arrived_at for call in calls]
            self._metrics.flushed(len(decided), waits, time.monotonic() - began)
        finished = []
        with self._mutex:
            now = time.monotonic()
            # After a timeout the next batch has half the size, so assume that it takes half the time.
            self._last_seconds = (now - began) / (1 if decided else 2)
            self._end(batch, rest)
            for folded, outcome in zip(decided, outcomes, strict=True):
                for entry in folded:
                    entry.outcome = outcome
                    self._queue.end(entry.sharer, now)
                    entry.call.waiting -= 1
                    if not entry.call.waiting:
                        finished.append(entry.call)
        for call in finished:
            call.done.release()

    def _end(
        self,
        batch: list[list[_Entry[_Request, _Result]]],
        undecided: Sequence[list[_Entry[_Request, _Result]]],
    ) -> None:
        """Return the undecided requests of the batch to the queue, and wake the flushers that wait for its end."""
        if batch is self._large_batch:
            self._large_batch = None
        else:
            self._running_count -= 1
        self._put_back(undecided)
        if self._closing:
            self._arrived.notify_all()
        elif self._queue and self._idle_flushers:
            self._arrived.notify()

    def _request_of(self, folded: Sequence[_Entry[_Request, _Result]]) -> _Request:
        request = folded[0].request
        return request if self._fold is None or len(folded) == 1 else self._fold(request, len(folded))

    def _put_back(self, batch: Sequence[list[_Entry[_Request, _Result]]]) -> None:
        """Return undecided requests to the head of the queue."""
        for folded in reversed(batch):
            for entry in reversed(folded):
                weight = self._weight(entry) if entry is folded[0] else 0
                self._queue.put_back(entry.sharer, entry, weight)
                entry.call.started -= 1

    def _weight(self, entry: _Entry[_Request, _Result]) -> int:
        return self._weigh(entry.request) if self._weigh else 1

    def _outcomes(self, requests: Sequence[_Request], bisect_end: float) -> Sequence[_Result | ShopError | Exception]:
        """Return the outcomes of the decided requests, which are a prefix of `requests`."""
        try:
            outcomes = self._bulk(requests)
        except TIMEOUTS as error:
            self._requests_max = max(1, len(requests) // 2)
            if self._metrics is not None:
                self._metrics.timed_out()
            return [error] if len(requests) == 1 else []
        except ShopError as error:
            return [error] * len(requests)
        except Exception as error:  # the transaction has rolled back: `bulk` had no effect
            if len(requests) == 1 or not is_statement_error(error) or time.monotonic() > bisect_end:
                return [error] * len(requests)
            half = len(requests) // 2
            first = self._outcomes(requests[:half], bisect_end)
            if len(first) < half:
                return first
            return [*first, *self._outcomes(requests[half:], bisect_end)]
        if not 0 < len(outcomes) <= len(requests):
            raise AssertionError(f"{self._name}: {len(outcomes)} outcomes for {len(requests)} requests")
        if self._requests_max < self._limits.requests_max:
            self._requests_max = min(self._limits.requests_max, self._requests_max + 1 + self._requests_max // 8)
        return outcomes
