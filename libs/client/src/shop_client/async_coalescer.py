"""Sends the concurrent calls of several asyncio tasks as one RPC."""

import asyncio
import contextvars
import time
from typing import Any

import grpc
from google.protobuf.message import Message

from shop_client.batches import STALLED_SECONDS, Batch, Entry, Queue, cancelled
from shop_client.calls import BatchedCall
from shop_client.statuses import status_of
from shop_client.transport import headers

_Waiter = asyncio.Future[None]


class AsyncCoalescer:
    """Sends calls with the RPC `method`, which decides many of them. Belongs to one event loop."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self._queues: dict[str, Queue[_Waiter]] = {}
        self._senders: set[asyncio.Task[None]] = set()

    async def submit(self, call: BatchedCall[Any], *, deadline: float, token: str) -> Any:
        """Return the part of the response that `call.read` converts. Raises ShopError, DeadlineExceeded included."""
        entry: Entry[_Waiter] = Entry(call, deadline, asyncio.get_running_loop().create_future())
        queue = self._queues.get(token)
        if queue is None:
            queue = self._queues[token] = Queue(token)
        queue.add(entry)
        self._start(queue)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await entry.waiter
        except TimeoutError:
            self._abandon(entry)
            raise entry.deadline_error() from None
        except asyncio.CancelledError:
            self._abandon(entry)
            raise
        return entry.result()

    def _abandon(self, entry: Entry[_Waiter]) -> None:
        if (unwanted := entry.abandon()) is not None:
            unwanted.cancel()

    def _start(self, queue: Queue[_Waiter]) -> None:
        """Send the batches of the queue that do not have to wait for an outstanding one."""
        while (batch := queue.next_batch(time.monotonic())) is not None:
            # The task runs in an empty context, so that the batch is not part of the trace of its first caller.
            sender = asyncio.get_running_loop().create_task(self._send(queue, batch), context=contextvars.Context())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        if queue.is_idle and self._queues.get(queue.token) is queue:
            del self._queues[queue.token]

    async def _send(self, queue: Queue[_Waiter], batch: Batch[_Waiter]) -> None:
        stalled = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._start, queue)
        try:
            outcome = await self._outcome(queue, batch)
            self._settle(batch, outcome)
            # Let the woken tasks run before the next batch starts. That batch then contains their next calls.
            await asyncio.sleep(0)
        except BaseException:  # the event loop is closing: end the wait of all callers of this batch
            self._settle(batch, cancelled("the event loop has cancelled the batch"))
            raise
        finally:
            stalled.cancel()
            queue.finish(batch)
        self._start(queue)

    async def _outcome(self, queue: Queue[_Waiter], batch: Batch[_Waiter]) -> Message:
        timeout = batch.deadline - time.monotonic()
        try:
            call = self._method(batch.request, timeout=timeout, metadata=headers(queue.token))
        except Exception as error:  # nothing was sent, for example because the channel is closed
            return cancelled(str(error))
        batch.call = call
        try:
            response: Message = await call
        except grpc.aio.AioRpcError as error:
            return status_of(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return cancelled("the batch was cancelled")
        return response

    def _settle(self, batch: Batch[_Waiter], outcome: Message) -> None:
        for entry in batch.settle(outcome):
            if not entry.waiter.done():
                entry.waiter.set_result(None)
