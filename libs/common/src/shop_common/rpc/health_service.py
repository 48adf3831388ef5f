"""grpc.health.v1 on one server.

A peer that sends slowly or does not read never blocks a lock, and never delays another peer.
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
# More threads than calls that may wait for a peer, so that one thread is always free for the next call.
_THREADS = _WAITS_MAX + 4
_END_SECONDS = 1.0
_QUOTED_MAX = 200

_Request = health_pb2.HealthCheckRequest
_Response = health_pb2.HealthCheckResponse
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # in quotes, since only the stubs know its parameters
_Send = Callable[[_Response | None], None]


class Source(Protocol):
    """Reports the health of the process."""

    def status(self, name: str) -> str: ...


@dataclass(eq=False)
class _Watch:
    """The stream of one Watch call."""

    name: str
    connection: str
    send: _Send
    context: grpc.ServicerContext
    sent: str = ""
    """The last status that was sent to the watch."""
    is_busy: bool = False
    """Whether a thread is sending to the watch, or is scheduled to do so."""


class HealthService:
    """Check and Watch of grpc.health.v1, on their own threads.

    Unlike grpcio's servicer, this class limits the number of watches, ends them when the server stops, and sends to
    each watch independently. If a client does not read for PEER_SECONDS, its watch is ended. Other watches are not
    delayed.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.threads = futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="health")
        self._waits = PeerWaits("health", calls_max=_WAITS_MAX, seconds=PEER_SECONDS, waits_for="the client")
        # Protects the watches. No thread may hold this lock while it sends.
        self._lock = threading.Condition()
        self._watches: set[_Watch] = set()
        self._connections: Counter[str] = Counter()
        self._is_ending = False

    def add_to(self, server: grpc.Server) -> None:
        """Serve on this server."""
        # Check takes a stream, although there is one request: in a unary handler, grpcio would wait for the request
        # without a limit.
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
        """Schedule sending the current status to all watches. Returns at once."""
        with self._lock:
            for watch in self._watches:
                self._schedule(watch)

    def is_publishing(self) -> bool:
        """Return whether a thread is still sending the current status to a watch, or is scheduled to do so."""
        with self._lock:
            return any(watch.is_busy for watch in self._watches)

    def end_watches(self) -> None:
        """Send the current status to all watches, then end them. Takes about a second if clients do not read."""
        with self._lock:
            self._is_ending = True
            for watch in self._watches:
                self._schedule(watch)
            self._lock.wait_for(lambda: not self._watches, _END_SECONDS)
            unread = list(self._watches)
        for watch in unread:
            watch.context.cancel()

    def stop(self) -> None:
        """End the threads. Call it after the server has stopped."""
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
            name = _UNKNOWN  # the client's name may be long, and the watch would keep it in memory
        watch = _Watch(name, context.peer(), send, context)
        with self._lock:
            is_full = len(self._watches) >= WATCHES_MAX
            if is_full or self._connections[watch.connection] >= WATCHES_PER_CONNECTION_MAX:
                # After UNIMPLEMENTED, gRPC clients use the connection without watching its health.
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
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not a HealthCheckRequest")

    def _schedule(self, watch: _Watch) -> None:
        """Schedule sending the status to the watch, unless it is scheduled already. The caller holds the lock."""
        if not watch.is_busy:
            watch.is_busy = True
            self.threads.submit(self._send, watch)

    def _send(self, watch: _Watch) -> None:
        """Send the status until the last one sent is the current one. Then, if watches are ending, end the stream."""
        while True:
            with self._lock:
                status = self._source.status(watch.name)
                if status == watch.sent or watch not in self._watches:
                    watch.is_busy = self._is_ending  # after the end of a stream, nothing may be sent
                    break
                watch.sent = status
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
"""Replaces every unknown service name."""


def _on(pool: futures.ThreadPoolExecutor, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the method. grpcio runs the function on the threads of the pool."""

    def run(*arguments: Any) -> Any:
        return method(*arguments)

    run.experimental_thread_pool = pool  # type: ignore[attr-defined]  # read there by grpcio
    return run


def _holding_no_thread(stream: Callable[..., Any]) -> Callable[..., Any]:
    """Make grpcio pass a function that sends responses as a third argument, instead of iterating over responses."""
    stream.experimental_non_blocking = True  # type: ignore[attr-defined]  # read there by grpcio
    return stream
