"""Records the spans of a test in memory, with the real SDK."""

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shop_common.telemetry import tracing
from shop_common.telemetry.tracing_sdk import TracingSdk


class Spans:
    """The spans of a test."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        tracing.use(TracingSdk("test", self._exporter))

    def all(self) -> list[ReadableSpan]:
        """Return every span in the order of their ends, and turn tracing off."""
        tracing.shutdown()
        return list(self._exporter.get_finished_spans())
