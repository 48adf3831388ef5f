"""A proxy from the environment is for external traffic: no internal call uses it."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from devstack.ports import free_ports
from devstack.process import Process
from libs.common.tests.echo_service import echo_service, echo_stub, serving
from shop_common.rpc.client import Client
from shopctl.system.grpc_health import health
from shopctl.watch.scrape import scrape

SECONDS = 60
PROGRAM = str(Path(__file__).with_name("echo_service.py"))


class Listener:
    """Accepts connections, and records that there was one."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.was_called = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        self.was_called.set()
        connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def at_the_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def proxy(at_the_end: ExitStack) -> Listener:
    listener = Listener()
    at_the_end.callback(listener.close)
    return listener


@pytest.fixture
def proxies(proxy: Listener) -> dict[str, str]:
    return dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), f"http://{proxy.address}")


def test_a_client_and_the_tools_go_past_it(
    proxy: Listener, proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    with serving(lambda request, _: request) as echo:
        address = f"127.0.0.1:{echo.server.port}"
        client = Client(address, echo_service(), repeatable=(), unavailable_reason="AWAY")
        try:
            said = client.call(echo_stub(client.channel), StringValue(value="hello"), timeout_seconds=SECONDS)
            assert said.value == "hello"
        finally:
            client.close()
        assert health(address, timeout_seconds=SECONDS) == "SERVING"
    scrape(f"127.0.0.1:{free_ports(1)[0]}")  # nothing listens at this address, and the proxy is not used
    assert not proxy.was_called.is_set()


def test_traces_go_past_it(proxy: Listener, proxies: dict[str, str], at_the_end: ExitStack) -> None:
    collector = Listener()
    at_the_end.callback(collector.close)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    environment = {
        "LISTEN_HOST": "127.0.0.1",
        "GRPC_PORT": address.rpartition(":")[2],
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "",  # docker compose passes an unset variable in this way
    }
    process = Process("echo", [sys.executable, PROGRAM], environment | proxies, health_address=address)
    at_the_end.callback(process.stop)
    process.start().wait_ready(SECONDS)

    with grpc.insecure_channel(address) as channel:
        echo_stub(channel)(StringValue(value="hello"), timeout=SECONDS)

    assert collector.was_called.wait(SECONDS), process.tail()
    assert not proxy.was_called.is_set()
