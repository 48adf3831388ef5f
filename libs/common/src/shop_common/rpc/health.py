"""The health of a process, reported separately as liveness and readiness.

The service name `liveness` is SERVING from start to exit, even if a database or broker is down, because a restart would
not repair those. The empty name and the full name of each API are SERVING while every component of the process is
ready. With WORKERS > 1 the parent reports the health of all workers, see `workers`.
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
    "1 if the process is ready, else 0; with WORKERS > 1 the number of workers that are ready",
)

_REQUEST_BYTES_MAX = 4096
_STREAMS_MAX = 100
CONNECTIONS_MAX = 100
_UNUSED_MS = 2000
"""A probe sends its request right after it connects. A connection idle for longer is closed."""
_CONNECTION_MS_MAX = 60_000
_GRACE_SECONDS_MAX = 1.0
"""Responses are sent at once. A client that does not read its response must not delay the shutdown."""
_POLL_SECONDS = 0.01


class Health:
    """The health of one process. Not ready until its server has started. Safe to share between threads."""

    def __init__(self) -> None:
        self._live = True
        self._ready = False
        self._ready_components: dict[str, bool] = {"server": False}
        self._draining = False
        self.names = {""}
        """Full names of the services that this process offers, and the empty name, which means all of them."""
        self._services: list[HealthService] = []
        self._lock = threading.Lock()
        _ready().set(0)

    @property
    def ready(self) -> bool:
        """Whether the process is ready for calls."""
        return self._ready

    def serve_on(self, server: grpc.Server) -> HealthService:
        """Add grpc.health.v1 to this server."""
        service = HealthService(self)
        service.add_to(server)
        self._services.append(service)
        return service

    def set_ready(self, component: str, ready: bool) -> None:
        """Set whether one component is ready. The process is ready when all its components are ready.

        CONTRIBUTING.md lists the components of each process. A component counts from its first report on. `schema` and
        `consumer` report for the first time when they are not ready.
        """
        with self._lock:
            self._ready_components[component] = ready
            self._publish()

    def set_live(self, live: bool) -> None:
        """Set liveness. Only a parent of workers calls this: any other process that can respond is live."""
        if live != self._live:
            self._live = live
            for service in self._services:
                service.publish()

    def drain(self) -> None:
        """Report NOT_SERVING from now on, even if components report later that they are ready."""
        with self._lock:
            self._draining = True
            self._publish()

    def wait_published(self, seconds: float) -> None:
        """Wait until all watches have received the current status, or `seconds` have passed."""
        end = time.monotonic() + seconds
        while any(service.is_publishing() for service in self._services) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def status(self, name: str) -> str:
        """Return the status of a service. The result is a name of grpc.health.v1, such as `SERVING`."""
        if name == LIVENESS:
            return "SERVING" if self._live else "NOT_SERVING"
        if name not in self.names:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._ready else "NOT_SERVING"

    def _publish(self) -> None:
        ready = not self._draining and all(self._ready_components.values())
        if ready == self._ready:
            return
        self._ready = ready
        _ready().set(ready)
        for service in self._services:
            service.publish()


class HealthServer:
    """A gRPC server with only grpc.health.v1, on a port that clients cannot reach, so that load cannot block probes.

    It reports `health`. If that is None, this is the only server of the process, and `start` sets `server` ready.
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
            # Idle connections must not use up the limit, or a probe could not connect. So close them soon.
            ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
            ("grpc.server_handshake_timeout_ms", _UNUSED_MS),
            ("grpc.max_connection_idle_ms", _UNUSED_MS),
            ("grpc.max_connection_age_ms", _CONNECTION_MS_MAX),
            ("grpc.max_connection_age_grace_ms", _UNUSED_MS),
        )
        # HealthService has its own threads, and no other service runs here.
        self._server = grpc.server(futures.ThreadPoolExecutor(1), options=options)
        self._service = self.health.serve_on(self._server)

    def start(self) -> None:
        """Open the port and start serving. Raises PortBusy."""
        self.port = opened(self._listen_host, self.port, self._server.add_insecure_port)
        self._server.start()
        if self._is_alone:
            self.health.set_ready("server", True)

    def stop(self, grace_seconds: float) -> None:
        """Stop the server. Waits up to `grace_seconds`, but at most _GRACE_SECONDS_MAX, for running calls."""
        self._service.end_watches()
        self._server.stop(min(grace_seconds, _GRACE_SECONDS_MAX)).wait()
        self._service.stop()
