"""The gRPC server of an API: admission, deadlines, decoding, errors, traces and metrics around each servicer method.

This is the way of every call, so its cost is the floor of every call's cost: what can be decided once per method
is decided once per method.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace
from opentelemetry.util.types import AttributeValue
from sqlalchemy import exc

from shop_common.db.database import cause_of, is_statement_error
from shop_common.environment.listen import opened
from shop_common.environment.settings import ApiSettings
from shop_common.errors import DatabaseUnavailable, InvalidInput, Overload, QueueFull, ShopError, Unavailable, Violation
from shop_common.rpc.call_pool import CallPool
from shop_common.rpc.health import Health, HealthServer
from shop_common.rpc.health_service import HEALTH_SERVICE
from shop_common.rpc.large_requests import LARGE_REQUEST_BYTES, LargeRequests
from shop_common.rpc.peer_waits import PeerWaits
from shop_common.rpc.status import STATUS_KEY, code_of, new_status, to_status
from shop_common.telemetry import logs, metrics, telemetry
from shop_common.telemetry.logs import LogRateLimiter

CALL_SECONDS_MAX = 30.0
"""The time a call has when its client sets no deadline."""

REQUEST_BYTES_MAX = 1024 * 1024
"""Twice the largest batch of reservations. Every thread may hold a message of this size."""

RESPONSE_BYTES_MAX = 4 * 1024 * 1024
"""What clients take by default. Lists are cut far below; this is the net under what nobody thought of."""

MESSAGE_SECONDS = 5.0
"""The time that a client has to send the message after the headers of its call."""

UNREAD_BYTES_MIN = 64 * 1024
UNREAD_ANSWERS_MAX = 64
"""Answers from UNREAD_BYTES_MIN on that clients have not read yet; beyond this the oldest is dropped with its call."""

QUIET_SECONDS = 2.0
"""When no call has run for so long, a stopping server closes the connections that are left."""

_STOP_POLL_SECONDS = 0.05
_WAITS_MIN = 8
_REFUSING_THREADS = 4

_log = logs.get(__name__)

_seconds = metrics.histogram(
    __name__,
    "rpc_server_call_duration_seconds",
    "Time from a call's start on a thread to its answer; its _count is the number of calls",
    "rpc_method",
    "rpc_response_status_code",
)
_errors = metrics.counter(
    __name__,
    "rpc_server_errors_total",
    "Calls that were refused or failed, by the reason that the caller was told",
    "rpc_method",
    "rpc_response_status_code",
    "error_type",
)

_Servicer = TypeVar("_Servicer")
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # in quotes, since only the stubs know its parameters
_FoundHandler: TypeAlias = "_Handler | None"
_Answer = Callable[[bytes, grpc.ServicerContext], bytes]
_Messages: TypeAlias = Iterator[bytes]
Describe = Callable[[Any], Mapping[str, AttributeValue]]


class Server:
    """A gRPC server with health and, if wanted, reflection. Nothing listens before `start`.

    Health is on the API's port, for clients, and on a port of its own, which answers whatever clients do to the other.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self.health = Health()
        self.port = 0
        self._settings = settings
        self._services: list[str] = []
        self._pool = CallPool(settings.grpc_threads)
        # Half of the threads may wait for messages; the others are left to calls whose message has arrived. With few
        # threads all may: calls that arrive together wait for a moment each, and must not end each other.
        waits_max = max(settings.grpc_threads // 2, min(settings.grpc_threads, _WAITS_MIN))
        self._waits = PeerWaits("message", calls_max=waits_max, seconds=MESSAGE_SECONDS, waits_for="its message")
        # An answer that is not read holds no thread, but its memory.
        self._unread = PeerWaits(
            "unread", calls_max=UNREAD_ANSWERS_MAX, seconds=CALL_SECONDS_MAX, waits_for="its answer to be read"
        )
        # Refusals have threads of their own: they must be told when all others are taken.
        self._refusing = futures.ThreadPoolExecutor(_REFUSING_THREADS, thread_name_prefix="refusing")
        self._gate = _Gate(self._pool, self._refusing, self._waits, self._unread, settings.calls_max)
        self._server = grpc.server(
            # grpcio asks of it nothing but `submit`.
            self._pool,  # type: ignore[arg-type]
            interceptors=[self._gate],
            options=_options(settings),
        )
        self._health_service = self.health.serve_on(self._server)
        self._health_server: HealthServer | None = None
        if not settings.is_worker:  # the parent of workers speaks for them all
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
        """Offer a service, by the generated function that adds it.

        Its methods raise ShopError for what the caller is told. They must not use `context.abort`: whatever else they
        raise is a defect, answered INTERNAL with an id that is also in the log. `describe` says what the span of a
        call tells of its request, and of its response.
        """
        self._gate.describe[service.full_name] = describe
        add_to_server(servicer, self._server)
        self._services.append(service.full_name)

    def start(self) -> None:
        """Open the port and answer; ready unless another part says otherwise. Raises PortBusy."""
        self.health.names.update(self._services)
        if self._settings.reflection:
            reflection.enable_server_reflection(
                (*self._services, HEALTH_SERVICE, reflection.SERVICE_NAME), self._server
            )
        self.port = opened(self._settings.listen_host, self._settings.grpc_port, self._server.add_insecure_port)
        if self._health_server is not None:
            self._health_server.start()
        self._waits.start()
        self._unread.start()
        self._server.start()
        self.health.set_ready("server", True)

    @property
    def health_port(self) -> int:
        """The port with nothing but health; 0 in a worker, whose parent has it."""
        return 0 if self._health_server is None else self._health_server.port

    def stop(self, grace_seconds: float) -> None:
        """Take no more calls; return when those running have ended, or after the grace, when they are cancelled.

        What has been answered may be read for QUIET_SECONDS more.
        Calls that arrive at this very moment may be cancelled (grpc #41785): drain first.
        """
        self._health_service.end_watches()
        stopped = self._server.stop(grace_seconds)
        quiet_since = time.monotonic()
        while not stopped.wait(_STOP_POLL_SECONDS):
            if self._pool.calls > self._waits.count:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > QUIET_SECONDS:
                # grpcio waits for clients to close their connections, and some never read that they should.
                stopped = self._server.stop(0)
        self._health_service.stop()
        self._waits.stop()
        self._unread.stop()
        self._pool.shutdown(wait=False)
        self._refusing.shutdown(wait=False)
        if self._health_server is not None:
            self._health_server.stop(0)


def deadline(context: grpc.ServicerContext) -> float:
    """When the call's time is up, by time.monotonic; at most CALL_SECONDS_MAX from now."""
    return time.monotonic() + min(context.time_remaining(), CALL_SECONDS_MAX)


def traceparent(context: grpc.ServicerContext) -> str | None:
    """The W3C traceparent to continue this call's trace with: of its span, else as the client sent it, else None."""
    return telemetry.current_traceparent() or _incoming_traceparent(context)


class _Gate(grpc.ServerInterceptor):
    """Decides for each call, before it takes a thread, whether it runs, and wraps each method once."""

    def __init__(
        self,
        pool: CallPool,
        refusing: futures.ThreadPoolExecutor,
        waits: PeerWaits,
        unread: PeerWaits,
        calls_max: int,
    ) -> None:
        self._pool = pool
        self._refusing = refusing
        self._waits = waits
        self._unread = unread
        self._calls_max = calls_max
        self._large = LargeRequests()
        self._ways: dict[str, tuple[_Handler, _Handler]] = {}
        self.describe: dict[str, Describe] = {}
        """By the full name of the service."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _FoundHandler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _FoundHandler:
        ways = self._ways.get(handler_call_details.method)
        if ways is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None  # UNIMPLEMENTED; not remembered, since callers choose the name
            ways = self._ways[handler_call_details.method] = self._wrap(handler_call_details.method, handler)
        run, refuse = ways
        # A call whose message has not come has a thread, and may keep it until others need it: it takes no one's place.
        return run if self._pool.calls - self._waits.count < self._calls_max else refuse

    def _wrap(self, path: str, handler: _Handler) -> tuple[_Handler, _Handler]:
        if path.startswith(f"/{HEALTH_SERVICE}/"):
            return handler, handler
        service, _, _ = path.lstrip("/").partition("/")
        describe = self.describe.get(service, lambda _message: {})
        method = _Method(path, self._waits, self._unread, self._large, describe)
        return method.running(handler), method.refusing(self._refusing)


@dataclass(frozen=True)
class _Failure:
    """How a call ends that does not succeed."""

    code: grpc.StatusCode
    status: Status
    reason: str
    is_ours: bool = False
    """Whether this process is to blame, or what it depends on, and not the caller."""
    error_id: str | None = None
    """Given to a defect, by which its traceback is found in the log."""


class _Method:
    """One method of the API: what is done around it, and how it is told of in logs, metrics and traces."""

    def __init__(
        self, path: str, waits: PeerWaits, unread: PeerWaits, large: LargeRequests, describe: Describe
    ) -> None:
        self._path = path
        self._waits = waits
        self._unread = unread
        self._large = large
        self._describe = describe
        self._method = path.lstrip("/")
        self._has_metrics = telemetry.metrics_wanted()
        self._log_limiter = LogRateLimiter()

    def running(self, handler: _Handler) -> _Handler:
        """The handler with everything around it; on the wire it stays what it is."""
        behave, decode, encode = handler.unary_unary, handler.request_deserializer, handler.response_serializer
        if behave is None or decode is None or encode is None:
            return self._streaming(handler)
        answer = self._answer(behave, decode, encode)
        answer_large = self._answer(behave, partial(self._large.decoded, decode), encode)
        tracer = telemetry.tracer()
        if tracer is not None:
            answer, answer_large = self._traced(answer, tracer), self._traced(answer_large, tracer)
        begin, end, in_turn = self._waits.begin, self._waits.end, self._in_turn

        def run(messages: _Messages, context: grpc.ServicerContext) -> bytes:
            began = time.monotonic()
            begin(context)
            try:
                data = next(messages, None)
            except grpc.RpcError:
                if not end(context):
                    self._count_ended(time.monotonic() - began)
                raise  # to grpcio, whose own signal it is: the call has ended
            end(context)
            if data is None:
                self._fail(_failure_of(InvalidInput([_NO_MESSAGE])), context, 0.0)
            return answer(data, context) if len(data) < LARGE_REQUEST_BYTES else in_turn(answer_large, data, context)

        # A stream of requests, although there is one: grpcio lets a unary handler wait for its message unseen.
        # Decoding and encoding happen in `answer`, where bytes that are no message are the caller's fault.
        return grpc.stream_unary_rpc_method_handler(run)

    def _in_turn(self, answer: _Answer, data: bytes, context: grpc.ServicerContext) -> bytes:
        with ExitStack() as turn:
            try:
                turn.enter_context(self._large.turn(len(data), deadline(context) - time.monotonic()))
            except QueueFull as full:
                self._fail(_failure_of(full), context, 0.0)
            return answer(data, context)

    def _streaming(self, handler: _Handler) -> _Handler:
        """A method that answers a stream by a stream (reflection): it may keep its thread only while both move."""
        behave: Any = handler.stream_stream
        waits = self._waits

        def watched(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            for message in messages:
                waits.begin(context)
                yield message

        def run(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            waits.begin(context)
            try:
                yield from behave(watched(messages, context), context)
            finally:
                waits.end(context)

        return grpc.stream_stream_rpc_method_handler(run, handler.request_deserializer, handler.response_serializer)

    def _count_ended(self, seconds: float) -> None:
        """Count a call that was ended since its message did not come."""
        if self._has_metrics:
            code = grpc.StatusCode.DEADLINE_EXCEEDED.name
            _seconds(self._method, code).observe(seconds)
            _errors(self._method, code, "MESSAGE_MISSING").inc()

    def refusing(self, pool: futures.ThreadPoolExecutor) -> _Handler:
        """A handler that says QUEUE_FULL, on threads of its own."""
        failure = _failure_of(QueueFull("the server has as many calls as it takes on; retry after a moment"))

        def refuse(_requests: Iterable[bytes], context: grpc.ServicerContext) -> NoReturn:
            self._fail(failure, context, 0.0)

        refuse.experimental_thread_pool = pool  # type: ignore[attr-defined]  # read there by grpcio
        # It does not wait for the message: a slow sender must not hold one of the few threads.
        return grpc.stream_unary_rpc_method_handler(refuse)

    def _answer(
        self,
        behave: Callable[[Any, grpc.ServicerContext], Any],
        decode: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
    ) -> _Answer:
        observe_success = _seconds(self._method, "OK").observe if self._has_metrics else None
        clock, describe = time.perf_counter, self._describe

        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            started = clock()
            request = None
            span = trace.get_current_span()
            try:
                if context.time_remaining() <= 0:
                    raise _DeadlinePassed
                try:
                    request = decode(data)
                except DecodeError:
                    raise InvalidInput([_UNREADABLE]) from None
                response = behave(request, context)
                if span.is_recording():
                    span.set_attributes({**describe(request), **describe(response)})
                encoded = encode(response)
                if len(encoded) >= UNREAD_BYTES_MIN:
                    self._take_care_of(encoded, context)
            except Exception as error:
                # What was found wrong may be of any length.
                if span.is_recording() and request is not None and not isinstance(error, InvalidInput):
                    span.set_attributes(describe(request))
                self._fail(_failure_of(error), context, clock() - started, error)
            if observe_success is not None:
                observe_success(clock() - started, _exemplar())
            return encoded

        return answer

    def _take_care_of(self, answer: bytes, context: grpc.ServicerContext) -> None:
        """Refuse an answer that clients do not take, and keep one only so long as may be until it is read."""
        if len(answer) > RESPONSE_BYTES_MAX:
            raise _AnswerTooLarge(len(answer))

        def end() -> None:
            self._unread.end(context)

        self._unread.begin(context)
        if not context.add_callback(end):
            end()

    def _traced(self, answer: _Answer, tracer: trace.Tracer) -> _Answer:
        attributes: dict[str, AttributeValue] = {
            "rpc.system.name": "grpc",
            "rpc.method": self._method,
            "rpc.response.status_code": "OK",  # overwritten by `_fail`
        }

        def traced(data: bytes, context: grpc.ServicerContext) -> bytes:
            with tracer.start_as_current_span(
                self._method,
                context=telemetry.remote_parent(_incoming_traceparent(context)),
                kind=trace.SpanKind.SERVER,
                attributes=attributes,
                # What ends the call is grpcio's own signal; `_fail` has written down the cause.
                record_exception=False,
                set_status_on_exception=False,
            ):
                return answer(data, context)

        return traced

    def _fail(
        self, failure: _Failure, context: grpc.ServicerContext, seconds: float, error: Exception | None = None
    ) -> NoReturn:
        """Tell of the failure in metrics, trace and log, then end the call with it."""
        if self._has_metrics:
            _seconds(self._method, failure.code.name).observe(seconds, _exemplar())
            _errors(self._method, failure.code.name, failure.reason).inc()
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute("rpc.response.status_code", failure.code.name)
            span.set_attribute("error.type", failure.reason)
            if failure.is_ours:
                span.set_status(trace.StatusCode.ERROR, failure.status.message)
        self._write(failure, context, error)
        context.set_trailing_metadata(((STATUS_KEY, failure.status.SerializeToString()),))
        context.abort(failure.code, failure.status.message)

    def _write(self, failure: _Failure, context: grpc.ServicerContext, error: Exception | None) -> None:
        about: dict[str, Any] = {"method": self._path}
        # With traces on, the span of this call is named in each line already.
        if telemetry.tracer() is None and (traceparent := _incoming_traceparent(context)) is not None:
            _, about["trace_id"], about["span_id"], _ = traceparent.split("-")
        if failure.error_id is not None:
            _log.error("call failed", error_id=failure.error_id, exc_info=error, **about)
            return
        unwritten = self._log_limiter.admit(failure.reason)
        if unwritten is None:
            return
        if unwritten:
            about["unwritten_before"] = unwritten
        if isinstance(error, DatabaseUnavailable) and error.__cause__ is not None:
            about["cause"] = cause_of(error)  # names the file or table; the caller is told of neither
        write = _log.warning if failure.is_ours else _log.info
        write(
            "call refused",
            code=failure.code.name,
            reason=failure.reason,
            message=failure.status.message,
            **about,
        )


class _AnswerTooLarge(Exception):
    """The answer is larger than clients take. If the call was a change, it was made."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the answer has {size} bytes, of at most {RESPONSE_BYTES_MAX}: ask for less at once")


