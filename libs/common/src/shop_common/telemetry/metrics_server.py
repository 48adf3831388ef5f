"""The HTTP server of the metrics: prometheus_client's page, on few threads whoever connects.

prometheus_client's own server starts a thread for each connection and waits for its request without an end.
"""

import socket
import threading
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

CONNECTIONS_MAX = 16
"""Scrapes take milliseconds. Above this, the connection that is open longest is closed."""

READ_SECONDS = 10.0


def start(host: str, port: int, registry: CollectorRegistry) -> None:
    """Answer scrapes from now on, on daemon threads. Raises OSError if the port is busy."""
    server = _Server(host, port)
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Handler(WSGIRequestHandler):
    """One scrape."""

    timeout = READ_SECONDS

    def log_message(self, *_: object) -> None:
        """Nothing to log of a scrape."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each open connection, of which there are at most CONNECTIONS_MAX."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # In the sequence in which they were opened.
        self._open: dict[Any, None] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks a name server for the name of this machine.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                longest = next(iter(self._open))
                del self._open[longest]
                _end(longest)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away or was too slow is no error here."""


def _end(connection: socket.socket) -> None:
    """Wake the thread that reads or writes there; it closes the connection."""
    with suppress(OSError):  # closed by its client already
        connection.shutdown(socket.SHUT_RDWR)
