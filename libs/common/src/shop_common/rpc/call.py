"""What a servicer method reads from its call besides the request: its deadline and its trace."""

import time

import grpc

from shop_common.telemetry import tracing

CALL_SECONDS_MAX = 30.0
"""The time limit of a call whose client sets no deadline."""


def deadline(context: grpc.ServicerContext) -> float:
    """The deadline of the call, as a value of time.monotonic; at most CALL_SECONDS_MAX from now."""
    return time.monotonic() + min(context.time_remaining(), CALL_SECONDS_MAX)


def traceparent(context: grpc.ServicerContext) -> str | None:
    """The W3C traceparent under which this call's work continues: its span's, else the client's, else None."""
    return tracing.current_traceparent() or incoming_traceparent(context)


def incoming_traceparent(context: grpc.ServicerContext) -> str | None:
    """The W3C traceparent that the client sent; None if it sent none or a malformed one."""
    for key, value in context.invocation_metadata():
        if key == "traceparent":
            return tracing.valid_traceparent(value if isinstance(value, str) else None)
    return None
