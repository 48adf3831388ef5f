"""The health of a process: whether it works, and whether it is ready for calls. They are two questions.

`liveness` is SERVING from start to exit, whatever databases and brokers do: a restart would not mend those. With
WORKERS > 1 their parent speaks for them, see `workers`.
The empty name and the full name of each API are SERVING while every part of the process says it is ready.
"""

import threading
import time
from concurrent import futures

import grpc

from shop_common.environment.listen import opened
from shop_common.rpc.health_service import HealthService
from shop_common.telemetry import metrics

LIVENESS = "liveness"

_ready = metrics.gauge(
    __name__,
    "shop_ready_processes",
    "1 while the process is ready for calls, else 0; with WORKERS > 1 so many of them are",
)

_REQUEST_BYTES_MAX = 4096
_STREAMS_MAX = 100
CONNECTIONS_MAX = 100
_UNUSED_MS = 2000
"""A probe asks as soon as it is connected. A connection on which nothing is asked for so long is closed."""
_CONNECTION_MS_MAX = 60_000
_GRACE_SECONDS_MAX = 1.0
"""An answer takes no time, and a client that does not read it must not hold up the end."""
_POLL_SECONDS = 0.01


class Health:
    """The health of one process. Not ready until its server has started. Safe to share between threads."""

    def __init__(self) -> None:
        self._live = True
        self._ready = False
        self._ready_parts: dict[str, bool] = {"server": False}
        self._draining = False
        self.names = {""}
        """Full names of the services that this process offers, and the empty one, which stands for all."""
        self._services: list[HealthService] = []
        self._lock = threading.Lock()
        _ready().set(0)

    @property
    def ready(self) -> bool:
        """Whether the process is ready for calls."""
        return self._ready

    def serve_on(self, server: grpc.Server) -> HealthService:
        """Answer on this server."""
        service = HealthService(self)
        service.add_to(server)
        self._services.append(service)
        return service

    def set_ready(self, part: str, ready: bool) -> None:
        """Say whether one part (`server`, `consumer`) is ready; the process is when all its parts are."""
        with self._lock:
            self._ready_parts[part] = ready
            self._publish()

    def set_live(self, live: bool) -> None:
        """Say whether the process works at all. For a parent of workers: any other process that can answer works."""
        if live != self._live:
            self._live = live
            for service in self._services:
                service.publish()

    def drain(self) -> None:
        """Not ready from now on, whatever any part says later."""
        with self._lock:
            self._draining = True
            self._publish()

    def wait_published(self, seconds: float) -> None:
        """Wait until those who watch have been told what holds now, at most so long."""
        end = time.monotonic() + seconds
        while any(service.is_publishing() for service in self._services) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def status(self, name: str) -> str:
        """The status of a service as grpc.health.v1 names it."""
        if name == LIVENESS:
            return "SERVING" if self._live else "NOT_SERVING"
        if name not in self.names:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._ready else "NOT_SERVING"

    def _publish(self) -> None:
        ready = not self._draining and all(self._ready_parts.values())
        if ready == self._ready:
            return
        self._ready = ready
        _ready().set(ready)
        for service in self._services:
            service.publish()


class HealthServer:
    """A gRPC server with nothing but health, on a port that clients cannot reach: it answers whatever they do.

    It speaks for `health`, or is all that a process serves, which is then ready when this server has started.
    """

    def __init__(self, port: int, *, listen_host: str, health: Health | None = None) -> None:
        self.health = Health() if health is None else health
        self.port = port
        self._is_alone = health is None
        self._listen_host = listen_host
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", _REQUEST_BYTES_MAX),
            ("grpc.max_concurrent_streams", _STREAMS_MAX),
            # Few, and none is kept for long: those that nobody uses must not keep a probe out.
            ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
            ("grpc.server_handshake_timeout_ms", _UNUSED_MS),
            ("grpc.max_connection_idle_ms", _UNUSED_MS),
            ("grpc.max_connection_age_ms", _CONNECTION_MS_MAX),
            ("grpc.max_connection_age_grace_ms", _UNUSED_MS),
        )
        # The service brings its own threads, and nothing else runs here.
        self._server = grpc.server(futures.ThreadPoolExecutor(1), options=options)
        self._service = self.health.serve_on(self._server)

    def start(self) -> None:
        """Open the port and answer. Raises PortBusy."""
        self.port = opened(self._listen_host, self.port, self._server.add_insecure_port)
        self._server.start()
        if self._is_alone:
            self.health.set_ready("server", True)

    def stop(self, grace_seconds: float) -> None:
        """Let running calls finish, at most so long, and stop."""
        self._service.end_watches()
        self._server.stop(min(grace_seconds, _GRACE_SECONDS_MAX)).wait()
        self._service.stop()
