"""A gRPC server as in the documentation of grpcio, with health checks."""

import os
import signal
import threading
from collections.abc import Mapping
from concurrent import futures
from types import FrameType

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from benchmarks.handlers import Method, add_methods

THREADS = 64


def serve(service: ServiceDescriptor, methods: Mapping[str, Method]) -> None:
    """Serve on GRPC_PORT until SIGTERM."""
    server = grpc.server(futures.ThreadPoolExecutor(THREADS))
    add_methods(service, methods, server)
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(f"[::]:{os.environ['GRPC_PORT']}")
    server.start()
    healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    stopped.wait()
    server.stop(1).wait()
