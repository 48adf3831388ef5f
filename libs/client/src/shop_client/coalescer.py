"""Sends the concurrent calls of several threads as one RPC.

There is no thread and no timer. The thread that calls while no batch is outstanding sends its call at once, and waits
for the response itself, which costs less than a hand-over from a thread of gRPC. Calls that collect in the meantime are
the next batch. Its response arrives on a thread of gRPC, which wakes the callers and sends the next batch. If many
calls collect, the thread of the last one sends them while the first batch is still outstanding.
"""

import threading
import time
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from shop_client.batches import STALLED_SECONDS, Batch, Entry, Queue, cancelled
from shop_client.calls import BatchedCall
from shop_client.forks import PROCESS
from shop_client.statuses import status_of
from shop_client.transport import headers


class Coalescer:
    """Sends calls with the RPC `method`, which decides many of them. Safe to share between threads."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self._mutex = threading.Lock()
        self._queues: dict[str, Queue[threading.Lock]] = {}

    def submit(self, call: BatchedCall[Any], *, deadline: float, token: str) -> Any:
        """Return the part of the response that `call.read` converts. Raises ShopError, DeadlineExceeded included."""
        done = threading.Lock()
        done.acquire()
        entry = Entry(call, deadline, done)
        with self._mutex:
            queue = self._queues.get(token)
            if queue is None:
                queue = self._queues[token] = Queue(token)
            queue.add(entry)
            batch = self._next_batch(queue)
        if batch is not None and batch.entries == [entry]:
            self._send_alone(queue, batch)
            return entry.result()
        try:
            if batch is not None:
                self._send(queue, batch)
            self._wait(queue, entry)
        except BaseException:  # also KeyboardInterrupt: nobody waits for the outcome any longer
            self._abandon(entry)
            raise
        return entry.result()

    def _wait(self, queue: Queue[threading.Lock], entry: Entry[threading.Lock]) -> None:
        while (seconds_left := entry.deadline - time.monotonic()) > 0:
            if entry.waiter.acquire(timeout=min(seconds_left, STALLED_SECONDS)):
                return
            self._start(queue)  # the outstanding batch may be stalled
        raise entry.deadline_error()

    def _abandon(self, entry: Entry[threading.Lock]) -> None:
        with self._mutex:
            unwanted = entry.abandon()
        if unwanted is not None:
            unwanted.cancel()

    def _start(self, queue: Queue[threading.Lock]) -> None:
        """Send the batches of the queue that do not have to wait for an outstanding one."""
        while True:
            with self._mutex:
                batch = self._next_batch(queue)
            if batch is None:
                return
            self._send(queue, batch)

    def _next_batch(self, queue: Queue[threading.Lock]) -> Batch[threading.Lock] | None:
        """Take the next batch, and drop the queue if it is idle. The caller holds the mutex."""
        batch = queue.next_batch(time.monotonic())
        if queue.is_idle and self._queues.get(queue.token) is queue:
            del self._queues[queue.token]
        return batch

    def _send_alone(self, queue: Queue[threading.Lock], batch: Batch[threading.Lock]) -> None:
        """Send the batch of one caller, and block until it has an outcome."""
        outcome: Message = cancelled("the call was interrupted")
        try:
            with PROCESS.rpcs:
                timeout = batch.deadline - time.monotonic()
                outcome = self._method(batch.request, timeout=timeout, metadata=headers(queue.token))
        except grpc.RpcError as error:
            failed: Any = error
            outcome = status_of(failed)
        except ValueError as error:  # nothing was sent: the channel is closed
            outcome = cancelled(str(error))
        finally:  # also after KeyboardInterrupt: other callers wait for the end of this batch
            self._settle(queue, batch, outcome)

    def _send(self, queue: Queue[threading.Lock], batch: Batch[threading.Lock]) -> None:
        PROCESS.rpcs.begin()
        try:
            timeout = batch.deadline - time.monotonic()
            call = self._method.future(batch.request, timeout=timeout, metadata=headers(queue.token))
        except Exception as error:  # nothing was sent, for example because the channel is closed
            PROCESS.rpcs.end()
            self._settle(queue, batch, cancelled(str(error)))
            return
        except BaseException:  # KeyboardInterrupt: other callers wait for the end of this batch
            PROCESS.rpcs.end()
            self._settle(queue, batch, cancelled("the call was interrupted"))
            raise
        batch.call = call
        call.add_done_callback(partial(self._respond, queue, batch))

    def _respond(self, queue: Queue[threading.Lock], batch: Batch[threading.Lock], call: Any) -> None:
        PROCESS.rpcs.end()
        outcome: Message
        try:
            outcome = call.result()
        except grpc.RpcError:
            outcome = status_of(call)
        except grpc.FutureCancelledError:
            outcome = cancelled("the batch was cancelled")
        self._settle(queue, batch, outcome)

    def _settle(self, queue: Queue[threading.Lock], batch: Batch[threading.Lock], outcome: Message) -> None:
        with self._mutex:
            queue.finish(batch)
            waiting = batch.settle(outcome)
        for entry in waiting:
            entry.waiter.release()
        self._start(queue)
