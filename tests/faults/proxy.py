"""A TCP proxy that injects network faults into the connections between a client and a server."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Self

_BYTES = 65_536
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 5
_SLOW_BYTES = 2_000
COMMIT = b"COMMIT"


class NetworkFault(Enum):
    """What the proxy does."""

    NONE = "forwards everything"
    REFUSED = "refuses new connections and resets open ones"
    HANGING = "accepts connections and forwards nothing"
    SLOW = "forwards a few bytes twenty times a second"
    TORN = "resets every connection after half of the next data"
    COMMIT_UNANSWERED = "forwards a COMMIT and resets the connection before the response"


class Proxy:
    """Listens on a loopback port until the block ends."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self._target_port = target_port
        self._fault = NetworkFault.NONE
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.incidents = 0
        """How often a connection was refused, reset or delayed."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.settimeout(_POLL_SECONDS)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._accepting.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def fault(self, fault: NetworkFault) -> Iterator[None]:
        """Injects the fault until the block ends. Then connections that hang continue."""
        self._fault = fault
        try:
            yield
        finally:
            self._fault = NetworkFault.NONE

    def _accept(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._fault is NetworkFault.REFUSED:
                self._reset(client)
                return
            with socket.create_connection(("127.0.0.1", self._target_port), _CONNECT_SECONDS) as server:
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        """Forward data in both directions until one side closes the connection or a fault resets it."""
        other = {client: server, server: client}
        awaiting_answer = False
        while not self._over.is_set():
            fault = self._fault
            if fault is NetworkFault.REFUSED:
                self._reset(client, server)
                return
            if fault is NetworkFault.HANGING:
                self.incidents += 1
                while self._fault is fault and not self._over.wait(_POLL_SECONDS):
                    pass
                continue
            ready, _, _ = select.select(list(other), [], [], _POLL_SECONDS)
            for source in ready:
                if fault is NetworkFault.SLOW:
                    self.incidents += 1
                    self._over.wait(_POLL_SECONDS)
                data = source.recv(_SLOW_BYTES if fault is NetworkFault.SLOW else _BYTES)
                if not data:
                    return
                if awaiting_answer and source is server:
                    # The database has committed, and its client gets no response.
                    self._reset(client, server)
                    return
                if fault is NetworkFault.TORN:
                    other[source].sendall(data[: len(data) // 2])
                    self._reset(client, server)
                    return
                awaiting_answer = fault is NetworkFault.COMMIT_UNANSWERED and source is client and COMMIT in data
                other[source].sendall(data)

    def _reset(self, *connections: socket.socket) -> None:
        self.incidents += 1
        for connection in connections:
            # With a linger of zero seconds, close sends RST.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.close()