class _DeadlinePassed(Exception):
    """The client has stopped waiting; the call was not executed."""


_NO_MESSAGE = Violation("request", "is missing: the call ended without a message")
_UNREADABLE = Violation("request", "its bytes are not a message of this method, or hold text that is not UTF-8")


def _failure_of(error: Exception) -> _Failure:
    """How a call ends that raised this. The way of defects is the last one."""
    if isinstance(error, ShopError):
        status = to_status(error)
        return _Failure(code_of(error), status, error.reason, is_ours=isinstance(error, Overload | Unavailable))
    if isinstance(error, exc.TimeoutError) or (
        isinstance(error, exc.OperationalError) and not is_statement_error(error)
    ):
        # `database` translates these; whatever slips past it is still no defect of the request.
        return _failure_of(DatabaseUnavailable("the database did not answer"))
    if isinstance(error, _AnswerTooLarge):
        code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE"
        return _Failure(code, new_status(code, str(error), reason), reason, is_ours=True)
    if isinstance(error, _DeadlinePassed):
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        return _Failure(code, new_status(code, "the deadline passed while the call waited", code.name), code.name)
    error_id = secrets.token_hex(8)
    code = grpc.StatusCode.INTERNAL
    status = new_status(code, f"internal error {error_id}", code.name, {"error_id": error_id})
    return _Failure(code, status, code.name, is_ours=True, error_id=error_id)


def _exemplar() -> dict[str, str] | None:
    """By which a dashboard finds the trace behind a point; None for a call that is not recorded."""
    span = telemetry.sampled_span()
    return None if span is None else {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def _incoming_traceparent(context: grpc.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata():
        if key == "traceparent":
            return telemetry.well_formed(value if isinstance(value, str) else None)
    return None


def _options(settings: ApiSettings) -> Sequence[tuple[str, int]]:
    minute_ms = 60_000
    return (
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_concurrent_streams", settings.streams_max),
        ("grpc.max_allowed_incoming_connections", settings.connections_max),
        # A connection that does not say within this time that it speaks HTTP/2 is closed.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
        # Idle and old connections are closed with GOAWAY: clients find new processes, and dead peers are forgotten.
        ("grpc.max_connection_idle_ms", 5 * minute_ms),
        ("grpc.max_connection_age_ms", 10 * minute_ms),
        ("grpc.max_connection_age_grace_ms", minute_ms),
        ("grpc.keepalive_time_ms", minute_ms),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ping every 10 s, also between calls, before they are taken for a flood.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # Pings that a busy machine held up come in a crowd: no reason to cut off a client in the middle of its calls.
        ("grpc.http2.max_ping_strikes", 0),
    )
