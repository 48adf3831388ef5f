"""Group commit: concurrent calls become one bulk operation in one transaction.

A call joins the queue and blocks; a flusher thread takes what waits, runs the bulk operation on it and hands each
caller its own outcome. There is no timer: an idle coalescer flushes a call at once, alone, and while a flush
runs the next batch gathers. So the batch grows with load, and a hot row is locked once a batch, not once a call.

It is also the only way to the database for a call: a caller never waits longer than its deadline, whatever state
the database is in, and connections are held by the few flusher threads, never by waiters.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from shop_common.batching.coalescer_telemetry import CoalescerMetrics, Membership
from shop_common.db.database import is_statement_error
from shop_common.errors import TIMEOUTS, DatabaseUnavailable, QueueFull, ShopError
from shop_common.telemetry import telemetry

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

BATCH_REQUESTS_MAX = 500
BATCH_WEIGHT_MAX = 2000
QUEUE_REQUESTS_MAX = 10_000
BISECT_SECONDS_MAX = 5.0

ANSWER_SECONDS = 0.1
ANSWER_SECONDS_MAX = 0.5
ANSWER_SHARE = 0.15
"""Kept of a caller's time for the answer to travel, so that it hears why instead of timing out: a share of it, between
these bounds, since a machine on which calls take long takes long with answers, too."""


@dataclass(frozen=True)
class Limits:
    """How much one batch holds, and how many batches run at once.

    A further batch starts beside a running one only when that one has taken `patience_seconds`: until then the next
    one gathers, since few large batches cost less than many small ones.
    """

    requests_max: int = BATCH_REQUESTS_MAX
    weight_max: int = BATCH_WEIGHT_MAX
    max_concurrency: int = 1
    patience_seconds: float = 0.0


class _Call:
    """One caller: its lock is released when the last of its requests has an outcome."""

    __slots__ = ("abandoned", "arrived_at", "done", "member", "started", "until", "waiting")

    def __init__(self, size: int, member: Membership | None, until: float) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.waiting = size
        self.started = 0
        """How many of its requests a batch has taken."""
        self.abandoned = False
        self.arrived_at = time.monotonic()
        self.until = until
        """When its caller stops waiting."""
        self.member = member


class _Entry(Generic[_Request, _Result]):
    """One request in the queue, and its outcome."""

    __slots__ = ("call", "outcome", "request")

    def __init__(self, request: _Request, call: _Call) -> None:
        self.request = request
        self.call = call
        self.outcome: _Result | ShopError | Exception | None = None

    def take(self) -> _Result | ShopError:
        """The outcome; raises what was no outcome but a failure of this request alone."""
        if isinstance(self.outcome, Exception) and not isinstance(self.outcome, ShopError):
            raise self.outcome
        return cast("_Result | ShopError", self.outcome)


def time_to_wait(deadline: float) -> float:
    """For how many seconds a caller with this deadline, by time.monotonic, waits for its outcome."""
    seconds_left = deadline - time.monotonic()
    return max(0.0, seconds_left - min(max(ANSWER_SECONDS, ANSWER_SHARE * seconds_left), ANSWER_SECONDS_MAX))


class Coalescer(Generic[_Request, _Result]):
    """Runs `bulk` on what waits.

    `bulk` gets requests in arrival order and returns one outcome for each, in order: a result, or the ShopError
    that refuses it. It may decide fewer than it was given, from the first on, at least one, when all of them are too
    much work for one transaction: the rest are in the next batch.

    A ShopError that it raises is the answer for the whole batch. Any other exception, or a database error that data
    can cause, is found by bisection, so that it hits only the request that causes it. After a timeout nothing was done,
    and the requests are tried again in batches of half as many, as long as their callers wait; a request that
    times out alone has that as its answer. Batches grow again, by an eighth with each that succeeds.

    Requests with the same `key` that are equal are folded: the first decides, the others get its outcome. If they
    differ, the later one waits for the next batch.
    """

    def __init__(
        self,
        name: str,
        bulk: Callable[[Sequence[_Request]], Sequence[_Result | ShopError]],
        *,
        key: Callable[[_Request], Hashable | None] | None = None,
        weigh: Callable[[_Request], int] | None = None,
        limits: Limits | None = None,
        die: Callable[[str, BaseException], None],
    ) -> None:
        self._name = name
        self._bulk = bulk
        self._key = key
        self._weigh = weigh
        self._limits = limits or Limits()
        self._die = die
        self._metrics = CoalescerMetrics(name) if telemetry.metrics_wanted() else None
        self._queue: deque[_Entry[_Request, _Result]] = deque()
        self._mutex = threading.Lock()
        self._arrived = threading.Condition(self._mutex)
        self._idle_flushers = 0
        self._in_flight = 0
        self._last_start = 0.0
        self._requests_max = self._limits.requests_max
        """Of the next batch; less than the limit after a timeout."""
        self._last_seconds = 0.0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-flusher-{n}", daemon=True)
            for n in range(self._limits.max_concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: _Request, *, deadline: float) -> _Result:
        """Return the request's result. Raises the ShopError that refused it. `deadline` is by time.monotonic."""
        (outcome,) = self.submit_many([request], deadline=deadline)
        if isinstance(outcome, ShopError):
            raise outcome
        return outcome

    def submit_many(self, requests: Sequence[_Request], *, deadline: float) -> list[_Result | ShopError]:
        """One outcome for each request, in order; they may be decided in different batches, each a transaction.

        So an RPC may hand over its parts by this only where each part has an outcome of its own, and where the proto
        promises nothing of all of them together: neither all or nothing, nor a view of one moment, since other
        calls may change rows between two parts. What must hold together is one request of `bulk`.

        Raises QueueFull when there is no room or no turn in time (nothing was done), DatabaseUnavailable when the
        time ran out during the flush (it may have been done), and what `bulk` raised for one of them alone.
        """
        member = Membership.of_current_span()
        call = _Call(len(requests), member, until=time.monotonic() + time_to_wait(deadline))
        entries: list[_Entry[_Request, _Result]] = [_Entry(request, call) for request in requests]
        if not entries:
            return []
        with self._mutex:
            if self._closing or len(self._queue) + len(entries) > QUEUE_REQUESTS_MAX:
                raise QueueFull(f"{self._name}: too many calls wait; try again later")
            # One flusher watches the clock for what gathers beside a running batch; others would wake for nothing.
            is_watched = bool(self._queue) and self._patience() > 0
            self._queue.extend(entries)
            if self._idle_flushers and not is_watched:
                self._arrived.notify()
        if not call.done.acquire(timeout=max(0.0, call.until - time.monotonic())):
            self._give_up(call)
        if member is not None:
            member.end_span(self._name)
        return [entry.take() for entry in entries]

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._mutex:
            self._closing = True
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join()

    def _give_up(self, call: _Call) -> None:
        with self._mutex:
            if not call.waiting:
                return  # the answer came at the last moment
            call.abandoned = True
        if call.member is not None:
            call.member.end_span(self._name, given_up=True)
        if not call.started:
            raise QueueFull(f"{self._name}: no turn came within the deadline; nothing was done")
        raise DatabaseUnavailable(f"{self._name}: no answer within the deadline", rolled_back=False)

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._flush(batch)
        except BaseException as error:
            # Without its flusher every later call would wait for nothing.
            self._die(f"the {self._name} flusher died", error)
            raise

    def _next_batch(self) -> list[list[_Entry[_Request, _Result]]] | None:
        """What to flush next, a list of entries for each distinct request; None when closed and empty."""
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
                        self._metrics.waiting(len(self._queue))
                    self._in_flight += 1
                    self._last_start = time.monotonic()
                    if self._queue and self._idle_flushers:
                        self._arrived.notify()
                    return batch

    def _patience(self) -> float:
        """How much longer what waits is left to gather, because another batch is on its way."""
        if not self._in_flight or not self._limits.patience_seconds:
            return 0.0
        return self._last_start + self._limits.patience_seconds - time.monotonic()

    def _take(self) -> list[list[_Entry[_Request, _Result]]]:
        limits, key_of, weigh, queue = self._limits, self._key, self._weigh, self._queue
        batch: list[list[_Entry[_Request, _Result]]] = []
        by_key: dict[Hashable, list[_Entry[_Request, _Result]]] = {}
        later: list[_Entry[_Request, _Result]] = []
        weight = 0
        while queue and len(batch) < self._requests_max:
            entry = queue[0]
            if entry.call.abandoned or self._comes_too_late(entry.call):
                self._refuse(queue.popleft())
                continue
            weight += weigh(entry.request) if weigh else 1
            if batch and weight > limits.weight_max:
                break
            queue.popleft()
            key = key_of(entry.request) if key_of else None
            twins = by_key.get(key) if key is not None else None
            if twins is not None and twins[0].request != entry.request:
                later.append(entry)
                continue
            entry.call.started += 1
            if twins is not None:
                twins.append(entry)
                continue
            folded = [entry]
            batch.append(folded)
            if key is not None:
                by_key[key] = folded
        queue.extendleft(reversed(later))
        return batch

    def _comes_too_late(self, call: _Call) -> bool:
        """Whether a batch that takes as long as the last one would end after its caller has gone.

        Serving the oldest calls first under overload would fill every batch with calls that time out before it commits.
        """
        # Somebody is always tried: how long it takes can be better again.
        return len(self._queue) > 1 and time.monotonic() + self._last_seconds > call.until

    def _refuse(self, entry: _Entry[_Request, _Result]) -> None:
        call = entry.call
        entry.outcome = QueueFull(f"{self._name}: no turn would come within the deadline; nothing was done")
        call.waiting -= 1
        if not call.waiting:
            call.done.release()

    def _flush(self, batch: list[list[_Entry[_Request, _Result]]]) -> None:
        began, began_ns = time.monotonic(), time.time_ns()
        calls = dict.fromkeys(entry.call for folded in batch for entry in folded)
        members = [call.member for call in calls if call.member is not None]
        requests = [folded[0].request for folded in batch]
        attributes = {"shop.batch.size": len(requests), "shop.batch.calls": len(calls)}
        with telemetry.batch_span(
            f"{self._name} batch", [each.span for each in members], attributes=attributes
        ) as span:
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
            self._in_flight -= 1
            # After a timeout the next batch is half as large, and so takes half as long.
            self._last_seconds = (time.monotonic() - began) / (1 if decided else 2)
            self._put_back(rest)
            if self._queue and self._idle_flushers:
                self._arrived.notify()
            for folded, outcome in zip(decided, outcomes, strict=True):
                for entry in folded:
                    entry.outcome = outcome
                    entry.call.waiting -= 1
                    if not entry.call.waiting:
                        finished.append(entry.call)
        for call in finished:
            call.done.release()

    def _put_back(self, batch: Sequence[list[_Entry[_Request, _Result]]]) -> None:
        """Nothing was done for these: they are the first of the next batch, unless their callers go."""
        for folded in reversed(batch):
            self._queue.extendleft(reversed(folded))
            for entry in folded:
                entry.call.started -= 1

    def _outcomes(self, requests: Sequence[_Request], bisect_until: float) -> Sequence[_Result | ShopError | Exception]:
        """The outcomes of as many of the requests as were decided, from the first on."""
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
            if len(requests) == 1 or not is_statement_error(error) or time.monotonic() > bisect_until:
                return [error] * len(requests)
            half = len(requests) // 2
            first = self._outcomes(requests[:half], bisect_until)
            if len(first) < half:
                return first
            return [*first, *self._outcomes(requests[half:], bisect_until)]
        if not 0 < len(outcomes) <= len(requests):
            raise AssertionError(f"{self._name}: {len(outcomes)} outcomes for {len(requests)} requests")
        if self._requests_max < self._limits.requests_max:
            self._requests_max = min(self._limits.requests_max, self._requests_max + 1 + self._requests_max // 8)
        return outcomes
