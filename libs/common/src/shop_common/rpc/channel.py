"""A channel with TLS whose certificates can be replaced while calls run.

gRPC's Python channels read certificates only once (grpc issue 41779). So when the files change, this channel connects
a new gRPC channel with the new certificates, uses it for new calls, and closes the old one after its last call. The old
one stays in use until the new one has connected, because the servers may not trust the new certificate yet.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import grpc

from shop_common.environment.certificates import Certificates
from shop_common.rpc.tls import CHECK_SECONDS, ReloadedCertificates, channel_credentials
from shop_common.telemetry import logs

CONNECT_SECONDS = 5.0

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Options = Sequence[tuple[str, str | int]]

_log = logs.get(__name__)


class ReloadingChannel(grpc.Channel):
    """A channel for unary calls, shared by all threads. It connects at the first call."""

    def __init__(self, target: str, options: _Options, certificates: ReloadedCertificates) -> None:
        self._target = target
        self._options = options
        self._certificates = certificates
        self._lock = threading.Lock()
        self._connection = self._connect(certificates.current())
        self._open = {self._connection}
        self._closed = threading.Event()
        self._is_delayed = False
        threading.Thread(target=self._watch, name=f"certificates {target}", daemon=True).start()

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[_Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], _Response] | None = None,
        _registered_method: bool | None = False,
    ) -> "grpc.UnaryUnaryMultiCallable[_Request, _Response]":
        return _Method(self, method, request_serializer, response_deserializer)

    def close(self) -> None:
        """Close the connections. Cancels running calls."""
        with self._lock:
            self._closed.set()
            while self._open:
                self._open.pop().channel.close()

    def __enter__(self) -> "ReloadingChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def in_use(self) -> Iterator["_Connection"]:
        """Yield the current connection. It stays open until the block ends."""
        with self._lock:
            connection = self._connection
            connection.calls += 1
        try:
            yield connection
        finally:
            with self._lock:
                connection.calls -= 1
                self._close_unused(connection)

    def _connect(self, certificates: Certificates) -> "_Connection":
        credentials = channel_credentials(certificates)
        options = self._options  # failpoint: server-name
        return _Connection(certificates, grpc.secure_channel(self._target, credentials, options=options))

    def _watch(self) -> None:
        while not self._closed.wait(CHECK_SECONDS):
            certificates = self._certificates.current()
            if certificates != self._connection.certificates:
                self._replace(certificates)

    def _replace(self, certificates: Certificates) -> None:
        new = self._connect(certificates)
        connected = grpc.channel_ready_future(new.channel)
        try:
            connected.result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            connected.cancel()
            new.channel.close()
            if not self._is_delayed:  # log once: `_watch` tries again every few seconds
                self._is_delayed = True
                _log.warning("cannot connect with new certificates yet; using the old ones", target=self._target)
            return
        self._is_delayed = False
        with self._lock:
            if self._closed.is_set():
                new.channel.close()
                return
            old, self._connection = self._connection, new
            self._open.add(new)
            self._close_unused(old)
        _log.info("connected with new certificates", target=self._target)

    def _close_unused(self, connection: "_Connection") -> None:
        """Close a replaced connection after its last call. The caller holds the lock."""
        if connection in self._open and connection is not self._connection and not connection.calls:
            self._open.remove(connection)
            connection.channel.close()

    # Clients of this package make unary calls only.

    def unary_stream(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    def stream_unary(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    def stream_stream(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    def subscribe(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    def unsubscribe(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError


class _Connection:
    """A gRPC channel, its certificates, and the number of calls that run on it."""

    def __init__(self, certificates: Certificates, channel: grpc.Channel) -> None:
        self.certificates = certificates
        self.channel = channel
        self.calls = 0
        self.methods: dict[str, Any] = {}


class _Method(grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # only the stubs are generic
    """A method of the service. Each call uses the connection that is current when it starts."""

    def __init__(self, channel: ReloadingChannel, path: str, serialize: Any, deserialize: Any) -> None:
        self._channel = channel
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize

    def __call__(self, request: Any, *arguments: Any, **options: Any) -> Any:
        with self._channel.in_use() as connection:
            return self._on(connection)(request, *arguments, **options)

    def with_call(self, request: Any, *arguments: Any, **options: Any) -> Any:
        with self._channel.in_use() as connection:
            return self._on(connection).with_call(request, *arguments, **options)

    def future(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    def _on(self, connection: _Connection) -> Any:
        method = connection.methods.get(self._path)
        if method is None:
            method = connection.channel.unary_unary(self._path, self._serialize, self._deserialize)
            connection.methods[self._path] = method
        return method
