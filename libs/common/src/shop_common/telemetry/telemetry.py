"""Traces and metrics of a process. Both are off unless asked for, and then they cost nothing.

OTEL_EXPORTER_OTLP_ENDPOINT turns traces on, METRICS_PORT metrics.
Trace context crosses Kafka by hand, as the `traceparent` header of W3C Trace Context.
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
from prometheus_client import REGISTRY, CollectorRegistry

from shop_common.environment import listen
from shop_common.environment.settings import CommonSettings, refusal
from shop_common.telemetry import metrics_server

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from shop_common.telemetry.tracing import Tracing

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

# What stands for "not sampled" where there is no span to say so: its children are not recorded either.
_UNSAMPLED_TRACE_ID = 1
_UNSAMPLED = NonRecordingSpan(SpanContext(_UNSAMPLED_TRACE_ID, 1, is_remote=False))


class _Running:
    """What has been started; one process has one telemetry."""

    tracing: "Tracing | None" = None
    tracer: trace.Tracer | None = None
    metrics = False


def start(process: str, settings: CommonSettings) -> None:
    """Start what the settings ask for. To be called before the engine and the server are made: they look here once."""
    if settings.otel_exporter_otlp_endpoint:
        trace_with(_tracing_to(process, settings.otel_exporter_otlp_endpoint))
    _Running.metrics = settings.metrics_port > 0
    if _Running.metrics and not settings.is_worker:
        # The metrics of workers are served, summed, by their parent: they could not share this port.
        serve_metrics(settings, REGISTRY)


def _tracing_to(process: str, endpoint: str) -> "Tracing":
    # An empty variable is an unset one for us, but not for OpenTelemetry, which reads these here.
    environment = os.environ  # noqa: TID251
    for name in [name for name, value in environment.items() if name.startswith("OTEL_") and not value.strip()]:
        del environment[name]
    try:
        from shop_common.telemetry.tracing import Tracing  # noqa: PLC0415 - see there

        return Tracing.to(process, endpoint)
    except Exception as error:
        # The likely ones have been checked with the other settings.
        raise refusal([f"OTEL_*: OpenTelemetry does not take one of these: {error}"]) from None


def trace_with(tracing: "Tracing") -> None:
    """Make spans with this from now on."""
    _Running.tracing = tracing
    _Running.tracer = tracing.tracer


def serve_metrics(settings: CommonSettings, registry: CollectorRegistry) -> None:
    """Answer Prometheus on METRICS_PORT. Ends the process with one sentence if the port is busy."""
    try:
        metrics_server.start(listen.python_host(settings.listen_host), settings.metrics_port, registry)
    except OSError as error:
        raise SystemExit(listen.refusal(settings.listen_host, settings.metrics_port, error)) from None


def shutdown() -> None:
    """Send the spans that wait; traces are off from now on."""
    tracing, _Running.tracing, _Running.tracer = _Running.tracing, None, None
    if tracing is not None:
        tracing.shutdown()


def instrument(engine: "Engine") -> None:
    """Let each statement on this engine be a span, if traces are on."""
    if _Running.tracing is not None:
        _Running.tracing.instrument(engine)


def metrics_wanted() -> bool:
    """Whether somebody reads the metrics."""
    return _Running.metrics


def tracer() -> trace.Tracer | None:
    """What makes spans, or None when traces are off."""
    return _Running.tracer


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """A span around the block, which fails with it; the current one is its parent unless a traceparent is given.

    Nothing happens when traces are off.
    """
    if _Running.tracer is None:
        yield trace.INVALID_SPAN
        return
    with _Running.tracer.start_as_current_span(
        name, context=remote_parent(parent), kind=kind, attributes=dict(attributes or {})
    ) as current:
        yield current


def sampled_span() -> SpanContext | None:
    """The current span, if it is recorded: by this a batch knows for whom it acts."""
    if _Running.tracer is None:
        return None
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid and context.trace_flags.sampled else None


def sampled_traceparent(traceparent: str | None) -> SpanContext | None:
    """The span that it names, if traces are on and it is recorded."""
    context = _span_context(traceparent) if _Running.tracer is not None else None
    return context if context is not None and context.trace_flags.sampled else None


@contextmanager
def batch_span(
    name: str,
    members: Sequence[SpanContext],
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[SpanContext | None]:
    """A span around what is done for many at once, linked to all of them. Gives its context, for their links to it.

    It lies in the trace of the first member, so that this one shows all that was done, down to the SQL. When no member
    is recorded, nor is anything in the block: it is not for each batch to decide anew what is sampled.
    """
    if _Running.tracer is None:
        yield None
        return
    if not members:
        with trace.use_span(_UNSAMPLED):
            yield None
        return
    with _Running.tracer.start_as_current_span(
        name,
        context=_below(members[0]),
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
    """A span below `member`, linked to the batches that it was handled in; whoever opens it ends it.

    It began now, or at `began_ns` (by time.time_ns). Nothing is recorded when traces have been turned off meanwhile.
    """
    if _Running.tracer is None:
        return trace.INVALID_SPAN
    return _Running.tracer.start_span(
        name,
        context=_below(member),
        kind=kind,
        links=[trace.Link(batch) for batch in batches if batch is not None],
        attributes=dict(attributes),
        start_time=began_ns,
    )


@contextmanager
def span_below(name: str) -> Iterator[None]:
    """A span around the block if there is a recorded one around it already: a part of it, never a trace by itself."""
    if _Running.tracer is None or not trace.get_current_span().is_recording():
        yield
        return
    with _Running.tracer.start_as_current_span(name, kind=SpanKind.CLIENT):
        yield


def traceparent_of(span: Span) -> str | None:
    """By which another process continues this span; None when nothing of it is recorded anywhere."""
    context = span.get_span_context()
    return _traceparent(context) if context.is_valid else None


def current_traceparent() -> str | None:
    """The traceparent by which another process continues the current span; None when there is none."""
    if _Running.tracer is None:
        return None
    context = trace.get_current_span().get_span_context()
    return _traceparent(context) if context.is_valid and context.trace_id != _UNSAMPLED_TRACE_ID else None


def remote_parent(traceparent: str | None) -> Context | None:
    """The context whose spans continue that trace; None, which means the current one, if it is absent or malformed."""
    context = _span_context(traceparent)
    return None if context is None else _below(context)


def well_formed(traceparent: str | None) -> str | None:
    """The traceparent if it is one, else None: what comes from outside is stored and passed on only if it is sound."""
    return traceparent if traceparent is not None and _TRACEPARENT.fullmatch(traceparent) else None


def from_kafka(headers: Sequence[tuple[str, bytes | None]] | None) -> str | None:
    """The traceparent in the headers of a message, if there is a sound one."""
    for name, value in headers or ():
        if name == "traceparent" and value is not None:
            return well_formed(value.decode("ascii", "replace"))
    return None


def _below(span: SpanContext) -> Context:
    """The context whose spans are children of that one, and of nothing else."""
    return trace.set_span_in_context(NonRecordingSpan(span), Context())


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _span_context(traceparent: str | None) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
