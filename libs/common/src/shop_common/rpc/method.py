"""Wraps each servicer method: receives and decodes the request, encodes the response, handles errors and telemetry.

Every call runs this code. So work that is the same for all calls of a method is done once, when the method is wrapped.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from shop_common.db.database import cause_of
from shop_common.errors import (
    DatabaseUnavailable,
    InvalidInput,
    PermissionDenied,
    QueueFull,
    ShopError,
    Unauthenticated,
    Violation,
)
from shop_common.rpc.access import Access
from shop_common.rpc.call import deadline, incoming_traceparent
from shop_common.rpc.call_pool import is_refusing
from shop_common.rpc.failure import DeadlinePassed, Failure, ResponseTooLarge, failure_of
from shop_common.rpc.large_requests import LARGE_REQUEST_BYTES, LargeRequests
from shop_common.rpc.peer_waits import PeerWaits
from shop_common.rpc.status import STATUS_KEY
from shop_common.rpc.tls import spiffe_id
from shop_common.telemetry import logs, metrics, tracing
from shop_common.telemetry.logs import LogRateLimiter

RESPONSE_BYTES_MAX = 4 * 1024 * 1024
"""The largest response that clients accept by default. Pages of lists are far smaller than this limit."""

UNREAD_BYTES_MIN = 64 * 1024
"""Unread responses of at least this size are limited in number and time."""

_LOGGED_CHARACTERS_MAX = 256
"""The most characters of a caller's name in a log line. Providers and certificates choose these names."""

_log = logs.get(__name__)

_seconds = metrics.histogram(
    __name__,
    "rpc_server_call_duration_seconds",
    "Time from a call's start on a thread to its response; its _count is the number of calls",
    "rpc_method",
    "rpc_response_status_code",
)
_errors = metrics.counter(
    __name__,
    "rpc_server_errors_total",
    "Calls that were refused or failed, by the reason in their status",
    "rpc_method",
    "rpc_response_status_code",
    "error_type",
)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # in quotes, since only the stubs know its parameters
Describe = Callable[[Any], Mapping[str, AttributeValue]]
"""Returns the span attributes of a request or a response."""
_Respond = Callable[[bytes, grpc.ServicerContext], bytes]


