"""Serves the metrics over HTTP, with a limit on connections and a timeout.

On a loopback address, it serves the settings of the process too, without secrets. Other machines get the metrics only.

prometheus_client's own server starts a thread for each connection, and waits for a request without a timeout.
"""

import json
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from shop_common.environment import listen
from shop_common.environment.listen import is_loopback
from shop_common.environment.process_settings import CommonSettings
from shop_common.environment.settings import shown
from shop_common.telemetry import metrics

CONNECTIONS_MAX = 16
"""A scrape takes milliseconds. Above this limit the oldest connection is closed."""

READ_SECONDS = 10.0

SETTINGS_PATH = "/settings"


def start(settings: CommonSettings) -> None:
    """Serve the metrics of this process on METRICS_PORT, unless that is 0.

    Call it before creating the objects that update metrics: they check only once whether metrics are enabled. If the
    port is busy, the process exits with code 1.
    """
    if not settings.metrics_port:
        return
    metrics.enable()
    # Several workers cannot share the port. Their parent serves the combined metrics.
    if not settings.is_worker:
        serve(settings, REGISTRY)


def serve(settings: CommonSettings, registry: CollectorRegistry) -> None:
    """Serve a registry on METRICS_PORT. If the port is busy, the process exits with code 1."""
    try:
        serve_on(
            listen.python_host(settings.listen_host),
            settings.metrics_port,
            registry,
            shown(settings) if is_loopback(settings.listen_host) else None,
        )
    except OSError as error:
        raise SystemExit(listen.refusal(settings.listen_host, settings.metrics_port, error)) from None


def serve_on(host: str, port: int, registry: CollectorRegistry, settings: dict[str, str] | None = None) -> None:
    """Serve a registry and, at SETTINGS_PATH, the settings, on daemon threads. Raises OSError if the port is busy."""
    server = _Server(host, port)
    metrics_app = make_wsgi_app(registry)
    server.set_app(metrics_app if settings is None else _with_settings(metrics_app, settings))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _with_settings(metrics_app: WSGIApplication, settings: dict[str, str]) -> WSGIApplication:
    body = json.dumps(settings).encode()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != SETTINGS_PATH:
            return metrics_app(environ, start_response)
        # The page of another site could use a name of its own for this machine (DNS rebinding).
        if not _names_this_machine(environ.get("HTTP_HOST", "")):
            start_response("421 Misdirected Request", [("Content-Length", "0")])
            return []
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return app


def _names_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)


class _Handler(WSGIRequestHandler):
    timeout = READ_SECONDS

    def log_message(self, *_: object) -> None:
        """Do not log scrapes."""


class _Server(ThreadingMixIn, WSGIServer):
    """Runs a thread for each open connection. At most CONNECTIONS_MAX connections are open."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: dict[Any, None] = {}
        """The open connections, oldest first."""
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Skip HTTPServer.server_bind: it looks up the name of this machine in DNS, which can block.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                oldest = next(iter(self._open))
                del self._open[oldest]
                _shut_down(oldest)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that closed the connection or were too slow."""


def _shut_down(connection: socket.socket) -> None:
    """Wake the thread that reads or writes on the connection. That thread closes it."""
    with suppress(OSError):  # the client has closed it already
        connection.shutdown(socket.SHUT_RDWR)
