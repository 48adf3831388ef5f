"""Gives a servicer method the deadline and the trace of its call."""

import time

import grpc

from shop_common.telemetry import tracing

CALL_SECONDS_MAX = 30.0
"""The time limit of a call whose client sets a longer deadline or none."""


def deadline(context: grpc.ServicerContext) -> float:
    """Return the deadline of the call as a value of time.monotonic. It is at most CALL_SECONDS_MAX from now."""
    return time.monotonic() + min(context.time_remaining(), CALL_SECONDS_MAX)


def traceparent(context: grpc.ServicerContext) -> str | None:
    """Return the W3C traceparent of the call's span. Without a span, return that of the client, or else None."""
    return tracing.current_traceparent() or incoming_traceparent(context)


def incoming_traceparent(context: grpc.ServicerContext) -> str | None:
    """Return the W3C traceparent that the client sent, or None if it is absent or malformed."""
    for key, value in context.invocation_metadata():
        if key == "traceparent":
            return tracing.valid_traceparent(value if isinstance(value, str) else None)
    return None
