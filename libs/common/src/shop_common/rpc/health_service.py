"""grpc.health.v1 on one server.

No peer holds up a thread, a lock or another peer, whatever it sends or leaves unread.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from shop_common.rpc.peer_waits import PeerWaits

HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

WATCHES_MAX = 1000
WATCHES_PER_CONNECTION_MAX = 10
PEER_SECONDS = 5.0

_WAITS_MAX = 200
# More than can wait for a peer, so that one is always there for a call that waits for nobody.
_THREADS = _WAITS_MAX + 4
_END_SECONDS = 1.0
_QUOTED_MAX = 200

_Request = health_pb2.HealthCheckRequest
_Response = health_pb2.HealthCheckResponse
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # in quotes, since only the stubs know its parameters
_Send = Callable[[_Response | None], None]


class Source(Protocol):
    """What knows the health of the process."""

    def status(self, name: str) -> str: ...


@dataclass(eq=False)
class _Watch:
    """The stream of one who watches."""

    name: str
    connection: str
    send: _Send
    context: grpc.ServicerContext
    told: str = ""
    """The last status that it was sent."""
    is_busy: bool = False
    """Whether a thread sends to it, or will."""


class HealthService:
    """The two methods of grpc.health.v1, with threads of their own.

    Unlike grpcio's own servicer it ends its watches when the server stops, bounds them, and sends to each on its own:
    a watch that is not read for PEER_SECONDS is ended, and delays nobody.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.threads = futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="health")
        self._waits = PeerWaits("health", calls_max=_WAITS_MAX, seconds=PEER_SECONDS, waits_for="the client")
        # Guards the watches. It is never held while anything is sent.
        self._lock = threading.Condition()
        self._watches: set[_Watch] = set()
        self._connections: Counter[str] = Counter()
        self._is_ending = False

    def add_to(self, server: grpc.Server) -> None:
        """Answer on this server."""
        # Streams of requests, also where there is only one: grpcio lets a unary handler wait for its message unseen.
        check: _Handler = grpc.stream_unary_rpc_method_handler(
            _on(self.threads, self._check), response_serializer=_Response.SerializeToString
        )
        watch: _Handler = grpc.stream_stream_rpc_method_handler(
            _holding_no_thread(_on(self.threads, self._watch)), response_serializer=_Response.SerializeToString
        )
        handlers = {"Check": check, "Watch": watch}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers),))
        server.add_registered_method_handlers(HEALTH_SERVICE, handlers)
        self._waits.start()

    def publish(self) -> None:
        """Tell those who watch what has changed. Returns at once."""
        with self._lock:
            for watch in self._watches:
                self._schedule(watch)

    def is_publishing(self) -> bool:
        """Whether some have not been told yet what holds now."""
        with self._lock:
            return any(watch.is_busy for watch in self._watches)

    def end_watches(self) -> None:
        """End all watches, after they were told what holds now; within about a second, whether they are read or not."""
        with self._lock:
            self._is_ending = True
            for watch in self._watches:
                self._schedule(watch)
            self._lock.wait_for(lambda: not self._watches, _END_SECONDS)
            unread = list(self._watches)
        for watch in unread:
            watch.context.cancel()

    def stop(self) -> None:
        """Let the threads end. To be called when the server has stopped."""
        self._waits.stop()
        self.threads.shutdown(wait=False)

    def _check(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> _Response:
        name = self._received(requests, context).service
        status = self._source.status(name)
        if status == "SERVICE_UNKNOWN":
            quoted = f" {name!r}" if len(name) <= _QUOTED_MAX else ""
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service{quoted} here")
        return _Response(status=status)

    def _watch(self, requests: Iterator[bytes], context: grpc.ServicerContext, send: _Send) -> None:
        name = self._received(requests, context).service
        if self._source.status(name) == "SERVICE_UNKNOWN":
            name = _UNKNOWN  # what a client calls it may be long, and is kept as long as the watch
        watch = _Watch(name, context.peer(), send, context)
        with self._lock:
            is_full = len(self._watches) >= WATCHES_MAX
            if is_full or self._connections[watch.connection] >= WATCHES_PER_CONNECTION_MAX:
                # With this answer gRPC's clients go on without watching.
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "too many watches")
            self._watches.add(watch)
            self._connections[watch.connection] += 1
            self._schedule(watch)
        if not context.add_callback(lambda: self._forget(watch)):
            self._forget(watch)

    def _received(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> _Request:
        self._waits.begin(context)
        try:
            data = next(requests, None)
        finally:
            self._waits.end(context)
        try:
            return _Request.FromString(b"" if data is None else data)
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no HealthCheckRequest")

    def _schedule(self, watch: _Watch) -> None:
        """Have a thread tell it, unless one does already. To be called with the lock held."""
        if not watch.is_busy:
            watch.is_busy = True
            self.threads.submit(self._tell, watch)

    def _tell(self, watch: _Watch) -> None:
        """Send what holds, until that is what it was told last; then, if all end, the end of the stream."""
        while True:
            with self._lock:
                status = self._source.status(watch.name)
                if status == watch.told or watch not in self._watches:
                    watch.is_busy = self._is_ending  # nothing follows the end
                    break
                watch.told = status
            self._waits.begin(watch.context)
            try:
                watch.send(_Response(status=status))
            finally:
                self._waits.end(watch.context)
        if watch.is_busy:
            watch.send(None)

    def _forget(self, watch: _Watch) -> None:
        with self._lock:
            if watch not in self._watches:
                return
            self._watches.remove(watch)
            self._connections[watch.connection] -= 1
            if not self._connections[watch.connection]:
                del self._connections[watch.connection]
            self._lock.notify_all()


_UNKNOWN = "\0"
"""Stands for every name that no service here has."""


def _on(pool: futures.ThreadPoolExecutor, method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, run on these threads."""

    def run(*arguments: Any) -> Any:
        return method(*arguments)

    run.experimental_thread_pool = pool  # type: ignore[attr-defined]  # read there by grpcio
    return run


def _holding_no_thread(stream: Callable[..., Any]) -> Callable[..., Any]:
    """Tell grpcio to pass, as a third argument, what sends a response, instead of iterating over responses."""
    stream.experimental_non_blocking = True  # type: ignore[attr-defined]  # read there by grpcio
    return stream
