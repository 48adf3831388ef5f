"""The traces and metrics of calls that share a batch."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from prometheus_client import REGISTRY
from sqlalchemy import text

from libs.common.tests.recorded import Spans
from shop_common.batching.coalescer import Coalescer
from shop_common.batching.coalescer_telemetry import CoalescerMetrics
from shop_common.db.database import Database
from shop_common.errors import DatabaseUnavailable
from shop_common.telemetry import tracing
from testkit.eventually import eventually

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[Spans]:
    yield Spans()
    tracing.shutdown()


def test_a_batch_and_the_calls_in_it_name_each_other(spans: Spans, new_database: Callable[[str], str]) -> None:
    database = Database(new_database("traced"))
    tracing.instrument(database.engine)
    begun, together = threading.Event(), threading.Event()

    def bulk(numbers: Sequence[int]) -> list[int]:
        begun.set()
        if numbers == [0]:
            together.wait(20)  # so that the others gather
        with database.read() as tx:
            tx.execute(text("SELECT 42"))
        return [number + 1 for number in numbers]

    coalescer = Coalescer("count", bulk, on_fatal=lambda *_: None)

    def call(number: int) -> None:
        with tracing.span(f"call {number}"):
            assert coalescer.submit(number, deadline=time.monotonic() + 30) == number + 1

    with ThreadPoolExecutor(3) as callers:
        first = callers.submit(call, 0)
        assert begun.wait(10)
        others = [callers.submit(call, number) for number in (1, 2)]
        eventually(lambda: len(coalescer._queue) == 2)
        together.set()
        for each in (first, *others):
            each.result()
    coalescer.close()
    database.close()

    made = spans.all()
    (batch,) = [span for span in made if span.name == "count batch" and len(span.links) == 2]
    calls = [span for span in made if span.name in {"call 1", "call 2"}]
    waits = [span for span in made if span.name == "count coalesced" and _parent(span) in [_id(call) for call in calls]]
    assert _linked(batch) == {_id(span) for span in calls}
    for wait in waits:
        assert _linked(wait) == {_id(batch)}
        assert wait.attributes is not None
        assert wait.attributes["shop.batch.size"] == 2
    assert len(waits) == 2
    # The trace of one of the calls shows everything that the batch did.
    assert _trace_of(batch) in {_trace_of(span) for span in calls}
    statements = [span for span in made if span.attributes and "SELECT 42" in str(span.attributes.values())]
    assert _trace_of(batch) in {_trace_of(span) for span in statements}


def test_a_batch_without_sampled_calls_is_not_sampled(spans: Spans, new_database: Callable[[str], str]) -> None:
    database = Database(new_database("traced"))
    tracing.instrument(database.engine)

    def bulk(numbers: Sequence[int]) -> Sequence[int]:
        with database.read() as tx:
            tx.execute(text("SELECT 42"))
        assert tracing.current_traceparent() is None
        return numbers

    coalescer = Coalescer("count", bulk, on_fatal=lambda *_: None)
    with tracing.span("call", parent=TRACEPARENT.removesuffix("01") + "00"):
        coalescer.submit(1, deadline=time.monotonic() + 30)
    coalescer.close()
    database.close()

    assert [span.name for span in spans.all()] == []


def test_the_trace_shows_a_call_that_gave_up(spans: Spans) -> None:
    go_on = threading.Event()

    def bulk(numbers: Sequence[int]) -> Sequence[int]:
        go_on.wait(20)
        return numbers

    coalescer = Coalescer("count", bulk, on_fatal=lambda *_: None)
    with tracing.span("call"), pytest.raises(DatabaseUnavailable):
        coalescer.submit(1, deadline=time.monotonic() + 0.5)
    go_on.set()
    coalescer.close()

    (wait,) = [span for span in spans.all() if span.name == "count coalesced"]
    assert not wait.status.is_ok


def test_metrics_show_batch_sizes_and_waits() -> None:
    metrics = CoalescerMetrics("test-of-metrics")

    metrics.waiting(7, 2, 5)
    metrics.flushed(3, [0.5, 0.25], seconds=0.125)

    labels = {"coalescer": "test-of-metrics"}
    assert REGISTRY.get_sample_value("shop_coalescer_queue_requests", labels) == 7
    assert REGISTRY.get_sample_value("shop_coalescer_batch_requests_sum", labels) == 3
    assert REGISTRY.get_sample_value("shop_coalescer_wait_seconds_count", labels) == 2
    assert REGISTRY.get_sample_value("shop_coalescer_wait_seconds_sum", labels) == 0.75
    assert REGISTRY.get_sample_value("shop_coalescer_flush_seconds_sum", labels) == 0.125


def _parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def _linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def _trace_of(span: ReadableSpan) -> int:
    return int(span.context.trace_id)


def _id(span: ReadableSpan) -> int:
    return int(span.context.span_id)
