"""What makes and sends spans. Imported only where traces are on: the SDK costs every start a third of a second."""

import os

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Tracer
from sqlalchemy import Engine

from shop_common import logs


class Tracing:
    """Spans of one process, sent in batches by a thread of its own."""

    def __init__(self, process: str, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(
            resource=Resource.create(
                {
                    SERVICE_NAME: process,
                    SERVICE_VERSION: logs.version_of(process),
                    SERVICE_INSTANCE_ID: f"{os.uname().nodename}:{os.getpid()}",
                }
            )
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self._provider.get_tracer("shop_common")

    @classmethod
    def to(cls, process: str, endpoint: str) -> "Tracing":
        """Tracing that sends to this OTLP/gRPC endpoint."""
        return cls(process, OTLPSpanExporter(endpoint=endpoint))

    def instrument(self, engine: Engine) -> None:
        """Let each statement on this engine be a span."""
        SQLAlchemyInstrumentor().instrument(engine=engine, tracer_provider=self._provider)

    def shutdown(self) -> None:
        """Send the spans that wait."""
        self._provider.shutdown()
