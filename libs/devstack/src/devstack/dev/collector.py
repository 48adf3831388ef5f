"""An OTLP collector that stores the spans of the processes for `./task trace`."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from shopctl.tracing import span_store
from shopctl.tracing.span_store import SpanStore

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_STOP_SECONDS = 5
# Enough for 512 spans, the default batch of an exporter, with their SQL.
_REQUEST_BYTES_MAX = 32 * 1024 * 1024


@contextmanager
def collecting(report: Callable[[str], None], path: Path = span_store.PATH, port: int = 0) -> Iterator[str]:
    """Collect spans during the block. Listens on the given port, or on a free port if it is 0.

    Yields the endpoint as a value for OTEL_EXPORTER_OTLP_ENDPOINT. Raises OSError or sqlite3.Error if the file cannot
    be opened. If a write fails, its spans are dropped. `report` is called for the first failure only.
    """
    # One thread, because there is only one SQLite connection. Exporters can wait: they send from background threads.
    threads = ThreadPoolExecutor(1, thread_name_prefix="collector")
    server = grpc.server(
        threads, options=[("grpc.max_receive_message_length", _REQUEST_BYTES_MAX), ("grpc.so_reuseport", 0)]
    )
    with SpanStore.to_write(path) as spans, threads:
        export = grpc.unary_unary_rpc_method_handler(
            _Export(spans, report), ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
        )
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, {"Export": export})])
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(_STOP_SECONDS).wait()


class _Export:
    """Handles the RPC Export."""

    def __init__(self, spans: SpanStore, report: Callable[[str], None]) -> None:
        self._spans = spans
        self._report = report
        self._has_reported = False

    def __call__(self, request: ExportTraceServiceRequest, _: grpc.ServicerContext) -> ExportTraceServiceResponse:
        try:
            self._spans.add(request.resource_spans)
        except sqlite3.Error as error:
            # The disk may be full, for example. Succeed anyway: lost spans must not disturb the processes.
            if not self._has_reported:
                self._report(f"cannot store traces: {error}")
            self._has_reported = True
        return ExportTraceServiceResponse()
