"""Telemetry of a coalescer: metrics of its batches, and a span for the time that each traced call waits."""

import time
from collections.abc import Iterable
from typing import Self

from opentelemetry.trace import SpanContext, StatusCode

from shop_common.telemetry import metrics, tracing

_queue = metrics.gauge(__name__, "shop_coalescer_queue_requests", "Requests that wait for a batch", "coalescer")
_callers = metrics.gauge(__name__, "shop_coalescer_callers", "Callers with requests that wait for a batch", "coalescer")
_largest_share = metrics.gauge(
    __name__,
    "shop_coalescer_largest_share_requests",
    "Waiting requests of the caller that has the most of them",
    "coalescer",
)
_batch = metrics.histogram(
    __name__, "shop_coalescer_batch_requests", "Requests in a batch", "coalescer", buckets=metrics.SIZES
)
_wait = metrics.histogram(
    __name__, "shop_coalescer_wait_seconds", "Time that a call waited until its batch started", "coalescer"
)
_flush = metrics.histogram(
    __name__, "shop_coalescer_flush_seconds", "Duration of a batch, including its commit", "coalescer"
)

_timeouts = metrics.counter(
    __name__,
    "shop_coalescer_timeouts_total",
    "Batches that the database cancelled because they took too long; a batch of several requests is retried in halves",
    "coalescer",
)


class CoalescerMetrics:
    """The metrics of one coalescer."""

    def __init__(self, name: str) -> None:
        self._queue = _queue(name)
        self._callers = _callers(name)
        self._largest_share = _largest_share(name)
        self._batch = _batch(name)
        self._wait = _wait(name)
        self._flush = _flush(name)
        self._timeouts = _timeouts(name)

    def waiting(self, requests: int, callers: int, largest_share: int) -> None:
        """Set the numbers of queued requests and their callers, after a batch has been taken.

        `largest_share` is the number of requests of the caller with the most.
        """
        self._queue.set(requests)
        self._callers.set(callers)
        self._largest_share.set(largest_share)

    def timed_out(self) -> None:
        """Count a batch that the database cancelled because it took too long."""
        self._timeouts.inc()

    def flushed(self, requests: int, waits_seconds: Iterable[float], seconds: float) -> None:
        """Record a finished batch: its number of requests, how long each call waited for it, and how long it ran."""
        self._batch.observe(requests)
        self._flush.observe(seconds)
        self._wait.observe_all(waits_seconds)


class Membership:
    """A traced call in a coalescer: the batches that its requests were in, and how long it waited for them."""

    __slots__ = ("_batches", "_began_ns", "span")

    def __init__(self, span: SpanContext) -> None:
        self.span = span
        self._began_ns = time.time_ns()
        self._batches: list[tuple[SpanContext, int, int]] = []

    @classmethod
    def of_current_span(cls) -> Self | None:
        """Return the membership of the current span, or None if that span is not sampled or tracing is off."""
        span = tracing.sampled_span()
        return None if span is None else cls(span)

    def add_batch(self, batch: SpanContext | None, size: int, began_ns: int) -> None:
        """Record that requests of this call were in this batch."""
        if batch is not None:
            self._batches.append((batch, size, began_ns))

    def end_span(self, coalescer: str, *, given_up: bool = False) -> None:
        """Emit the span of the wait, linked to its batches. Call this when the call has its outcomes or gives up."""
        attributes: dict[str, str | int | float] = {"shop.coalescer": coalescer}
        batches = list(self._batches)
        if batches:
            attributes["shop.batch.size"] = max(size for _, size, _ in batches)
            attributes["shop.queue.seconds"] = (min(began for *_, began in batches) - self._began_ns) / 1e9
        linked = [batch for batch, *_ in batches]
        span = tracing.open_span(
            f"{coalescer} coalesced", self.span, batches=linked, attributes=attributes, began_ns=self._began_ns
        )
        if given_up:
            why = "no answer within the deadline"
            span.set_attribute("error.type", why)
            span.set_status(StatusCode.ERROR, why)
        span.end()
