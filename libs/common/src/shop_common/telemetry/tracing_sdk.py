"""Wraps the OpenTelemetry SDK. Imported only if tracing is on: loading the SDK takes a third of a second."""

import logging
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, Tracer, get_current_span
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from shop_common.telemetry import logs

SHUTDOWN_SECONDS_MAX = 2.0

# Proxies configured in the environment are for external traffic. The collector is internal.
_CHANNEL_OPTIONS: Any = (("grpc.enable_http_proxy", 0),)

TEXT_LENGTH_MAX = 4096
"""Limit on the length of an attribute. Our longest statement is shorter. The queue holds up to 2,048 spans."""

_SPAN = "shop_span"
_OPERATION = re.compile(r"\s*(\w+)")


_log = logs.get(__name__)


class DeduplicatingExporter(SpanExporter):
    """Logs one line when exports start to fail and one when they succeed again, instead of one for each batch."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away != self._is_away:
            self._is_away = is_away
            if is_away:
                _log.warning("traces are lost: the collector does not accept them", endpoint=self._endpoint)
            else:
                _log.info("traces are exported again", endpoint=self._endpoint)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class TracingSdk:
    """The tracer of one process. A background thread exports its spans in batches."""

    def __init__(self, process: str, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_attribute_length=TEXT_LENGTH_MAX),
            resource=Resource.create(
                {
                    SERVICE_NAME: process,
                    SERVICE_VERSION: logs.version_of(process),
                    SERVICE_INSTANCE_ID: f"{os.uname().nodename}:{os.getpid()}",
                }
            ),
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self._provider.get_tracer("shop_common")

    @classmethod
    def to(cls, process: str, endpoint: str) -> "TracingSdk":
        """Create an SDK that exports to this OTLP/gRPC endpoint."""
        # The exporter logs several lines for each failed batch. DeduplicatingExporter logs the failure instead.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        return cls(
            process,
            DeduplicatingExporter(OTLPSpanExporter(endpoint=endpoint, channel_options=_CHANNEL_OPTIONS), endpoint),
        )

    def instrument(self, engine: Engine) -> None:
        """Create a child span for each statement on this engine if the current span is recorded.

        OpenTelemetry's instrumentation also creates spans for statements outside any span, such as those of a polling
        loop, and costs time for each statement that is not recorded.
        """
        database = {
            "db.system.name": "postgresql" if engine.dialect.name == "postgresql" else "sqlite",
            "db.namespace": Path(engine.url.database or "").stem,
        }

        def begin(
            _connection: object, _cursor: object, statement: str, _given: object, context: Any, many: bool
        ) -> None:
            if not get_current_span().is_recording():
                return
            operation = _operation(statement)
            # Values are bound parameters, so the text contains no personal data.
            attributes = database | {"db.operation.name": operation, "db.query.text": statement}
            name = f"{operation} {database['db.namespace']}"
            setattr(context, _SPAN, self.tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes))

        def end(
            _connection: object, _cursor: object, _statement: str, _given: object, context: Any, many: bool
        ) -> None:
            span = getattr(context, _SPAN, None)
            if span is not None:
                span.end()

        def fail(failure: ExceptionContext) -> None:
            span = getattr(failure.execution_context, _SPAN, None)
            if span is not None:
                kind = (
                    getattr(failure.original_exception, "sqlstate", None) or type(failure.original_exception).__name__
                )
                span.set_attribute("error.type", kind)
                span.set_status(StatusCode.ERROR)
                span.end()

        event.listen(engine, "before_cursor_execute", begin)
        event.listen(engine, "after_cursor_execute", end)
        event.listen(engine, "handle_error", fail)

    def shutdown(self) -> None:
        """Export the queued spans. Spans not exported within SHUTDOWN_SECONDS_MAX are lost."""
        # Use a thread with a time limit, because the exporter keeps retrying while the collector is unreachable.
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(SHUTDOWN_SECONDS_MAX)


def _operation(statement: str) -> str:
    match = _OPERATION.match(statement)
    return match.group(1).upper() if match else "SQL"
