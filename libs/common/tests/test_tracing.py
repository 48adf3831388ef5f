"""Sending spans: what is said when nobody takes them."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from shop_common.telemetry.tracing_sdk import DeduplicatingExporter

TAKEN, LOST = SpanExportResult.SUCCESS, SpanExportResult.FAILURE


class Collector(SpanExporter):
    """Takes spans, or does not, as it was told."""

    def __init__(self, *results: SpanExportResult) -> None:
        self._results = list(results)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._results.pop(0)


def test_a_collector_that_is_away_is_told_of_once_and_once_again_when_it_is_back() -> None:
    exporter = DeduplicatingExporter(Collector(TAKEN, LOST, LOST, LOST, TAKEN, TAKEN, LOST), "http://collector:4317")

    with capture_logs() as lines:
        for _ in range(7):
            exporter.export([])

    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("traces are lost: nobody takes them", "warning"),
        ("traces are taken again", "info"),
        ("traces are lost: nobody takes them", "warning"),
    ]
    assert lines[0]["endpoint"] == "http://collector:4317"
