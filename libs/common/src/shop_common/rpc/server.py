"""The gRPC server of an API: its port, its limits, and the admission of calls. `method` wraps each servicer method."""

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection

from shop_common.environment.process_settings import ApiSettings
from shop_common.identity.authenticator import Authenticator
from shop_common.identity.rate import Buckets
from shop_common.identity.rules import Rule, rules_of
from shop_common.rpc import tls
from shop_common.rpc.access import Access
from shop_common.rpc.call import CALL_SECONDS_MAX
from shop_common.rpc.call_pool import CallPool
from shop_common.rpc.health import Health, HealthServer
from shop_common.rpc.health_service import HEALTH_SERVICE
from shop_common.rpc.large_requests import LargeRequests
from shop_common.rpc.method import Describe, Handler, Method
from shop_common.rpc.peer_waits import PeerWaits
from shop_common.rpc.sharers import Sharers

REQUEST_BYTES_MAX = 1024 * 1024
"""The limit is twice the size of the largest batch of reservations. Every thread may hold a message of this size."""

MESSAGE_SECONDS = 5.0
"""The longest time that a client may take to send the message after the headers of its call."""

UNREAD_ANSWERS_MAX = 64
"""The maximum number of large responses that clients have not read. Beyond it, the call that waits longest is ended."""

QUIET_SECONDS = 2.0
"""A stopping server closes the remaining connections when no call has run for this time."""

_STOP_POLL_SECONDS = 0.05
_WAITS_MIN = 8

_Servicer = TypeVar("_Servicer")
_FoundHandler: TypeAlias = "Handler | None"


