"""The metrics port, with slow and silent clients."""

import json
import socket
import threading
from contextlib import ExitStack
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from devstack.ports import free_ports
from shop_common.environment.process_settings import CommonSettings
from shop_common.telemetry import metrics_server
from shop_common.telemetry.metrics_server import CONNECTIONS_MAX


def _page(port: int, path: str = "/metrics") -> str:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as page:
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
        # The threads of connections that were closed to make room may not have ended yet.
        while threading.active_count() > before + CONNECTIONS_MAX:
            threading.Event().wait(0.01)


def test_half_a_request_does_not_block_scrapes(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as slow:
        for _ in range(2 * CONNECTIONS_MAX):
            slow.enter_context(socket.create_connection(("127.0.0.1", port), 60)).sendall(b"GET /metr")
        assert "parcels_total 1.0" in _page(port)

    assert "Traceback" not in capfd.readouterr().err


def test_the_settings_are_served_on_this_machine_only() -> None:
    local, public = free_ports(2)
    metrics_server.serve(CommonSettings(metrics_port=local), CollectorRegistry())
    metrics_server.serve(CommonSettings(metrics_port=public, listen_host="0.0.0.0"), CollectorRegistry())

    assert json.loads(_page(local, "/settings"))["METRICS_PORT"] == str(local)
    # Every other path is a page of metrics.
    assert "METRICS_PORT" not in _page(public, "/settings")


def test_a_page_of_another_site_does_not_get_the_settings() -> None:
    (port,) = free_ports(1)
    metrics_server.serve(CommonSettings(metrics_port=port), CollectorRegistry())

    for host in ("rebound.example", "rebound.example:80", "[", ""):
        request = Request(f"http://127.0.0.1:{port}/settings", headers={"Host": host})
        with pytest.raises(HTTPError, match="421"):
            urlopen(request, timeout=60)


def test_a_busy_port_is_reported(port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        metrics_server.serve_on("127.0.0.1", port, CollectorRegistry())
