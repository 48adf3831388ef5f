"""Creates spans, and passes the trace context between processes. While tracing is off, every function does nothing.

OTEL_EXPORTER_OTLP_ENDPOINT turns tracing on. Over Kafka, the trace context is the `traceparent` header of W3C Trace
Context.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.util.types import AttributeValue

from shop_common.environment.process_settings import CommonSettings
from shop_common.environment.settings import refusal

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from shop_common.telemetry.tracing_sdk import TracingSdk

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

# The current span in a batch without a traced call. This span is not sampled, so its children are not sampled, either.
_UNSAMPLED_TRACE_ID = 1
_UNSAMPLED = NonRecordingSpan(SpanContext(_UNSAMPLED_TRACE_ID, 1, is_remote=False))


class _Current:
    """The SDK and the tracer of this process, or None while tracing is off."""

    sdk: "TracingSdk | None" = None
    tracer: trace.Tracer | None = None


def start(process: str, settings: CommonSettings) -> None:
    """Turn tracing on if the settings name an endpoint.

    Call it before creating the engine and the server, which look for a tracer only once. If OpenTelemetry rejects a
    setting, the process exits with code 2.
    """
    if settings.otel_exporter_otlp_endpoint:
        use(_load_sdk(process, settings.otel_exporter_otlp_endpoint))


def use(sdk: "TracingSdk") -> None:
    """Create all further spans with this SDK."""
    _Current.sdk = sdk
    _Current.tracer = sdk.tracer


def shutdown() -> None:
    """Export the queued spans and turn tracing off. May be called again."""
    sdk, _Current.sdk, _Current.tracer = _Current.sdk, None, None
    if sdk is not None:
        sdk.shutdown()


def instrument(engine: "Engine") -> None:
    """Create a span for each statement on this engine, if tracing is on."""
    if _Current.sdk is not None:
        _Current.sdk.instrument(engine)


def tracer() -> trace.Tracer | None:
    """Return the tracer, or None while tracing is off."""
    return _Current.tracer


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """Run the block in a span. If the block raises, the span has status ERROR.

    The parent of the span is the span that the traceparent `parent` names, else the current span. Yields the new span.
    """
    if _Current.tracer is None:
        yield trace.INVALID_SPAN
        return
    with _Current.tracer.start_as_current_span(
        name, context=remote_context(parent), kind=kind, attributes=dict(attributes or {})
    ) as current:
        yield current


def sampled_span() -> SpanContext | None:
    """Return the current span if it is sampled. A call passes its span to the batch that runs it."""
    if _Current.tracer is None:
        return None
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid and context.trace_flags.sampled else None


def sampled_remote_span(traceparent: str | None) -> SpanContext | None:
    """Return the span that a traceparent names, if tracing is on and the span is sampled."""
    context = _span_context(traceparent) if _Current.tracer is not None else None
    return context if context is not None and context.trace_flags.sampled else None


@contextmanager
def batch_span(
    name: str,
    members: Sequence[SpanContext],
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[SpanContext | None]:
    """Run the block in a span for several calls at once, with a link to each of them.

    `members` are the sampled spans of the calls. The new span is a child of the first one, so the trace of that call
    shows all the work, down to the SQL. Yields the context of the new span, to which the spans of the calls may link.

    If no call of the batch is traced, no span in the block is recorded. Without this rule the sampler would decide for
    each such batch whether to start a trace.
    """
    if _Current.tracer is None:
        yield None
        return
    if not members:
        with trace.use_span(_UNSAMPLED):
            yield None
        return
    with _Current.tracer.start_as_current_span(
        name,
        context=_child_of(members[0]),
        links=[trace.Link(member) for member in members],
        attributes=dict(attributes or {}),
    ) as current:
        yield current.get_span_context()


def open_span(
    name: str,
    member: SpanContext,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    batches: Iterable[SpanContext | None] = (),
    attributes: Mapping[str, AttributeValue],
    began_ns: int | None = None,
) -> Span:
    """Start a span below `member`, with links to the batches that handled it. The caller must end it.

    The span starts now, or at `began_ns` (by time.time_ns). Returns an invalid span if tracing was turned off
    meanwhile.
    """
    if _Current.tracer is None:
        return trace.INVALID_SPAN
    return _Current.tracer.start_span(
        name,
        context=_child_of(member),
        kind=kind,
        links=[trace.Link(batch) for batch in batches if batch is not None],
        attributes=dict(attributes),
        start_time=began_ns,
    )


@contextmanager
def child_span(name: str) -> Iterator[None]:
    """Run the block in a span if the current span is sampled. It never starts a trace."""
    if _Current.tracer is None or not trace.get_current_span().is_recording():
        yield
        return
    with _Current.tracer.start_as_current_span(name, kind=SpanKind.CLIENT):
        yield


def traceparent_of(span: Span) -> str | None:
    """Return the traceparent of a span, or None if the span is invalid."""
    context = span.get_span_context()
    return _traceparent(context) if context.is_valid else None


def current_traceparent() -> str | None:
    """Return the traceparent of the current span, for another process to continue. None if there is no span."""
    if _Current.tracer is None:
        return None
    context = trace.get_current_span().get_span_context()
    return _traceparent(context) if context.is_valid and context.trace_id != _UNSAMPLED_TRACE_ID else None


def remote_context(traceparent: str | None) -> Context | None:
    """Return a context whose spans continue the trace of `traceparent`.

    Returns None, which stands for the current context, if `traceparent` is absent or malformed.
    """
    context = _span_context(traceparent)
    return None if context is None else _child_of(context)


def valid_traceparent(traceparent: str | None) -> str | None:
    """Return the traceparent if it is well-formed, else None. Check input from outside before it is stored or sent."""
    return traceparent if traceparent is not None and _TRACEPARENT.fullmatch(traceparent) else None


def traceparent_in(headers: Sequence[tuple[str, bytes | None]] | None) -> str | None:
    """Return the traceparent in the headers of a Kafka message, or None if it is absent or malformed."""
    for name, value in headers or ():
        if name == "traceparent" and value is not None:
            return valid_traceparent(value.decode("ascii", "replace"))
    return None


def _load_sdk(process: str, endpoint: str) -> "TracingSdk":
    # OpenTelemetry reads the OTEL_* variables here. Our settings treat an empty variable as unset; OpenTelemetry does
    # not, so delete empty variables.
    environment = os.environ  # noqa: TID251
    for name in [name for name, value in environment.items() if name.startswith("OTEL_") and not value.strip()]:
        del environment[name]
    try:
        from shop_common.telemetry.tracing_sdk import TracingSdk  # noqa: PLC0415 - loading it is slow

        return TracingSdk.to(process, endpoint)
    except Exception as error:
        # `otel_settings` has checked the variables that are most often wrong. Nothing has started yet.
        raise refusal([f"OTEL_*: OpenTelemetry rejects a value: {error}"]) from None


def _child_of(span: SpanContext) -> Context:
    """Return a context whose spans are children of `span`, even if another span is the current one."""
    return trace.set_span_in_context(NonRecordingSpan(span), Context())


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _span_context(traceparent: str | None) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
