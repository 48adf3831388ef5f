"""grpc.health.v1: whether a process works, and whether it is ready for calls. They are two questions.

`liveness` is SERVING from start to exit, whatever databases and brokers do: a restart would not mend those.
The empty name and the full name of each API are SERVING while every part of the process says it is ready.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shop_common import metrics
from shop_common.listen import opened

LIVENESS = "liveness"
HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_ready = metrics.gauge(
    __name__,
    "shop_ready_processes",
    "1 while the process is ready for calls, else 0; with WORKERS > 1 so many of them are",
)

_Response = health_pb2.HealthCheckResponse
_Send = Callable[[_Response | None], None]
_Stream = TypeVar("_Stream", bound=Callable[..., None])


def _holds_no_thread(stream: _Stream) -> _Stream:
    """Tell grpcio to pass, as a third argument, what sends a response, instead of iterating over responses."""
    stream.experimental_non_blocking = True  # type: ignore[attr-defined]
    return stream


class Health(health_pb2_grpc.HealthServicer):
    """The health of one process. Not ready until its server has started. Safe to share between threads.

    Unlike grpcio's own servicer it can end its watches, and it answers Check while a watcher is slow to read.
    """

    def __init__(self) -> None:
        self._ready = False
        self._ready_parts: dict[str, bool] = {"server": False}
        self._draining = False
        self._names = {""}
        self._watches: dict[_Send, str] = {}
        # Held while watchers are told, so that they hear of changes in order.
        self._lock = threading.Lock()
        _ready().set(0)

    def serve_on(self, server: grpc.Server, services: Iterable[str], *, reflect: bool) -> None:
        """Answer on this server, and speak for these full service names; `reflect` offers their descriptors."""
        self._names.update(services)
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        if reflect:
            names = (*services, HEALTH_SERVICE, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)

    def set_ready(self, part: str, ready: bool) -> None:
        """Say whether one part (`server`, `consumer`) is ready; the process is when all its parts are."""
        with self._lock:
            self._ready_parts[part] = ready
            self._publish()

    def drain(self) -> None:
        """Not ready from now on, whatever any part says later."""
        with self._lock:
            self._draining = True
            self._publish()

    def end_watches(self) -> None:
        """End the streams of those who watch; else they hold up the server's stop for the whole of its grace."""
        with self._lock:
            watches, self._watches = self._watches, {}
            for send in watches:
                send(None)

    def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> _Response:
        status = self._status(request.service)
        if status == "SERVICE_UNKNOWN":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return _Response(status=status)

    @_holds_no_thread
    def Watch(  # type: ignore[override]
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: _Send
    ) -> None:
        with self._lock:
            if context.add_callback(lambda: self._forget(send)):
                self._watches[send] = request.service
                send(_Response(status=self._status(request.service)))

    def _status(self, name: str) -> str:
        if name == LIVENESS:
            return "SERVING"
        if name not in self._names:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._ready else "NOT_SERVING"

    def _publish(self) -> None:
        ready = not self._draining and all(self._ready_parts.values())
        if ready == self._ready:
            return
        self._ready = ready
        _ready().set(ready)
        for send, name in tuple(self._watches.items()):
            if name in self._names:
                send(_Response(status=self._status(name)))

    def _forget(self, send: _Send) -> None:
        # Without the lock, which a thread may hold that waits for grpcio, on whose thread this runs.
        self._watches.pop(send, None)


class HealthServer:
    """A gRPC server with health and, if wanted, reflection only, for a process without an API."""

    def __init__(self, port: int, *, listen_host: str, reflect: bool = True) -> None:
        self.health = Health()
        self.port = port
        self._listen_host = listen_host
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=4, thread_name_prefix="health"),
            options=(("grpc.so_reuseport", 0),),
        )
        self.health.serve_on(self._server, (), reflect=reflect)

    def start(self) -> None:
        """Open the port and answer. Raises PortBusy."""
        self.port = opened(self._listen_host, self.port, self._server.add_insecure_port)
        self._server.start()
        self.health.set_ready("server", True)

    def stop(self, grace_seconds: float) -> None:
        """Let running calls finish, at most so long, and stop."""
        self.health.end_watches()
        self._server.stop(grace_seconds).wait()
