"""A client of another service, over a real connection."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from devstack.ports import free_ports
from libs.common.tests.echo_service import Behaviour, Echo, EchoSettings, echo_service, echo_stub, serving
from shop_common.errors import NotFound, ShopError, Unavailable
from shop_common.rpc.call import traceparent
from shop_common.rpc.client import PATIENCE_SECONDS, TRIES_MAX, Client
from testkit.eventually import eventually

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class ParcelNotFound(NotFound):
    reason = "PARCEL_NOT_FOUND"

    def metadata(self) -> dict[str, str]:
        return {"parcel_id": "7"}


class DepotAway(Unavailable):
    reason = "DEPOT_AWAY"


class Failing:
    """Fails this many times, then succeeds."""

    def __init__(self, error: ShopError, times: int) -> None:
        self.calls = 0
        self._error = error
        self._times = times

    def __call__(self, request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return request


def connected(port: int, *, repeatable: tuple[str, ...] = ()) -> AbstractContextManager[Callable[..., str]]:
    return connected_to(f"127.0.0.1:{port}", repeatable=repeatable)


@contextmanager
def connected_to(target: str, *, repeatable: tuple[str, ...] = ()) -> Iterator[Callable[..., str]]:
    client = Client(target, echo_service(), repeatable=repeatable, unavailable_reason="ECHO_UNAVAILABLE")
    stub = echo_stub(client.channel)

    def call(text: str = "hello", *, seconds: float = 10, trace: str | None = None) -> str:
        return client.call(stub, StringValue(value=text), timeout_seconds=seconds, traceparent=trace).value

    try:
        yield call
    finally:
        client.close()


@contextmanager
def between(behave: Behaviour, *, repeatable: tuple[str, ...] = ()) -> Iterator[tuple[Callable[..., str], Echo]]:
    with serving(behave) as running, connected(running.server.port, repeatable=repeatable) as call:
        yield call, running


def test_the_caller_receives_the_response_of_the_service() -> None:
    with between(lambda request, _: request) as (call, _):
        assert call("hello") == "hello"


def test_an_error_of_the_service_is_raised_with_its_kind_and_reason() -> None:
    with between(Failing(ParcelNotFound("no parcel 7"), times=9)) as (call, _), pytest.raises(NotFound) as error:
        call()

    assert error.value.reason == "PARCEL_NOT_FOUND"
    assert error.value.message == "no parcel 7"
    assert error.value.metadata() == {"parcel_id": "7"}


def test_a_repeatable_call_is_tried_again_when_the_service_is_away() -> None:
    behave = Failing(DepotAway("closed"), times=2)
    with between(behave, repeatable=("Echo",)) as (call, _):
        assert call("hello") == "hello"
    assert behave.calls == 3


def test_the_retries_of_a_repeatable_call_are_limited() -> None:
    behave = Failing(DepotAway("closed"), times=99)
    with between(behave, repeatable=("Echo",)) as (call, _), pytest.raises(Unavailable) as error:
        call()
    assert error.value.reason == "DEPOT_AWAY"
    assert behave.calls == TRIES_MAX


def test_a_call_that_is_not_repeatable_is_sent_once() -> None:
    behave = Failing(DepotAway("closed"), times=1)
    with between(behave) as (call, _), pytest.raises(Unavailable):
        call()
    assert behave.calls == 1


def test_a_refusal_is_not_retried() -> None:
    behave = Failing(ParcelNotFound("no parcel 7"), times=1)
    with between(behave, repeatable=("Echo",)) as (call, _), pytest.raises(NotFound):
        call()
    assert behave.calls == 1


def test_a_timeout_means_that_the_service_is_unavailable() -> None:
    open_up = threading.Event()

    def stay(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        open_up.wait(20)
        return request

    with between(stay) as (call, _):
        with pytest.raises(Unavailable) as error:
            call(seconds=0.3)
        open_up.set()

    assert error.value.reason == "ECHO_UNAVAILABLE"
    assert "DEADLINE_EXCEEDED" in error.value.message


def test_a_refused_connection_fails_at_once() -> None:
    begun = time.monotonic()
    with connected(free_ports(1)[0], repeatable=("Echo",)) as call, pytest.raises(Unavailable) as error:
        call(seconds=30)

    assert error.value.reason == "ECHO_UNAVAILABLE"
    assert time.monotonic() - begun < 10


def test_a_defect_of_the_service_is_not_shown_as_ours() -> None:
    def fail(_request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        raise RuntimeError("a bug there")

    with between(fail) as (call, _), pytest.raises(Unavailable) as error:
        call()

    assert error.value.reason == "ECHO_UNAVAILABLE"
    assert "a bug there" not in error.value.message


def test_a_process_that_is_not_ready_gets_no_calls_until_it_is() -> None:
    reached: list[str] = []

    def behave(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        reached.append(request.value)
        return request

    with between(behave) as (call, running):
        assert call("first") == "first"
        running.server.health.set_ready("consumer", False)
        eventually(lambda: not _answers(lambda: call("while away", seconds=1)))
        reached.clear()

        assert not _answers(lambda: call("while away", seconds=1))
        assert reached == []

        running.server.health.set_ready("consumer", True)
        eventually(lambda: _answers(lambda: call("back")))


def test_a_service_that_was_away_is_found_soon_after_it_is_back() -> None:
    port = free_ports(1)[0]
    with connected(port) as call:
        assert not _answers(call)
        with serving(lambda request, _: request, EchoSettings(grpc_port=port, listen_host="127.0.0.1")):
            eventually(lambda: _answers(call), within_seconds=5)


def test_a_call_waits_for_a_service_that_is_being_restarted() -> None:
    settings = EchoSettings(grpc_port=free_ports(1)[0], listen_host="127.0.0.1")
    # The method is not repeatable, but the client may wait for a connection in any call.
    with connected(settings.grpc_port) as call:
        with serving(lambda request, _: request, settings):
            assert call("before") == "before"
        with ThreadPoolExecutor(1) as caller:
            waiting = caller.submit(call, "during")
            assert not wait([waiting], timeout=0.5).done
            with serving(lambda request, _: request, settings):
                assert waiting.result() == "during"


def test_a_service_that_stays_away_is_soon_not_waited_for() -> None:
    settings = EchoSettings(grpc_port=free_ports(1)[0], listen_host="127.0.0.1")
    with connected(settings.grpc_port) as call:
        with serving(lambda request, _: request, settings):
            call()
        assert not _answers(lambda: call(seconds=PATIENCE_SECONDS + 0.5))

        begun = time.monotonic()
        assert not _answers(lambda: call(seconds=60))
        assert time.monotonic() - begun < 30


def test_the_addresses_of_several_processes_may_be_given() -> None:
    nobody = free_ports(1)[0]
    with (
        serving(lambda request, _: request) as running,
        connected_to(f"ipv4:127.0.0.1:{nobody},127.0.0.1:{running.server.port}") as call,
    ):
        assert [call(str(number)) for number in range(4)] == ["0", "1", "2", "3"]


def test_the_trace_goes_on_in_the_service() -> None:
    def tell(_request: StringValue, context: grpc.ServicerContext) -> StringValue:
        return StringValue(value=traceparent(context) or "none")

    with between(tell) as (call, _):
        assert call(trace=TRACEPARENT) == TRACEPARENT
        assert call() == "none"


def test_a_method_that_the_service_does_not_have_cannot_be_repeatable() -> None:
    with pytest.raises(KeyError, match="Shout"):
        Client("127.0.0.1:1", echo_service(), repeatable=("Shout",), unavailable_reason="ECHO_UNAVAILABLE")


def _answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except Unavailable:
        return False
    return True
