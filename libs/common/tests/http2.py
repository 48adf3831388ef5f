"""HTTP/2 by hand, for what no gRPC client does: calls without a message, answers that are never read."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_NO_WINDOW = b"\x00\x04\x00\x00\x00\x00"  # SETTINGS_INITIAL_WINDOW_SIZE is 0: no response may be sent

Frame = tuple[int, int, int, bytes]


class Peer:
    """One connection. Streams are numbered as they are opened: 1, 3, 5, …"""

    def __init__(self, connection: socket.socket, *, reads_answers: bool) -> None:
        self._connection = connection
        self._next_stream = 1
        self._unread = b""
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b"" if reads_answers else _NO_WINDOW))

    def begin(self, path: str, *, calls: int = 1) -> list[int]:
        """Open so many calls by their headers alone; their streams."""
        block = (
            b"\x83\x86"
            + _field(b":path", path.encode())
            + _field(b":authority", b"x")
            + _field(b"content-type", b"application/grpc")
            + _field(b"te", b"trailers")
        )
        streams = [self._next_stream + 2 * n for n in range(calls)]
        self._next_stream += 2 * calls
        self._connection.sendall(b"".join(_frame(_HEADERS, _END_HEADERS, stream, block) for stream in streams))
        return streams

    def send(self, stream: int, message: bytes, *, end: bool = True) -> None:
        """Send a message on a stream."""
        data = b"\x00" + len(message).to_bytes(4) + message
        self._connection.sendall(_frame(_DATA, _END_STREAM if end else 0, stream, data))

    def finish(self, stream: int) -> None:
        """Say that no message follows."""
        self._connection.sendall(_frame(_DATA, _END_STREAM, stream, b""))

    def wait_ended(self, streams: list[int], seconds: float) -> dict[int, bytes]:
        """Read until all of these streams have ended: the last headers of each, or nothing for a reset alone."""
        ended: dict[int, bytes] = {}
        for stream, headers in self._ended(seconds):
            ended.setdefault(stream, headers)
            if ended.keys() >= set(streams):
                return ended
        raise ConnectionError(f"closed when {len(ended)} streams had ended")

    def wait_any_ended(self, seconds: float) -> bytes:
        """The last headers of the first stream that ends."""
        return next(headers for _, headers in self._ended(seconds))

    def _ended(self, seconds: float) -> Iterator[tuple[int, bytes]]:
        self._connection.settimeout(seconds)
        for kind, flags, stream, payload in self._frames():
            if kind == _PING and not flags & _ACK:
                self._connection.sendall(_frame(_PING, _ACK, 0, payload))
            elif kind == _HEADERS and flags & _END_STREAM:
                yield stream, payload
            elif kind == _RST_STREAM:
                yield stream, b""
            elif kind == _GOAWAY:
                return

    def is_closed(self, seconds: float) -> bool:
        """Whether the other side closes the connection in this time."""
        self._connection.settimeout(seconds)
        try:
            while self._connection.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def _frames(self) -> Iterator[Frame]:
        while True:
            while len(self._unread) >= 9 and len(self._unread) >= (end := 9 + int.from_bytes(self._unread[:3])):
                head, payload, self._unread = self._unread[:9], self._unread[9:end], self._unread[end:]
                yield head[3], head[4], int.from_bytes(head[5:]), payload
            chunk = self._connection.recv(65_536)
            if not chunk:
                return
            self._unread += chunk


@contextmanager
def connected(address: str, *, reads_answers: bool = True) -> Iterator[Peer]:
    """A connection to HOST:PORT; without `reads_answers` its window never opens, so that no response can be sent."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        yield Peer(connection, reads_answers=reads_answers)


def grpc_status(headers: bytes) -> int | None:
    """The grpc-status in a block of headers as grpcio writes it, which is without Huffman coding; None without one."""
    name = b"grpc-status"
    at = headers.find(name)
    if at < 0:
        return None
    length = headers[at + len(name)]
    return int(headers[at + len(name) + 1 :][:length])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _field(name: bytes, value: bytes) -> bytes:
    """A header field that both sides forget at once."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
