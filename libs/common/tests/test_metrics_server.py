"""The metrics port, with slow and silent clients."""

import socket
import threading
from contextlib import ExitStack
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from devstack.ports import free_ports
from shop_common.telemetry import metrics_server
from shop_common.telemetry.metrics_server import CONNECTIONS_MAX


def _page(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        return str(page.read().decode())


@pytest.fixture
def port() -> int:
    (port,) = free_ports(1)
    registry = CollectorRegistry()
    Counter("parcels", "So many parcels", registry=registry).inc()
    metrics_server.serve_on("127.0.0.1", port, registry)
    return port


def test_scrapes_succeed_beside_hundreds_of_silent_connections(port: int) -> None:
    before = threading.active_count()
    with ExitStack() as silent:
        for number in range(300):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            if number % 100 == 0:
                assert "parcels_total 1.0" in _page(port)

        assert "parcels_total 1.0" in _page(port)
        # Those that were closed to make room may not have ended yet.
        while threading.active_count() > before + CONNECTIONS_MAX:
            threading.Event().wait(0.01)


def test_half_a_request_does_not_block_scrapes(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as slow:
        for _ in range(2 * CONNECTIONS_MAX):
            slow.enter_context(socket.create_connection(("127.0.0.1", port), 60)).sendall(b"GET /metr")
        assert "parcels_total 1.0" in _page(port)

    assert "Traceback" not in capfd.readouterr().err


def test_a_busy_port_is_reported(port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        metrics_server.serve_on("127.0.0.1", port, CollectorRegistry())
