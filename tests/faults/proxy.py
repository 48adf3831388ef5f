"""A TCP proxy between two that speak with each other, which does to their connections what networks do."""

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


class Weather(Enum):
    """What happens on the way."""

    FINE = "everything passes"
    REFUSED = "connections are refused, those that are open are reset"
    HANGING = "connections open, and nothing passes"
    SLOW = "a little passes twenty times a second"
    TORN = "every connection is reset in the middle of what it carries"
    COMMIT_UNANSWERED = "a COMMIT passes, and before its answer does the connection is reset"


class Proxy:
    """Listens on a port of the loopback until the block ends."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self._target_port = target_port
        self._weather = Weather.FINE
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.incidents = 0
        """Connections that were refused, reset, or held up."""

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
    def weather(self, weather: Weather) -> Iterator[None]:
        """Until the block ends; what hangs then goes on."""
        self._weather = weather
        try:
            yield
        finally:
            self._weather = Weather.FINE

    def _accept(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._weather is Weather.REFUSED:
                self._reset(client)
                return
            with socket.create_connection(("127.0.0.1", self._target_port), _CONNECT_SECONDS) as server:
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        """Until one side ends, or the weather does it."""
        other = {client: server, server: client}
        awaiting_answer = False
        while not self._over.is_set():
            weather = self._weather
            if weather is Weather.REFUSED:
                self._reset(client, server)
                return
            if weather is Weather.HANGING:
                self.incidents += 1
                while self._weather is weather and not self._over.wait(_POLL_SECONDS):
                    pass
                continue
            ready, _, _ = select.select(list(other), [], [], _POLL_SECONDS)
            for source in ready:
                if weather is Weather.SLOW:
                    self.incidents += 1
                    self._over.wait(_POLL_SECONDS)
                data = source.recv(_SLOW_BYTES if weather is Weather.SLOW else _BYTES)
                if not data:
                    return
                if awaiting_answer and source is server:
                    # The database has committed, and its client will never know.
                    self._reset(client, server)
                    return
                if weather is Weather.TORN:
                    other[source].sendall(data[: len(data) // 2])
                    self._reset(client, server)
                    return
                awaiting_answer = weather is Weather.COMMIT_UNANSWERED and source is client and COMMIT in data
                other[source].sendall(data)

    def _reset(self, *connections: socket.socket) -> None:
        self.incidents += 1
        for connection in connections:
            # With a linger of no time at all closing sends RST.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.close()
