"""Traces and metrics, with the real SDK and an exporter in memory."""

from collections.abc import Callable, Iterator

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from prometheus_client import REGISTRY
from sqlalchemy import text

from libs.common.tests.echo_service import SERVICE, EchoSettings, echo_service, echo_stub, serving
from libs.common.tests.recorded import Spans
from shop_common.db.database import Database
from shop_common.errors import InvalidInput, NotFound, Violation
from shop_common.rpc.call import traceparent
from shop_common.rpc.client import Client
from shop_common.rpc.health import Health
from shop_common.telemetry import tracing
from shop_common.telemetry.tracing_sdk import TEXT_LENGTH_MAX

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class ParcelNotFound(NotFound):
    reason = "PARCEL_NOT_FOUND"


@pytest.fixture
def spans() -> Iterator[Spans]:
    yield Spans()
    tracing.shutdown()


def test_a_call_is_a_span_in_the_trace_of_its_client(spans: Spans) -> None:
    with serving(lambda request, _: request) as running:
        running.call("hello", traceparent=TRACEPARENT)

    (span,) = spans.all()
    assert (span.name, span.kind) == (f"{SERVICE}/Echo", SpanKind.SERVER)
    assert _trace_of(span) == TRACE_ID
    assert span.parent is not None
    assert format_span_id(span.parent.span_id) == SPAN_ID
    assert span.attributes is not None
    assert span.attributes["rpc.method"] == f"{SERVICE}/Echo"
    assert span.attributes["rpc.response.status_code"] == "OK"


def test_a_call_without_a_trace_begins_one(spans: Spans) -> None:
    with serving(lambda request, _: request) as running:
        running.call("hello")
        running.call("hello", traceparent="00-nonsense")

    first, second = spans.all()
    assert first.parent is None
    assert second.parent is None
    assert _trace_of(first) != _trace_of(second)


def test_a_defect_marks_its_span_and_a_refusal_does_not(spans: Spans) -> None:
    def behave(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        raise RuntimeError("a bug") if request.value == "bug" else ParcelNotFound("no such parcel")

    with serving(behave) as running:
        for asked in ("bug", "parcel"):
            with pytest.raises(grpc.RpcError):
                running.call(asked)

    defect, refusal = spans.all()
    assert defect.attributes is not None
    assert refusal.attributes is not None
    assert defect.status.status_code is StatusCode.ERROR
    assert defect.attributes["rpc.response.status_code"] == "INTERNAL"
    assert refusal.status.status_code is StatusCode.UNSET
    assert refusal.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert refusal.attributes["error.type"] == "PARCEL_NOT_FOUND"


def test_one_trace_runs_through_client_and_server(spans: Spans) -> None:
    seen: list[str | None] = []

    def behave(request: StringValue, context: grpc.ServicerContext) -> StringValue:
        seen.append(traceparent(context))
        return request

    with serving(behave) as running:
        client = Client(
            f"127.0.0.1:{running.server.port}", echo_service(), repeatable=(), unavailable_reason="ECHO_UNAVAILABLE"
        )
        with tracing.span("work", parent=TRACEPARENT):
            client.call(echo_stub(client.channel), StringValue(value="hello"), timeout_seconds=10)
        client.close()

    server, outgoing, work = sorted(
        spans.all(), key=lambda span: ["SERVER", "CLIENT", "INTERNAL"].index(span.kind.name)
    )
    assert {_trace_of(span) for span in (server, outgoing, work)} == {TRACE_ID}
    assert server.parent is not None
    assert outgoing.parent is not None
    assert server.parent.span_id == outgoing.context.span_id
    assert outgoing.parent.span_id == work.context.span_id
    # A row of the outbox would have this traceparent, which is that of the server's span.
    assert seen == [f"00-{TRACE_ID}-{format_span_id(server.context.span_id)}-01"]


def test_each_statement_is_a_span_of_the_work_it_belongs_to(spans: Spans, new_database: Callable[[str], str]) -> None:
    database = Database(new_database("traced"))
    tracing.instrument(database.engine)

    with tracing.span("reserve"), database.read() as tx:
        tx.execute(text("SELECT 42"))
    database.close()

    made = spans.all()
    (work,) = [span for span in made if span.name == "reserve"]
    (statement,) = [span for span in made if span.attributes and "SELECT 42" in str(span.attributes.values())]
    assert _trace_of(statement) == _trace_of(work)


def test_trace_context_is_a_header_of_a_message() -> None:
    assert tracing.traceparent_in([("ce_id", b"1"), ("traceparent", TRACEPARENT.encode())]) == TRACEPARENT
    for nothing in (None, [], [("traceparent", None)], [("traceparent", b"\xff")], [("traceparent", b"00-0-0-0")]):
        assert tracing.traceparent_in(nothing) is None


@pytest.mark.parametrize(
    "malformed",
    ["", "00", TRACEPARENT.upper(), TRACEPARENT + "-00", f"00-{'0' * 32}-{SPAN_ID}-01", f"00-{TRACE_ID}-{'0' * 16}-01"],
)
def test_a_malformed_traceparent_is_dropped(malformed: str) -> None:
    assert tracing.valid_traceparent(malformed) is None
    assert tracing.remote_context(malformed) is None


def test_a_metric_shows_whether_the_process_is_ready() -> None:
    def told() -> float | None:
        return REGISTRY.get_sample_value("shop_ready_processes")

    health = Health()
    assert told() == 0
    health.set_ready("server", True)
    assert told() == 1
    health.set_ready("consumer", False)
    assert told() == 0
    health.set_ready("consumer", True)
    health.drain()
    assert told() == 0


def test_without_an_endpoint_nothing_is_traced() -> None:
    tracing.start("test", EchoSettings())

    assert tracing.tracer() is None
    with tracing.span("work") as span:
        assert not span.is_recording()
        assert tracing.current_traceparent() is None


def _trace_of(span: ReadableSpan) -> str:
    return format_trace_id(span.context.trace_id)


def test_a_span_describes_a_request_only_when_it_was_found_right(spans: Spans) -> None:
    def behave(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        if len(request.value) > 10:
            raise InvalidInput([Violation("value", "must be short")])
        raise ParcelNotFound("no parcel here")

    with serving(behave, describe=lambda message: {"shop.order_id": message.value}) as running:
        for text in ("x" * 1_000_000, "short"):
            with pytest.raises(grpc.RpcError):
                running.call(text)
    wrong, refused = (span.attributes or {} for span in spans.all())

    assert "shop.order_id" not in wrong
    assert refused["shop.order_id"] == "short"


def test_no_attribute_of_a_span_is_of_any_length(spans: Spans) -> None:
    with tracing.span("long", attributes={"one": "x" * 1_000_000, "many": ["y" * 1_000_000] * 2}):
        pass
    (span,) = spans.all()

    assert span.attributes is not None
    assert span.attributes["one"] == "x" * TEXT_LENGTH_MAX
    assert span.attributes["many"] == ("y" * TEXT_LENGTH_MAX,) * 2
