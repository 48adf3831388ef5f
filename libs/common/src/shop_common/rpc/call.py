"""What a servicer method reads from its call besides the request: its caller, its deadline and its trace."""

import time
from contextvars import ContextVar

import grpc

from shop_common.identity.caller import ANYONE, Caller
from shop_common.telemetry import tracing

CALL_SECONDS_MAX = 30.0
"""The time limit of a call whose client sets no deadline."""


_caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)


def caller() -> Caller:
    """Who makes the call that this thread runs; ANYONE if identities are not checked."""
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """Set who makes the call that this thread runs from now on."""
    _caller.set(caller)


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
