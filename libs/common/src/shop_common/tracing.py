"""What makes and sends spans. Imported only where traces are on: the SDK costs every start a third of a second."""

import os
import threading

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Tracer
from sqlalchemy import Engine

from shop_common import logs

SHUTDOWN_SECONDS_MAX = 2.0

_NO_METER = NoOpMeter("shop_common")  # metrics are Prometheus's here


class Tracing:
    """Spans of one process, sent in batches by a thread of its own."""

    def __init__(self, process: str, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(
            shutdown_on_exit=False,
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
    def to(cls, process: str, endpoint: str) -> "Tracing":
        """Tracing that sends to this OTLP/gRPC endpoint."""
        return cls(process, OTLPSpanExporter(endpoint=endpoint))

    def instrument(self, engine: Engine) -> None:
        """Let each statement on this engine be a span."""
        # Not by SQLAlchemyInstrumentor: it takes engines only once a process, of which the relay has two, and adds a
        # span for each connection taken from the pool.
        unused = _NO_METER.create_up_down_counter("connections")
        EngineTracer(self.tracer, engine, unused)  # type: ignore[no-untyped-call]  # has no types

    def shutdown(self) -> None:
        """Send the spans that wait. Those that nobody takes within SHUTDOWN_SECONDS_MAX are lost."""
        # On a thread, since the exporter goes on trying when the collector is away.
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(SHUTDOWN_SECONDS_MAX)
