import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from devstack.dev.collector import collecting
from shopctl.tracing.span_store import SpanStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traces.db"


def test_what_opentelemetry_sends_is_kept_until_the_last_span(path: Path) -> None:
    said: list[str] = []
    with collecting(said.append, path) as endpoint:
        sender = _sender(endpoint)
        tracer = sender.get_tracer("test")
        with tracer.start_as_current_span("call", attributes={"shop.order_id": "a"}):
            for _ in range(2_000):
                tracer.start_span("step").end()
        sender.shutdown()

    with SpanStore.to_read(path) as store:
        (trace_id,) = store.traces_of("a")
        spans = store.trace(trace_id)
    assert len(spans) == 2_001
    assert (spans[0].name, spans[0].process) == ("call", "sender")
    assert {span.parent for span in spans[1:]} == {spans[0].id}
    assert said == []


def test_a_file_that_cannot_be_written_is_told_of_once_and_hurts_no_sender(path: Path) -> None:
    said: list[str] = []
    with collecting(said.append, path) as endpoint:
        with closing(sqlite3.connect(path)) as vandal:
            vandal.execute("DROP TABLE links")
        sender = _sender(endpoint)
        for _ in range(2):
            sender.get_tracer("test").start_span("call").end()
            assert sender.force_flush()
        sender.shutdown()

    (sentence,) = said
    assert sentence.startswith("cannot store traces: ")


def _sender(endpoint: str) -> TracerProvider:
    sender = TracerProvider(resource=Resource({"service.name": "sender"}), shutdown_on_exit=False)
    sender.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint), max_queue_size=10_000))
    return sender
