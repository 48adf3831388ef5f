"""Traces and metrics of a process. Both are off unless asked for, and then they cost nothing.

OTEL_EXPORTER_OTLP_ENDPOINT turns traces on, METRICS_PORT metrics.
Trace context crosses Kafka by hand, as the `traceparent` header of W3C Trace Context.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.util.types import AttributeValue
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, start_http_server

from shop_common import listen
from shop_common.settings import CommonSettings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from shop_common.tracing import Tracing

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

_RPC_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Running:
    """What has been started; one process has one telemetry."""

    tracing: "Tracing | None" = None
    tracer: trace.Tracer | None = None
    metrics = False


def start(process: str, settings: CommonSettings) -> None:
    """Start what the settings ask for. To be called before the engine and the server are made: they look here once."""
    if settings.otel_exporter_otlp_endpoint:
        from shop_common.tracing import Tracing  # noqa: PLC0415 - see there

        trace_with(Tracing.to(process, settings.otel_exporter_otlp_endpoint))
    _Running.metrics = settings.metrics_port > 0
    if _Running.metrics and not settings.is_worker:
        # The metrics of workers are served, summed, by their parent: they could not share this port.
        serve_metrics(settings, REGISTRY)


def trace_with(tracing: "Tracing") -> None:
    """Make spans with this from now on."""
    _Running.tracing = tracing
    _Running.tracer = tracing.tracer


def serve_metrics(settings: CommonSettings, registry: CollectorRegistry) -> None:
    """Answer Prometheus on METRICS_PORT. Ends the process with one sentence if the port is busy."""
    try:
        start_http_server(settings.metrics_port, listen.python_host(settings.listen_host), registry)
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


def tracer() -> trace.Tracer | None:
    """What makes spans, or None when traces are off."""
    return _Running.tracer


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: str | None = None,
    links: Iterable[str | None] = (),
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """A span around the block, which fails with it; the current one is its parent unless a traceparent is given.

    A batch that acts for many traces names them in `links`. Nothing happens when traces are off.
    """
    if _Running.tracer is None:
        yield trace.INVALID_SPAN
        return
    linked = [trace.Link(context) for link in links if (context := _span_context(link)) is not None]
    with _Running.tracer.start_as_current_span(
        name, context=remote_parent(parent), kind=kind, links=linked, attributes=dict(attributes or {})
    ) as current:
        yield current


def current_traceparent() -> str | None:
    """The traceparent by which another process continues the current span; None when there is none."""
    if _Running.tracer is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def remote_parent(traceparent: str | None) -> Context | None:
    """The context whose spans continue that trace; None, which means the current one, if it is absent or malformed."""
    context = _span_context(traceparent)
    return None if context is None else trace.set_span_in_context(NonRecordingSpan(context), Context())


def well_formed(traceparent: str | None) -> str | None:
    """The traceparent if it is one, else None: what comes from outside is stored and passed on only if it is sound."""
    return traceparent if traceparent is not None and _TRACEPARENT.fullmatch(traceparent) else None


def to_kafka(traceparent: str | None) -> list[tuple[str, bytes]]:
    """The traceparent as message headers; none if there is none."""
    return [("traceparent", traceparent.encode())] if traceparent else []


def from_kafka(headers: Sequence[tuple[str, bytes | None]] | None) -> str | None:
    """The traceparent in the headers of a message, if there is a sound one."""
    for name, value in headers or ():
        if name == "traceparent" and value is not None:
            return well_formed(value.decode("ascii", "replace"))
    return None


class RpcMetrics:
    """How often and how fast one method was answered, by status code."""

    def __init__(self, service: str, method: str) -> None:
        self._labels = (service, method)
        self._observers: dict[str, Callable[[float], None]] = {}

    def observer(self, code: str) -> Callable[[float], None]:
        """What notes the seconds of one call that ended with this code."""
        observer = self._observers.get(code)
        if observer is None:
            # Looked up once: `labels` costs more than `observe`.
            observer = self._observers[code] = _rpc_seconds().labels(*self._labels, code).observe
        return observer


def rpc_metrics(service: str, method: str) -> RpcMetrics | None:
    """The metrics of a method, or None when metrics are off."""
    return RpcMetrics(service, method) if _Running.metrics else None


@cache
def _rpc_seconds() -> Histogram:
    return Histogram(
        "grpc_server_handling_seconds",
        "Time from a call's start on a thread to its answer; its _count is the number of calls",
        ("grpc_service", "grpc_method", "grpc_code"),
        buckets=_RPC_SECONDS_BUCKETS,
    )


def _span_context(traceparent: str | None) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