class Server:
    """A gRPC server with health and, if configured, reflection. Nothing listens before `start`.

    Health is served on the port of the API for clients, and on a separate port for probes, so that load on the API
    cannot block probes. With an authenticator, every call except those of health and reflection must come from a caller
    with the permission that the contract demands.
    """

    def __init__(self, settings: ApiSettings, authenticator: Authenticator | None = None) -> None:
        self.health = Health()
        self.port = 0
        self._settings = settings
        self._services: list[str] = []
        # Half of the threads may wait for messages. The other half is for calls whose message has arrived. If there are
        # few threads, all of them may wait: calls that arrive together wait only briefly and must not end each other.
        waits_max = max(settings.grpc_threads // 2, min(settings.grpc_threads, _WAITS_MIN))
        self._waits = PeerWaits("message", calls_max=waits_max, seconds=MESSAGE_SECONDS, waits_for="its message")
        self._pool = CallPool(
            settings.grpc_threads, settings.calls_max, self._waits, Sharers() if authenticator else None
        )
        # An unread response uses memory, but no thread.
        self._unread = PeerWaits(
            "unread", calls_max=UNREAD_ANSWERS_MAX, seconds=CALL_SECONDS_MAX, waits_for="its answer to be read"
        )
        self._methods = _Methods(self._pool, self._waits, self._unread, authenticator)
        self._server = grpc.server(
            # grpcio uses only `submit`.
            self._pool,  # type: ignore[arg-type]
            interceptors=[self._methods],
            options=_options(settings),
        )
        self._health_service = self.health.serve_on(self._server)
        self._health_server: HealthServer | None = None
        if not settings.is_worker:  # the parent reports the health of its workers
            self._health_server = HealthServer(
                settings.health_port, listen_host=settings.listen_host, health=self.health
            )

    def add(
        self,
        service: ServiceDescriptor,
        add_to_server: Callable[[_Servicer, grpc.Server], None],
        servicer: _Servicer,
        *,
        describe: Describe = lambda _message: {},
    ) -> None:
        """Add a service with the generated function `add_to_server`. Raises RuleMissing.

        The servicer's methods raise ShopError for errors that callers should receive. Any other exception is a defect:
        the caller gets INTERNAL, with an id that is also in the log. So methods must not use `context.abort`, which
        raises an exception of its own.
        """
        self._methods.rules.update(rules_of(service))
        self._methods.describe[service.full_name] = describe
        add_to_server(servicer, self._server)
        self._services.append(service.full_name)

    def start(self) -> None:
        """Open the port, serve, and report the component `server` as ready. Raises PortBusy or CertificateError."""
        self.health.names.update(self._services)
        if self._settings.reflection:
            reflection.enable_server_reflection(
                (*self._services, HEALTH_SERVICE, reflection.SERVICE_NAME), self._server
            )
        self.port = tls.open_port(self._server, self._settings)
        if self._health_server is not None:
            self._health_server.start()
        self._waits.start()
        self._unread.start()
        self._server.start()
        self.health.set_ready("server", True)

    @property
    def health_port(self) -> int:
        """Return the port that serves only health; 0 in a worker, since its parent has that port."""
        return 0 if self._health_server is None else self._health_server.port

    def stop(self, grace_seconds: float) -> None:
        """Accept no more calls. Return when the running calls have ended; cancel them after `grace_seconds`.

        Clients have QUIET_SECONDS more to read the last responses. Drain before you stop the server: a call that
        arrives while it stops may be cancelled (grpc #41785).
        """
        self._health_service.end_watches()
        stopped = self._server.stop(grace_seconds)
        quiet_since = time.monotonic()
        while not stopped.wait(_STOP_POLL_SECONDS):
            if self._pool.calls > self._waits.count:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > QUIET_SECONDS:
                # grpcio waits for clients to close their connections. Some clients never read the request to do so.
                stopped = self._server.stop(0)
        self._health_service.stop()
        self._waits.stop()
        self._unread.stop()
        self._pool.shutdown(wait=False)
        if self._health_server is not None:
            self._health_server.stop(0)


class _Methods(grpc.ServerInterceptor):
    """Wraps each method once."""

    def __init__(
        self, pool: CallPool, waits: PeerWaits, unread: PeerWaits, authenticator: Authenticator | None
    ) -> None:
        self._pool = pool
        self._waits = waits
        self._unread = unread
        self._authenticator = authenticator
        self._large = LargeRequests(pool.is_shared)
        self._buckets = Buckets()
        self._handlers: dict[str, Handler] = {}
        """By the method's path."""
        self.describe: dict[str, Describe] = {}
        """By the full name of the service."""
        self.rules: dict[str, Rule] = {}
        """By the method's path."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _FoundHandler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _FoundHandler:
        path = handler_call_details.method
        wrapped = self._handlers.get(path)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None  # UNIMPLEMENTED; not stored, because callers could fill the memory with names
            wrapped = self._handlers[path] = self._wrap(path, handler)
        return wrapped

    def _wrap(self, path: str, handler: Handler) -> Handler:
        if path.startswith(f"/{HEALTH_SERVICE}/"):
            return handler
        service, _, _ = path.lstrip("/").partition("/")
        describe = self.describe.get(service, lambda _message: {})
        rule = self.rules.get(path)  # reflection has no rule
        access = Access(rule, self._authenticator, self._pool, self._buckets) if rule and self._authenticator else None
        return Method(path, self._waits, self._unread, self._large, describe, access=access).running(handler)


def _options(settings: ApiSettings) -> Sequence[tuple[str, int]]:
    minute_ms = 60_000
    return (
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_concurrent_streams", settings.streams_max),
        ("grpc.max_allowed_incoming_connections", settings.connections_max),
        # A connection that does not start HTTP/2 within this time is closed.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
        # Close idle and old connections with GOAWAY, so that clients find new processes and dead peers are dropped.
        ("grpc.max_connection_idle_ms", 5 * minute_ms),
        ("grpc.max_connection_age_ms", 10 * minute_ms),
        ("grpc.max_connection_age_grace_ms", minute_ms),
        ("grpc.keepalive_time_ms", minute_ms),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may send a ping every 10 s, also between calls.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # A busy machine delivers delayed pings all at once. Do not disconnect a client for that during its calls.
        ("grpc.http2.max_ping_strikes", 0),
    )
