"""The server's handling of calls, over a real connection."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from sqlalchemy import exc

from libs.common.tests.echo_service import METHOD, SERVICE, Echo, EchoSettings, serving
from shop_common.errors import InvalidInput, Refused, Violation
from shop_common.rpc.call import CALL_SECONDS_MAX, deadline, traceparent
from shop_common.rpc.health import LIVENESS, HealthServer
from shop_common.rpc.large_requests import LARGE_REQUEST_BYTES, WAITING_BYTES_MAX
from shop_common.rpc.method import RESPONSE_BYTES_MAX
from shop_common.rpc.status import STATUS_KEY
from testkit.eventually import eventually

_Detail = TypeVar("_Detail", bound=Message)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TooHeavy(Refused):
    reason = "TOO_HEAVY"

    def metadata(self) -> dict[str, str]:
        return {"grams": "31000"}


def echo(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
    return request


def raising(error: Exception) -> Callable[[StringValue, grpc.ServicerContext], StringValue]:
    def behave(_request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        raise error

    return behave


class Gate:
    """A behaviour that blocks every call until it is opened, and records which calls ran."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self._opened = threading.Event()

    def __call__(self, request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        self.entered.append(request.value)
        assert self._opened.wait(20)
        return request

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def test_a_call_is_answered() -> None:
    with serving(echo) as running:
        assert running.call("hello") == "hello"
        assert running.call("") == ""


def test_a_refusal_tells_its_reason_and_its_numbers() -> None:
    with serving(raising(TooHeavy("31 kg is too heavy"))) as running, pytest.raises(grpc.RpcError) as refused:
        running.call()

    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == "31 kg is too heavy"
    info = _info(refused.value)
    assert (info.reason, info.domain, dict(info.metadata)) == ("TOO_HEAVY", "shop", {"grams": "31000"})


def test_a_wrong_request_with_thousands_of_bad_fields_still_gets_its_answer() -> None:
    error = InvalidInput([Violation(f"lines[{n}].quantity", "must be ≥ 1") for n in range(5000)])
    with serving(raising(error)) as running, pytest.raises(grpc.RpcError) as refused:
        running.call()

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _info(refused.value).reason == "INVALID_FIELD"


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["no message", "no UTF-8"])
def test_bytes_that_cannot_be_read_are_the_callers_fault(data: bytes) -> None:
    with serving(echo) as running, pytest.raises(grpc.RpcError) as refused:
        _raw(running, METHOD)(data, timeout=10)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _info(refused.value).reason == "INVALID_FIELD"


def test_a_defect_is_answered_with_an_id_that_is_in_the_log_and_with_nothing_else() -> None:
    with (
        structlog.testing.capture_logs() as lines,
        serving(raising(RuntimeError("SELECT secret FROM inside"))) as running,
        pytest.raises(grpc.RpcError) as failed,
    ):
        running.call()

    assert failed.value.code() is grpc.StatusCode.INTERNAL
    error_id = _info(failed.value).metadata["error_id"]
    assert failed.value.details() == f"internal error {error_id}"
    assert "secret" not in str(failed.value.trailing_metadata())
    (line,) = [line for line in lines if line.get("error_id") == error_id]
    assert line["log_level"] == "error"
    assert "SELECT secret FROM inside" in str(line["exc_info"])