class Method:
    """One method of the API. Without `access`, anyone may call it."""

    def __init__(
        self,
        path: str,
        waits: PeerWaits,
        unread: PeerWaits,
        large: LargeRequests,
        describe: Describe,
        *,
        access: Access | None,
    ) -> None:
        self._path = path
        self._waits = waits
        self._unread = unread
        self._large = large
        self._describe = describe
        self._access = access
        self._method = path.lstrip("/")
        self._has_metrics = metrics.is_enabled()
        self._log_limiter = LogRateLimiter()

    def running(self, handler: Handler) -> Handler:
        """Wrap the servicer's handler. For clients the method stays the same."""
        behave, decode, encode = handler.unary_unary, handler.request_deserializer, handler.response_serializer
        if behave is None or decode is None or encode is None:
            return self._streaming(handler)
        respond = self._respond(behave, decode, encode)
        respond_large = self._respond(behave, partial(self._large.decoded, decode), encode)
        tracer = tracing.tracer()
        if tracer is not None:
            respond, respond_large = self._traced(respond, tracer), self._traced(respond_large, tracer)
        begin, end, in_turn = self._waits.begin, self._waits.end, self._in_turn
        access = self._access

        def run(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            if is_refusing():
                # Do not wait for the message: a slow sender must not block one of the few threads.
                self._fail(_TOO_MANY_CALLS, context, 0.0)
            began = time.monotonic()
            if access is not None:
                # Check the caller before reading the message, so that a caller without permission costs little.
                try:
                    access.check_caller(context)
                except ShopError as refusal:
                    self._fail(failure_of(refusal), context, 0.0, refusal)
            begin(context)
            try:
                data = next(messages, None)
            except grpc.RpcError:
                if not end(context):
                    self._count_ended(time.monotonic() - began)
                raise  # grpcio's own signal that the call has ended
            end(context)
            if data is None:
                self._fail(failure_of(InvalidInput([_NO_MESSAGE])), context, 0.0)
            return respond(data, context) if len(data) < LARGE_REQUEST_BYTES else in_turn(respond_large, data, context)

        # The handler takes a stream, although there is one request: in a unary handler grpcio itself waits for the
        # message, without a limit. `respond` decodes the bytes, and reports malformed bytes as the caller's error.
        return grpc.stream_unary_rpc_method_handler(run)

    def _in_turn(self, respond: _Respond, data: bytes, context: grpc.ServicerContext) -> bytes:
        with ExitStack() as turn:
            try:
                turn.enter_context(self._large.turn(len(data), deadline(context) - time.monotonic()))
            except QueueFull as full:
                self._fail(failure_of(full), context, 0.0)
            return respond(data, context)

    def _streaming(self, handler: Handler) -> Handler:
        """Wrap a method with streams in both directions (reflection). Ends calls without progress, to free threads."""
        behave: Any = handler.stream_stream
        waits = self._waits

        def watched(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            for message in messages:
                waits.begin(context)
                yield message

        def run(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            if is_refusing():
                self._fail(_TOO_MANY_CALLS, context, 0.0)
            waits.begin(context)
            try:
                yield from behave(watched(messages, context), context)
            finally:
                waits.end(context)

        return grpc.stream_stream_rpc_method_handler(run, handler.request_deserializer, handler.response_serializer)

    def _respond(
        self,
        behave: Callable[[Any, grpc.ServicerContext], Any],
        decode: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
    ) -> _Respond:
        observe_success = _seconds(self._method, "OK").observe if self._has_metrics else None
        clock, describe, access = time.perf_counter, self._describe, self._access

        def respond(data: bytes, context: grpc.ServicerContext) -> bytes:
            started = clock()
            request = None
            span = trace.get_current_span()
            try:
                if context.time_remaining() <= 0:
                    raise DeadlinePassed
                try:
                    request = decode(data)
                except DecodeError:
                    raise InvalidInput([_UNREADABLE]) from None
                if access is not None:
                    access.check_request(request)
                response = behave(request, context)
                if span.is_recording():
                    span.set_attributes({**describe(request), **describe(response)})
                encoded = encode(response)
                if len(encoded) >= UNREAD_BYTES_MIN:
                    self._bound_unread(encoded, context)
            except Exception as error:
                # Do not describe an invalid request in the span: its values may have any length.
                if span.is_recording() and request is not None and not isinstance(error, InvalidInput):
                    span.set_attributes(describe(request))
                self._fail(failure_of(error), context, clock() - started, error)
            if observe_success is not None:
                observe_success(clock() - started, _exemplar())
            return encoded

        return respond

    def _bound_unread(self, response: bytes, context: grpc.ServicerContext) -> None:
        """Refuse a response that is too large for clients, and limit the time until the client has read it."""
        if len(response) > RESPONSE_BYTES_MAX:
            raise ResponseTooLarge(len(response), RESPONSE_BYTES_MAX)

        def end() -> None:
            self._unread.end(context)

        self._unread.begin(context)
        if not context.add_callback(end):
            end()

    def _traced(self, respond: _Respond, tracer: trace.Tracer) -> _Respond:
        attributes: dict[str, AttributeValue] = {
            "rpc.system.name": "grpc",
            "rpc.method": self._method,
            "rpc.response.status_code": "OK",  # `_fail` overwrites it
        }

        def traced(data: bytes, context: grpc.ServicerContext) -> bytes:
            with tracer.start_as_current_span(
                self._method,
                context=tracing.remote_context(incoming_traceparent(context)),
                kind=trace.SpanKind.SERVER,
                attributes=attributes,
                # The exception raised here is grpcio's own signal; `_fail` has recorded the cause.
                record_exception=False,
                set_status_on_exception=False,
            ):
                return respond(data, context)

        return traced

    def _count_ended(self, seconds: float) -> None:
        """Count a call that was ended because its message did not arrive."""
        if self._has_metrics:
            code = grpc.StatusCode.DEADLINE_EXCEEDED.name
            _seconds(self._method, code).observe(seconds)
            _errors(self._method, code, "MESSAGE_MISSING").inc()

    def _fail(
        self, failure: Failure, context: grpc.ServicerContext, seconds: float, error: Exception | None = None
    ) -> NoReturn:
        """Record the failure in metrics, trace and log, then end the call with it."""
        if self._has_metrics:
            _seconds(self._method, failure.code.name).observe(seconds, _exemplar())
            _errors(self._method, failure.code.name, failure.reason).inc()
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute("rpc.response.status_code", failure.code.name)
            span.set_attribute("error.type", failure.reason)
            if failure.is_ours:
                span.set_status(trace.StatusCode.ERROR, failure.status.message)
        self._write_log(failure, context, error)
        context.set_trailing_metadata(((STATUS_KEY, failure.status.SerializeToString()),))
        context.abort(failure.code, failure.status.message)

    def _write_log(self, failure: Failure, context: grpc.ServicerContext, error: Exception | None) -> None:
        fields: dict[str, Any] = {"method": self._path}
        # If tracing is on, each log line already has the ids of this call's span.
        if tracing.tracer() is None and (traceparent := incoming_traceparent(context)) is not None:
            _, fields["trace_id"], fields["span_id"], _ = traceparent.split("-")
        if failure.error_id is not None:
            _log.error("call failed", error_id=failure.error_id, exc_info=error, **fields)
            return
        unwritten = self._log_limiter.admit(failure.reason)
        if unwritten is None:
            return
        if unwritten:
            fields["unwritten_before"] = unwritten
        fields |= _about_caller(error, context)
        if isinstance(error, DatabaseUnavailable) and error.__cause__ is not None:
            fields["cause"] = cause_of(error)  # it names the file or table, which callers must not see
        write = _log.warning if failure.is_ours else _log.info
        write(
            "call refused",
            code=failure.code.name,
            reason=failure.reason,
            message=failure.status.message,
            **fields,
        )


_TOO_MANY_CALLS = failure_of(QueueFull("the server has too many calls; retry in a moment"))
_NO_MESSAGE = Violation("request", "is missing: the call ended without a message")
_UNREADABLE = Violation("request", "its bytes are not a message of this method, or hold text that is not UTF-8")


def _about_caller(error: Exception | None, context: grpc.ServicerContext) -> dict[str, str]:
    """Return the log fields that identify the caller, for a call that is refused because of its caller.

    They never contain any part of a token. A caller that is not authenticated has only the address of its connection,
    and the id in its certificate if it has one.
    """
    if isinstance(error, PermissionDenied):
        return {"caller": error.caller[:_LOGGED_CHARACTERS_MAX], "tenant": error.tenant}
    if isinstance(error, Unauthenticated):
        certificate = spiffe_id(context.auth_context())
        of_certificate = {"certificate": certificate[:_LOGGED_CHARACTERS_MAX]} if certificate else {}
        return {"peer": context.peer()[:_LOGGED_CHARACTERS_MAX], **of_certificate}
    return {}


def _exemplar() -> dict[str, str] | None:
    """Return the ids with which a dashboard finds the trace of a data point. None if the call is not traced."""
    span = tracing.sampled_span()
    return None if span is None else {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
