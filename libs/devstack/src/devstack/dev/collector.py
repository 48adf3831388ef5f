"""What OTLP calls a collector, of our own: it takes the spans of the processes and keeps them for `./task trace`."""

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
# Of 512 spans, unless the user says otherwise, with their SQL.
_REQUEST_BYTES_MAX = 32 * 1024 * 1024


@contextmanager
def collecting(say: Callable[[str], None], path: Path = span_store.PATH, port: int = 0) -> Iterator[str]:
    """Collect for the time of the block, on that port or on any; what has arrived by its end is kept.

    Gives the endpoint, as OTEL_EXPORTER_OTLP_ENDPOINT wants it. Raises OSError or sqlite3.Error when the file can't
    be opened. When it can't be written to later on, `say` is told once and spans are dropped.
    """
    # One thread, for the one connection: those who send wait on threads that have nothing else to do.
    threads = ThreadPoolExecutor(1, thread_name_prefix="collector")
    server = grpc.server(
        threads, options=[("grpc.max_receive_message_length", _REQUEST_BYTES_MAX), ("grpc.so_reuseport", 0)]
    )
    with SpanStore.to_write(path) as spans, threads:
        export = grpc.unary_unary_rpc_method_handler(
            _Export(spans, say), ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
        )
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, {"Export": export})])
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(_STOP_SECONDS).wait()


class _Export:
    """The one RPC."""

    def __init__(self, spans: SpanStore, say: Callable[[str], None]) -> None:
        self._spans = spans
        self._say = say
        self._has_said = False

    def __call__(self, request: ExportTraceServiceRequest, _: grpc.ServicerContext) -> ExportTraceServiceResponse:
        try:
            self._spans.add(request.resource_spans)
        except sqlite3.Error as error:
            # A disk that is full, for example. No process shall feel it: spans are the least that is at stake.
            if not self._has_said:
                self._say(f"the traces can't be kept: {error}")
            self._has_said = True
        return ExportTraceServiceResponse()
