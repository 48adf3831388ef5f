"""The queues of calls that are sent in batches, without threads or asyncio.

The calls of one RPC and one credential share a queue. While a batch of the queue is outstanding, further calls collect,
and are sent as the next batch, in arrival order. So a batch has at least one call and grows with load. Under high load,
two batches are outstanding, so that the server works on one while the client packs and reads the other.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from shop_client.calls import BatchedCall
from shop_client.errors import DeadlineExceeded
from shop_client.statuses import error_of

_Waiter = TypeVar("_Waiter")

CALLS_MAX = 500
"""The limit of each RPC that decides many requests."""

LINES_MAX = 2000
"""The server decides at most this many lines in one transaction."""

BYTES_MAX = 16_000
"""The server admits requests of 16,384 bytes and more only a few at a time."""

OVERLAP_CALLS_MIN = 64
"""The fewest calls of a batch that starts while another one is outstanding. Smaller batches cost more CPU than the
overlap saves."""

STALLED_SECONDS = 1.0
BATCHES_MAX = 4
"""If a batch is outstanding longer than STALLED_SECONDS, its server may be frozen. The next batch does not wait for it,
and gRPC sends the next batch to another server. At most BATCHES_MAX batches of a queue are outstanding."""


_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]
_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]


class RunningCall(Protocol):
    """The RPC of a batch, of grpc or grpc.aio."""

    def cancel(self) -> object: ...


class Entry(Generic[_Waiter]):
    """The call of one caller, who waits with `waiter` until there is an outcome."""

    __slots__ = ("batch", "call", "deadline", "is_abandoned", "outcome", "size", "waiter")

    def __init__(self, call: BatchedCall[Any], deadline: float, waiter: _Waiter) -> None:
        self.call = call
        self.deadline = deadline
        """The time.monotonic at which the caller stops waiting."""
        self.waiter = waiter
        self.size = call.message.ByteSize() + 4  # the tag and length in the batch
        self.batch: Batch[_Waiter] | None = None
        """The batch that contains the call; None while the call is in the queue."""
        self.outcome: Message | None = None
        """Its part of the response, or the Status of its failure."""
        self.is_abandoned = False
        """True if the caller has stopped waiting."""

    def abandon(self) -> RunningCall | None:
        """Note that the caller stops waiting. Returns the batch's RPC if nobody waits for it any longer."""
        self.is_abandoned = True
        if self.batch is None:
            return None
        self.batch.waiting -= 1
        return None if self.batch.waiting else self.batch.call

    def result(self) -> Message:
        """Return the call's part of the response. Raises the ShopError that is the outcome."""
        assert self.outcome is not None
        if isinstance(self.outcome, Status):
            raise error_of(self.outcome, self.call.request_id)
        return self.outcome

    def deadline_error(self) -> DeadlineExceeded:
        what = "it was not sent" if self.batch is None else "the server has not answered its batch"
        return DeadlineExceeded(f"the deadline passed: {what}", request_id=self.call.request_id)


@dataclass
class Batch(Generic[_Waiter]):
    """Calls that are sent in one RPC."""

    entries: list[Entry[_Waiter]]
    waiting: int = field(init=False)
    """The number of callers that still wait."""
    call: RunningCall | None = None

    def __post_init__(self) -> None:
        self.waiting = len(self.entries)
        for entry in self.entries:
            entry.batch = self

    @property
    def request(self) -> Message:
        rpc = self.entries[0].call.rpc
        return rpc.request([entry.call.message for entry in self.entries])

    @property
    def deadline(self) -> float:
        """The time at which the last caller stops waiting."""
        return max(entry.deadline for entry in self.entries)

    def settle(self, outcome: Message) -> list[Entry[_Waiter]]:
        """Give each entry its own outcome. Returns the entries whose callers still wait.

        `outcome` is the response of the RPC, or the Status of its failure, which is the outcome of every entry.
        """
        if isinstance(outcome, Status):
            for entry in self.entries:
                entry.outcome = outcome
            return [entry for entry in self.entries if not entry.is_abandoned]
        rpc = self.entries[0].call.rpc
        results = rpc.results([entry.call.message for entry in self.entries], outcome)
        if len(results) != len(self.entries):
            return self.settle(Status(code=_INTERNAL, message="the response has another number of results"))
        for entry, result in zip(self.entries, results, strict=True):
            entry.outcome = result
        return [entry for entry in self.entries if not entry.is_abandoned]


class Queue(Generic[_Waiter]):
    """The waiting calls of one credential. Not thread-safe."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._waiting: deque[Entry[_Waiter]] = deque()
        self._in_flight = 0
        self._calls_in_flight = 0
        self._last_start = 0.0

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._in_flight

    def add(self, entry: Entry[_Waiter]) -> None:
        self._waiting.append(entry)

    def next_batch(self, now: float) -> Batch[_Waiter] | None:
        """Take the next batch, or return None if it is empty or has to wait for an outstanding batch."""
        if not self._may_start(now):
            return None
        entries = self._take(now)
        if not entries:
            return None
        self._in_flight += 1
        self._calls_in_flight += len(entries)
        self._last_start = now
        return Batch(entries)

    def finish(self, batch: Batch[_Waiter]) -> None:
        """Note that the batch is no longer outstanding."""
        self._in_flight -= 1
        self._calls_in_flight -= len(batch.entries)

    def _may_start(self, now: float) -> bool:
        if not self._in_flight:
            return True
        if self._in_flight == 1 and len(self._waiting) >= max(OVERLAP_CALLS_MIN, self._calls_in_flight):
            return True
        return self._in_flight < BATCHES_MAX and now - self._last_start >= STALLED_SECONDS

    def _take(self, now: float) -> list[Entry[_Waiter]]:
        """Take entries in arrival order up to the limits of a batch. Drops those whose callers no longer wait."""
        taken: list[Entry[_Waiter]] = []
        lines = size = 0
        calls_max = CALLS_MAX
        outstanding = len(self._waiting) + self._calls_in_flight
        if outstanding >= 2 * OVERLAP_CALLS_MIN:
            # If one batch took all calls, no call would be left for a second batch.
            calls_max = min(CALLS_MAX, outstanding // 2)
        while self._waiting and len(taken) < calls_max:
            entry = self._waiting[0]
            if not entry.is_abandoned and entry.deadline > now:
                lines, size = lines + entry.call.lines, size + entry.size
                if taken and (lines > LINES_MAX or size > BYTES_MAX):
                    break
                taken.append(entry)
            self._waiting.popleft()
        return taken


def cancelled(message: str) -> Status:
    """Return the status of a batch whose RPC was cancelled or could not start."""
    return Status(code=_CANCELLED, message=message)
