"""A channel to another service: balanced over its healthy processes, with a deadline on every call.

If the other service refuses a call, the client raises the same ShopError. If there is no response, the client raises
Unavailable.
"""

import json
import re
import time
from collections.abc import Iterable
from typing import TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.trace import SpanKind

from shop_common.errors import ShopError
from shop_common.rpc.channel import ReloadingChannel
from shop_common.rpc.status import STATUS_KEY, RemoteUnavailable, from_status
from shop_common.rpc.tls import ReloadedCertificates
from shop_common.telemetry import metrics, tracing

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")

Header = tuple[str, str | bytes]
"""The name and the value of a header. The name is in lower case, and the value is ASCII text."""

TRIES_MAX = 5
"""gRPC allows at most 5 attempts. With the backoffs below they take about three seconds, enough for a restart."""

PATIENCE_SECONDS = 3.0
"""Calls wait this long for a service that has responded before. After that, they fail at once until it responds."""

RESPONSE_BYTES_MAX = 16 * 1024 * 1024

_seconds = metrics.histogram(
    __name__,
    "rpc_client_call_duration_seconds",
    "Time of a call of another service, its retries included",
    "rpc_method",
    "rpc_response_status_code",
)

_SCHEME = re.compile(r"(dns|xds):///|(ipv4|ipv6|unix|unix-abstract):")


class Client:
    """A connection to one service, shared by all threads. It connects at the first call.

    `target` is `host:port` or a gRPC target such as `ipv4:10.0.0.1:50053,10.0.0.2:50053`. Calls go to all its addresses
    in turn. Methods named in `repeatable` are retried if a process ends. A call may have committed before it fails with
    UNAVAILABLE, so name only methods that read, have a request_id, or check the state. `unavailable_reason` is the
    reason of this client's Unavailable, such as INVENTORY_UNAVAILABLE. With `certificates`, the connections use TLS.
    """

    def __init__(
        self,
        target: str,
        service: ServiceDescriptor,
        *,
        repeatable: Iterable[str],
        unavailable_reason: str,
        certificates: ReloadedCertificates | None = None,
    ) -> None:
        self._name = service.full_name
        self._unavailable_reason = unavailable_reason
        self._has_metrics = metrics.is_enabled()
        # Threads write these two fields without a lock. At worst, a call waits or fails although it should not.
        self._has_answered = False
        self._silent_since: float | None = None
        address = target if _SCHEME.match(target) else f"dns:///{target}"
        options = _options(service, repeatable)
        self.channel = (
            grpc.insecure_channel(address, options)
            if certificates is None
            else ReloadingChannel(address, options, certificates)
        )
        """The channel for the generated stub."""

    def call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout_seconds: float,
        traceparent: str | None = None,
        headers: tuple[Header, ...] = (),
    ) -> _Response:
        """Call a method of the stub. Continues the current trace, or else that of `traceparent`. Sends the headers.

        Raises the ShopError that the service raised. Raises an Unavailable if there was no response in time, or a
        response without a known reason: the call may have had its effect. While all processes of the service restart,
        calls wait up to PATIENCE_SECONDS for the first process. After that they fail at once.
        """
        # buf lint ensures that each request is named after its method.
        name = type(request).__name__.removesuffix("Request")
        path = f"{self._name}/{name}"
        attributes = {"rpc.system.name": "grpc", "rpc.method": path}
        parent = None if tracing.current_traceparent() else traceparent
        with tracing.span(path, SpanKind.CLIENT, parent=parent, attributes=attributes) as span:
            passed_on = tracing.current_traceparent() or traceparent
            metadata = (*headers, ("traceparent", passed_on)) if passed_on else headers
            begun = time.monotonic()
            try:
                answer = method(
                    request,
                    timeout=timeout_seconds,
                    metadata=metadata or None,
                    wait_for_ready=self._worth_waiting(begun),
                )
            except grpc.RpcError as error:
                code, meaning = self._code_and_meaning(error)
                span.set_attribute("rpc.response.status_code", code)
                span.set_attribute("error.type", meaning.reason)
                self._remember(begun, answered=not isinstance(meaning, RemoteUnavailable))
                self._observe(path, code, begun)
                raise meaning from error
            self._remember(begun, answered=True)
            self._observe(path, "OK", begun)
            return answer

    def close(self) -> None:
        """Close the connections. Cancels running calls."""
        self.channel.close()

    def _worth_waiting(self, now: float) -> bool:
        """Return whether a call should wait if no process is available, because the processes may be restarting."""
        silent_since = self._silent_since
        return self._has_answered and (silent_since is None or now - silent_since < PATIENCE_SECONDS)

    def _remember(self, begun: float, *, answered: bool) -> None:
        if answered:
            self._has_answered, self._silent_since = True, None
        elif self._silent_since is None:
            self._silent_since = begun

    def _observe(self, path: str, code: str, begun: float) -> None:
        if self._has_metrics:
            _seconds(path, code).observe(time.monotonic() - begun)

    def _code_and_meaning(self, error: object) -> tuple[str, ShopError]:
        assert isinstance(error, grpc.Call), "in grpcio, the error of a call is also the call"
        return error.code().name, self._meaning(error)

    def _meaning(self, error: grpc.Call) -> ShopError:
        for key, value in error.trailing_metadata() or ():
            if key == STATUS_KEY and isinstance(value, bytes):
                try:
                    return from_status(Status.FromString(value), unavailable_reason=self._unavailable_reason)
                except DecodeError:
                    break  # another program, such as a proxy, has set it; only the status code is known
        what = f"{self._name} did not answer: {error.code().name}"
        return RemoteUnavailable(what, self._unavailable_reason, {})


def _options(service: ServiceDescriptor, repeatable: Iterable[str]) -> list[tuple[str, str | int]]:
    names = [{"service": service.full_name, "method": service.methods_by_name[name].name} for name in repeatable]
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": service.full_name},
        "methodConfig": [
            {
                "name": names,
                "retryPolicy": {
                    "maxAttempts": TRIES_MAX,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    # A stopping server may end calls that it has not started with CANCELLED (grpc #41785).
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
        if names
        else [],
        # If most calls fail, retries would only add load. The limit is high enough to retry all calls of a process that
        # stops.
        "retryThrottling": {"maxTokens": 1000, "tokenRatio": 1},
    }
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_retries", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A process that has stopped in the middle keeps its connections open. Each new call restarts the time after
        # which a keepalive ping is sent, so that ping never comes. gRPC also sends pings to measure the connection, and
        # by default it waits a minute for their answer.
        ("grpc.http2.ping_timeout_ms", 5_000),
        # By default a channel waits up to two minutes before it connects to a restarted service again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    ]
