"""The parts that both clients share: service config, credentials, headers, and the pauses between retries."""

import json
import random
import re
import sys
import time

import grpc

from shop_client.settings import Settings, Tls

TRIES_MAX = 5
"""gRPC allows at most 5 attempts. With the backoffs below they take about three seconds."""

RESPONSE_BYTES_MAX = 16 * 1024 * 1024

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 1.0
"""The pauses of our own retries, which follow when gRPC's attempts have failed."""

Metadata = tuple[tuple[str, str], ...]

_SCHEME = re.compile(r"(dns|xds):///|(ipv4|ipv6|unix|unix-abstract):")


def address(target: str) -> str:
    """Return the target for gRPC. A name is resolved to all its addresses."""
    return target if _SCHEME.match(target) else f"dns:///{target}"


def options(service: str) -> list[tuple[str, str | int]]:
    """Return the options of a channel that only calls this service."""
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": service},
        "methodConfig": [
            {
                # All RPCs may be repeated: those that change something have a request_id or check the state.
                "name": [{"service": service}],
                "retryPolicy": {
                    "maxAttempts": TRIES_MAX,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    # A stopping server may end calls that it has not started with CANCELLED (grpc #41785).
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
        # If most calls fail, retries would only add load.
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
        # Connections of the parent process must not be shared with a child after a fork.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def targets(settings: Settings, inventory_service: str, order_service: str) -> dict[str, str]:
    """Return the address of each service."""
    return {
        inventory_service: address(settings.inventory_target),
        order_service: address(settings.order_target),
    }


def credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Read the files and return the credentials of a channel. Raises OSError."""
    authorities, key, chain = (
        path.read_bytes() if path is not None else None for path in (tls.ca_path, tls.key_path, tls.cert_path)
    )
    return grpc.ssl_channel_credentials(authorities, key, chain)


def headers(token: str, traceparent: str = "") -> Metadata:
    """Return the headers of a call: the token, and the trace that the call continues."""
    authorization = (("authorization", f"Bearer {token}"),) if token else ()
    return (*authorization, ("traceparent", traceparent)) if traceparent else authorization


def current_traceparent() -> str:
    """Return the W3C traceparent of the current span of OpenTelemetry, or '' without OpenTelemetry or a span."""
    # The caller's program has imported OpenTelemetry if it uses it. This package does not depend on it.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


class Pauses:
    """The pauses between the attempts of one call: exponential, with jitter, until the deadline.

    `deadline` is a value of time.monotonic.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._longest = PAUSE_SECONDS_MIN

    def next(self) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the deadline comes first."""
        pause = random.uniform(self._longest / 2, self._longest)
        self._longest = min(2 * self._longest, PAUSE_SECONDS_MAX)
        return pause if time.monotonic() + pause < self._deadline else None

    def after(self, error: Exception) -> float:
        """Return the seconds to wait before the next attempt. Raises the error if the deadline comes first."""
        pause = self.next()
        if pause is None:
            raise error
        return pause
