"""The log lines of a process whose span collector is unavailable."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from shop_common.telemetry.tracing_sdk import DeduplicatingExporter

TAKEN, LOST = SpanExportResult.SUCCESS, SpanExportResult.FAILURE


class Collector(SpanExporter):
    """An exporter that returns the given results in order."""

    def __init__(self, *results: SpanExportResult) -> None:
        self._results = list(results)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._results.pop(0)


def test_an_unavailable_collector_is_logged_once_and_its_return_once() -> None:
    exporter = DeduplicatingExporter(Collector(TAKEN, LOST, LOST, LOST, TAKEN, TAKEN, LOST), "http://collector:4317")

    with capture_logs() as lines:
        for _ in range(7):
            exporter.export([])

    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("traces are lost: the collector does not accept them", "warning"),
        ("traces are exported again", "info"),
        ("traces are lost: the collector does not accept them", "warning"),
    ]
    assert lines[0]["endpoint"] == "http://collector:4317"
