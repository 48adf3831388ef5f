"""A process that stops in the middle keeps its connections open. Its callers soon turn to another process."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from devstack.ports import free_ports
from devstack.process import Process
from libs.common.tests import echo_service
from libs.common.tests.echo_service import SERVICE, echo_stub
from shop_client import transport
from shop_common.rpc.client import Client
from testkit.eventually import eventually

PROGRAM = str(Path(echo_service.__file__))
READY_SECONDS = 60
# By default, gRPC leaves a frozen process after 60 seconds. Our channels leave it 5 seconds after the next ping.
LEFT_SECONDS = 45
DEADLINE_SECONDS = 2


@pytest.fixture
def processes() -> Iterator[tuple[Process, Process]]:
    """Two processes of one service."""
    first, second = (_process(port) for port in free_ports(2))
    try:
        for process in (first, second):
            process.start()
        for process in (first, second):
            process.wait_ready(READY_SECONDS)
        yield first, second
    finally:
        for process in (first, second):
            process.kill()


def test_a_service_that_calls_another_leaves_it(processes: tuple[Process, Process]) -> None:
    client = Client(_target(processes), echo_service.echo_service(), repeatable=(), unavailable_reason="AWAY")
    with closing(client):
        _check_that_the_first_is_left(processes, client.channel)


def test_the_published_client_leaves_it(processes: tuple[Process, Process]) -> None:
    with grpc.insecure_channel(_target(processes), transport.options(SERVICE)) as channel:
        _check_that_the_first_is_left(processes, channel)


def _check_that_the_first_is_left(processes: tuple[Process, Process], channel: grpc.Channel) -> None:
    stub = echo_stub(channel)

    def succeeds() -> bool:
        try:
            stub(StringValue(value="hello"), timeout=DEADLINE_SECONDS)
        except grpc.RpcError:
            return False
        return True

    # Both processes are connected: successive calls go to both in turn.
    eventually(lambda: {stub(StringValue(value="pid")).value for _ in range(4)} == {str(p.pid) for p in processes})

    processes[0].freeze()

    # If the frozen process were still in use, one of two successive calls would go to it and end at its deadline.
    eventually(lambda: all(succeeds() for _ in range(6)), within_seconds=LEFT_SECONDS)
    assert processes[0].alive


def _process(port: int) -> Process:
    environment = {
        "LISTEN_HOST": "127.0.0.1",
        "DRAIN_SECONDS": "0",
        "GRPC_PORT": str(port),
    }
    return Process("echo", [sys.executable, PROGRAM], environment, health_address=f"127.0.0.1:{port}")


def _target(processes: tuple[Process, Process]) -> str:
    return "ipv4:" + ",".join(str(process.health_address) for process in processes)
