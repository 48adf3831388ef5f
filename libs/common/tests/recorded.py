"""The spans that a test makes, by the real SDK, kept in memory."""

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shop_common.telemetry import tracing
from shop_common.telemetry.tracing_sdk import TracingSdk


class Spans:
    """What has been traced."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        tracing.use(TracingSdk("test", self._exporter))

    def all(self) -> list[ReadableSpan]:
        """Every span, in the order in which they ended; no more are made."""
        tracing.shutdown()
        return list(self._exporter.get_finished_spans())