def test_an_answer_that_cannot_be_sent_is_a_defect() -> None:
    def forget(_request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        return None  # type: ignore[return-value]  # the defect under test

    with serving(forget) as running, pytest.raises(grpc.RpcError) as failed:
        running.call()

    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert _info(failed.value).metadata["error_id"]


def test_an_answer_that_clients_would_not_take_is_refused_with_a_reason() -> None:
    def boast(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        return StringValue(value="x" * int(request.value))

    # A field of a message takes a few bytes more than its text.
    with serving(boast) as running:
        assert len(running.call(str(RESPONSE_BYTES_MAX - 5))) == RESPONSE_BYTES_MAX - 5
        with pytest.raises(grpc.RpcError) as refused:
            running.call(str(RESPONSE_BYTES_MAX))

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert _info(refused.value).reason == "ANSWER_TOO_LARGE"


def test_a_message_that_unpacks_to_more_than_is_taken_is_refused_unread() -> None:
    with serving(echo) as running, pytest.raises(grpc.RpcError) as refused:
        _raw(running, METHOD)(bytes(100 * 1024 * 1024), timeout=120, compression=grpc.Compression.Gzip)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("error", [exc.OperationalError("SELECT 1", {}, Exception("gone")), exc.TimeoutError()])
def test_a_database_error_that_nobody_translated_is_no_defect(error: Exception) -> None:
    with serving(raising(error)) as running, pytest.raises(grpc.RpcError) as failed:
        running.call()

    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert _info(failed.value).reason == "DATABASE_UNAVAILABLE"
    assert "SELECT" not in str(failed.value.details())


def test_above_the_limit_calls_are_refused_at_once_while_health_answers(gate: Gate) -> None:
    with serving(gate, EchoSettings(calls_max=2, grpc_threads=2, listen_host="127.0.0.1")) as running:
        inside = [running.begin("first"), running.begin("second")]
        eventually(lambda: len(gate.entered) == 2)

        with pytest.raises(grpc.RpcError) as refused:
            running.call("third", seconds=5)
        healthy = _health(running.channel, SERVICE)

        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _info(refused.value).reason == "QUEUE_FULL"
        assert _detail(refused.value, details.RetryInfo()).retry_delay.ToMilliseconds() > 0
        assert healthy == "SERVING"
        gate.open()
        assert [call.result().value for call in inside] == ["first", "second"]
        eventually(lambda: _answers(lambda: running.call("fourth")))
        assert "third" not in gate.entered


def test_a_call_that_is_cancelled_while_it_waits_is_not_executed_and_frees_its_place(gate: Gate) -> None:
    with serving(gate, EchoSettings(calls_max=4, grpc_threads=1, listen_host="127.0.0.1")) as running:
        inside = running.begin("inside")
        eventually(lambda: gate.entered == ["inside"])
        for call in [running.begin("given up"), running.begin("given up")]:
            assert call.cancel()
        with pytest.raises(grpc.RpcError) as late:
            running.call("too late", seconds=0.2)
        gate.open()
        inside.result()

        # All four places are free again.
        eventually(lambda: _answers(lambda: [call.result() for call in [running.begin("next") for _ in range(4)]]))

    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert set(gate.entered) == {"inside", "next"}


def test_an_unknown_method_is_unimplemented() -> None:
    with serving(echo) as running, pytest.raises(grpc.RpcError) as refused:
        _raw(running, f"/{SERVICE}/Shout")(b"", timeout=10)

    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_has_the_time_that_its_client_gives_it_but_never_for_ever() -> None:
    def tell(_request: StringValue, context: grpc.ServicerContext) -> StringValue:
        return StringValue(value=str(deadline(context) - time.monotonic()))

    with serving(tell) as running:
        assert 3 < float(running.call(seconds=5)) < 5.5  # clocks are coarse
        assert CALL_SECONDS_MAX - 2 < float(running.call(seconds=3600)) <= CALL_SECONDS_MAX
        unhurried = StringValue.FromString(_raw(running, METHOD)(b""))
        assert CALL_SECONDS_MAX - 2 < float(unhurried.value) <= CALL_SECONDS_MAX


@pytest.mark.parametrize(
    ("sent", "seen"),
    [(TRACEPARENT, TRACEPARENT), (None, ""), ("00-nonsense", ""), (TRACEPARENT.replace("0af", "000"), None)],
)
def test_the_clients_trace_is_passed_on_if_it_is_well_formed(sent: str | None, seen: str | None) -> None:
    def tell(_request: StringValue, context: grpc.ServicerContext) -> StringValue:
        return StringValue(value=traceparent(context) or "")

    with serving(tell) as running:
        assert running.call(traceparent=sent) == (sent if seen is None else seen)


def test_liveness_holds_while_readiness_comes_and_goes_with_its_parts() -> None:
    with serving(echo) as running:
        health = running.server.health
        assert [_health(running.channel, name) for name in ("", SERVICE, LIVENESS)] == ["SERVING"] * 3

        health.set_ready("consumer", False)
        assert [_health(running.channel, name) for name in ("", SERVICE)] == ["NOT_SERVING"] * 2
        assert _health(running.channel, LIVENESS) == "SERVING"

        health.set_ready("consumer", True)
        assert _health(running.channel, "") == "SERVING"

        health.drain()
        health.set_ready("server", True)
        assert _health(running.channel, SERVICE) == "NOT_SERVING"
        assert _health(running.channel, LIVENESS) == "SERVING"

        with pytest.raises(grpc.RpcError) as unknown:
            _health(running.channel, "shop.unheard.v1.Of")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watcher_receives_each_change_and_does_not_delay_the_stop() -> None:
    with serving(echo) as running:
        watched = _health_stub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        unknown = _health_stub(running.channel).Watch(health_pb2.HealthCheckRequest(service="x"))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

        running.server.health.drain()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        begun = time.monotonic()
        running.server.stop(grace_seconds=15)

        assert time.monotonic() - begun < 5
        assert list(watched) == []
        assert list(unknown) == []


def test_reflection_offers_the_service_when_it_is_on() -> None:
    with serving(echo, EchoSettings(reflection=True, listen_host="127.0.0.1")) as running:
        offered = ProtoReflectionDescriptorDatabase(running.channel)
        assert SERVICE in offered.get_services()
        assert offered.FindFileContainingSymbol(SERVICE).package == "shop.echo.v1"
    with serving(echo) as running:
        with pytest.raises(grpc.RpcError) as refused:
            ProtoReflectionDescriptorDatabase(running.channel).get_services()
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_log_lines_of_refusals_are_rate_limited() -> None:
    with structlog.testing.capture_logs() as lines, serving(raising(TooHeavy("31 kg"))) as running:
        for _ in range(200):
            assert not _answers(running.call)

    told = [line for line in lines if line["event"] == "call refused"]
    assert 0 < len(told) < 200
    assert told[0]["reason"] == "TOO_HEAVY"
    assert told[0]["log_level"] == "info"


def test_a_process_without_an_api_answers_health() -> None:
    server = HealthServer(0, listen_host="127.0.0.1")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert _health(channel, "") == "SERVING"
            assert _health(channel, LIVENESS) == "SERVING"
            server.health.set_ready("loop", False)
            assert _health(channel, "") == "NOT_SERVING"
    finally:
        server.stop(0)


def _raw(running: Echo, method: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
    return running.channel.unary_unary(method)


def _health_stub(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def _health(channel: grpc.Channel, service: str) -> str:
    answer = _health_stub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _info(error: grpc.RpcError) -> details.ErrorInfo:
    return _detail(error, details.ErrorInfo())


def _detail(error: grpc.RpcError, found: _Detail) -> _Detail:
    (packed,) = [datum.value for datum in error.trailing_metadata() if datum.key == STATUS_KEY]
    assert isinstance(packed, bytes)
    status = Status.FromString(packed)
    assert any(detail.Unpack(found) for detail in status.details)
    return found


def _answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True


def test_large_requests_are_worked_on_one_after_the_other() -> None:
    at_once: list[int] = []
    running: set[int] = set()
    may_end = threading.Event()

    def hold_large(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        if len(request.value) >= LARGE_REQUEST_BYTES:
            running.add(id(request))
            at_once.append(len(running))
            may_end.wait(60)
            running.remove(id(request))
        return StringValue()

    size = 700_000
    waiting = WAITING_BYTES_MAX // size
    ended: SimpleQueue[Any] = SimpleQueue()
    with serving(hold_large, EchoSettings(listen_host="127.0.0.1")) as running_echo:
        calls = [running_echo.begin("x" * size, seconds=60) for _ in range(2 * waiting)]
        for call in calls:
            call.add_done_callback(ended.put)
        # One request is processed, some wait, and all others are refused at once.
        for _ in range(len(calls) - waiting - 1):
            assert ended.get(timeout=60).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert running_echo.call("small", seconds=60) == ""
        may_end.set()
        assert [ended.get(timeout=60).code() for _ in range(waiting + 1)] == [grpc.StatusCode.OK] * (waiting + 1)

    assert set(at_once) == {1}
