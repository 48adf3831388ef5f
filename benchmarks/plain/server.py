"""A plain gRPC server, as the documentation of grpcio shows it, with health."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent import futures
from types import FrameType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.plain.models import sessions

THREADS = 64


def serve(add: Callable[[grpc.Server, sessionmaker[Session]], None]) -> None:
    """Serve on GRPC_PORT with the database DATABASE_URL until SIGTERM comes."""
    server = grpc.server(futures.ThreadPoolExecutor(THREADS))
    add(server, sessions(os.environ["DATABASE_URL"]))
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
