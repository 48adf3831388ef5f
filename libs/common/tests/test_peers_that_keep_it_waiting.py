"""Clients that send half of a call, or do not read their responses."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.common.tests.echo_service import METHOD, SERVICE, Echo, EchoSettings, serving
from libs.common.tests.http2 import connected
from shop_common.process import probe
from shop_common.rpc.health import CONNECTIONS_MAX, Health, HealthServer
from shop_common.rpc.health_service import HEALTH_SERVICE, WATCHES_MAX, WATCHES_PER_CONNECTION_MAX
from shop_common.rpc.server import UNREAD_ANSWERS_MAX
from testkit.eventually import eventually

CHECK = f"/{HEALTH_SERVICE}/Check"
WATCH = f"/{HEALTH_SERVICE}/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

DEADLINE_EXCEEDED = 4
INVALID_ARGUMENT = 3
UNAVAILABLE = 14
SOON_SECONDS = 60


def echo(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
    return request


@pytest.fixture
def running() -> Iterator[Echo]:
    settings = EchoSettings(listen_host="127.0.0.1", reflection=True, grpc_threads=200, calls_max=200)
    with serving(echo, settings) as running:
        yield running


@contextmanager
def health_server() -> Iterator[HealthServer]:
    server = HealthServer(0, listen_host="127.0.0.1")
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


def test_a_call_without_a_message_ends_by_itself(running: Echo) -> None:
    with connected(_address(running)) as peer:
        begun = time.monotonic()
        (stream,) = peer.begin(METHOD)
        ended = peer.wait_ended([stream], SOON_SECONDS)

    assert ended[stream] == DEADLINE_EXCEEDED
    assert time.monotonic() - begun > 4


def test_a_message_in_pieces_is_a_message(running: Echo) -> None:
    with connected(_address(running)) as peer:
        (stream,) = peer.begin(METHOD)
        peer.send(stream, StringValue(value="late").SerializeToString())
        assert peer.wait_ended([stream], SOON_SECONDS)[stream] == 0


def test_large_answers_that_are_not_read_are_kept_for_a_few_calls_only() -> None:
    def boast(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        return StringValue(value="x" * 1_000_000)

    settings = EchoSettings(listen_host="127.0.0.1")
    with serving(boast, settings) as running, connected(_address(running), reads_answers=False) as peer:
        for _ in range(2 * UNREAD_ANSWERS_MAX):
            peer.send(peer.begin(METHOD)[0], b"")
        for _ in range(UNREAD_ANSWERS_MAX):
            peer.wait_any_ended(SOON_SECONDS)

        assert len(running.call(seconds=SOON_SECONDS)) == 1_000_000


def test_a_call_that_ends_without_a_message_is_refused(running: Echo) -> None:
    with connected(_address(running)) as peer:
        (stream,) = peer.begin(METHOD)
        peer.finish(stream)
        assert peer.wait_ended([stream], SOON_SECONDS)[stream] == INVALID_ARGUMENT


@pytest.mark.parametrize("path", [METHOD, REFLECTION])
def test_calls_are_answered_beside_hundreds_that_send_nothing(running: Echo, path: str) -> None:
    with ExitStack() as peers:
        for _ in range(4):
            peers.enter_context(connected(_address(running))).begin(path, calls=500)

        # While ten times as many calls arrive as there are threads, a call may be refused and has to be repeated.
        eventually(lambda: _is_answered(running))
        answers = [running.call(str(n), seconds=SOON_SECONDS) for n in range(50)]

    assert answers == [str(n) for n in range(50)]


def test_when_too_many_send_nothing_the_one_that_waited_longest_is_ended_first(running: Echo) -> None:
    with connected(_address(running)) as peer:
        streams = peer.begin(METHOD, calls=150)
        ended = list(peer.wait_ended(streams, SOON_SECONDS).values())

    # Half of the threads may wait.
    assert (ended[:50], ended[50:]) == ([UNAVAILABLE] * 50, [DEADLINE_EXCEEDED] * 100)


def test_calls_that_send_nothing_take_no_place_from_others(running: Echo) -> None:
    entered = threading.Semaphore(0)
    opened = threading.Event()

    def hold(request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        entered.release()
        assert opened.wait(SOON_SECONDS)
        return request

    settings = EchoSettings(listen_host="127.0.0.1", grpc_threads=16, calls_max=12)
    with serving(hold, settings) as held, connected(_address(held)) as peer:
        peer.begin(METHOD, calls=4)
        calls = [held.begin(str(n), seconds=SOON_SECONDS) for n in range(12)]
        for _ in calls:
            assert entered.acquire(timeout=SOON_SECONDS)
        opened.set()
        assert [call.result().value for call in calls] == [str(n) for n in range(12)]


@pytest.mark.parametrize("path", [CHECK, WATCH])
def test_health_answers_beside_hundreds_of_questions_that_are_never_sent(running: Echo, path: str) -> None:
    with connected(_address(running)) as peer:
        peer.begin(path, calls=500)
        assert [_check(running.channel) for _ in range(20)] == ["SERVING"] * 20
        assert _first_status(running.channel) == health_pb2.HealthCheckResponse.SERVING

    with health_server() as server, connected(f"127.0.0.1:{server.port}") as peer:
        peer.begin(path, calls=90)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert [_check(channel, "") for _ in range(20)] == ["SERVING"] * 20


def test_watches_that_are_not_read_hold_up_nobody(running: Echo) -> None:
    health = running.server.health
    with ExitStack() as peers:
        for _ in range(20):
            peer = peers.enter_context(connected(_address(running), reads_answers=False))
            peer.send(peer.begin(WATCH)[0], b"")

        honest = _stub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(honest).status == health_pb2.HealthCheckResponse.SERVING
        health.set_ready("consumer", False)
        assert next(honest).status == health_pb2.HealthCheckResponse.NOT_SERVING
        health.set_ready("consumer", True)
        assert next(honest).status == health_pb2.HealthCheckResponse.SERVING
        assert _check(running.channel) == "SERVING"
        honest.cancel()


def test_a_watch_that_is_not_read_is_ended(running: Echo) -> None:
    with connected(_address(running), reads_answers=False) as peer:
        (stream,) = peer.begin(WATCH)
        peer.send(stream, b"", end=False)
        peer.wait_ended([stream], SOON_SECONDS)


def test_a_watch_that_is_not_read_does_not_hold_up_the_stop(running: Echo) -> None:
    with connected(_address(running), reads_answers=False) as peer:
        peer.send(peer.begin(WATCH)[0], b"", end=False)
        stopped = threading.Thread(target=running.server.stop, args=(300,))
        stopped.start()
        stopped.join(SOON_SECONDS)
        assert not stopped.is_alive()


def test_watches_of_one_connection_are_few(running: Echo) -> None:
    with connected(_address(running)) as peer:
        for _ in range(WATCHES_PER_CONNECTION_MAX + 1):
            (stream,) = peer.begin(WATCH)
            peer.send(stream, b"", end=False)
        refused = peer.wait_any_ended(SOON_SECONDS)
    assert refused == grpc.StatusCode.UNIMPLEMENTED.value[0]

    # Closed connections are forgotten.
    eventually(lambda: _first_status(running.channel) == health_pb2.HealthCheckResponse.SERVING)


def test_watches_of_a_process_are_bounded(running: Echo) -> None:
    def watch_from_another_connection() -> None:
        peer = peers.enter_context(connected(_address(running)))
        for _ in range(WATCHES_PER_CONNECTION_MAX):
            peer.send(peer.begin(WATCH)[0], b"", end=False)

    def is_full() -> bool:
        if _first_status(running.channel) is None:
            return True
        # On a busy machine, the server ends some watches before their message arrives. So start a new watch for each.
        watch_from_another_connection()
        return False

    with ExitStack() as peers:
        for _ in range(WATCHES_MAX // WATCHES_PER_CONNECTION_MAX):
            watch_from_another_connection()
        eventually(is_full)
        assert _check(running.channel) == "SERVING"
    eventually(lambda: _first_status(running.channel) == health_pb2.HealthCheckResponse.SERVING)


def test_a_question_about_health_is_not_quoted_at_any_length(running: Echo) -> None:
    stub = _stub(running.channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Check(health_pb2.HealthCheckRequest(service="x" * 1_000_000), timeout=SOON_SECONDS)

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == "no service here"


def test_connections_and_streams_are_bounded() -> None:
    settings = EchoSettings(listen_host="127.0.0.1", connections_max=8, streams_max=20)
    with serving(echo, settings) as running, ExitStack() as peers:
        assert running.call("in") == "in"
        peer = peers.enter_context(connected(_address(running)))
        # Streams above the limit are refused or have to wait, and all of them end.
        peer.begin(METHOD, calls=100)
        assert running.call("still in", seconds=SOON_SECONDS) == "still in"

        others = [peers.enter_context(connected(_address(running))) for _ in range(12)]
        assert any(other.is_closed(SOON_SECONDS / 12) for other in reversed(others))
        assert running.call("still in", seconds=SOON_SECONDS) == "still in"


def test_the_health_of_a_process_is_told_on_several_ports() -> None:
    health = Health()
    server = HealthServer(0, listen_host="127.0.0.1", health=health)
    server.start()
    try:
        health.set_ready("part", False)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert _check(channel, "") == "NOT_SERVING"
            assert _check(channel, "liveness") == "SERVING"
    finally:
        server.stop(0)


@pytest.mark.parametrize("speaks_http", [False, True])
def test_connections_without_a_call_do_not_keep_probes_out(speaks_http: bool) -> None:
    with health_server() as server, ExitStack() as connections:
        for _ in range(2 * CONNECTIONS_MAX):
            if speaks_http:
                connections.enter_context(connected(f"127.0.0.1:{server.port}"))
            else:
                connections.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))

        # gRPC itself would close these connections after a minute. By then kubelet would have ended the process.
        address = f"127.0.0.1:{server.port}"
        eventually(
            lambda: probe.check(address, timeout_seconds=5).name == probe.SERVING, within_seconds=SOON_SECONDS / 2
        )


def _address(running: Echo) -> str:
    return f"127.0.0.1:{running.server.port}"


def _stub(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def _check(channel: grpc.Channel, service: str = SERVICE) -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    answer = _stub(channel).Check(request, timeout=SOON_SECONDS)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _first_status(channel: grpc.Channel) -> int | None:
    """Return the first status of a new watch, or None if the server refuses it in the way that gRPC clients expect."""
    watch = _stub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    try:
        return int(next(watch).status)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return None
    finally:
        watch.cancel()


def _is_answered(running: Echo) -> bool:
    try:
        return running.call("first", seconds=SOON_SECONDS) == "first"
    except grpc.RpcError as refused:
        # If the refusal arrives before the client has sent the whole request, the client reports CANCELLED.
        if refused.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED):
            raise
        return False
