"""An HTTP/2 client that sends frames that no gRPC library sends. It can be made to read nothing.

It acknowledges the server's PING and SETTINGS frames, so that only its calls are wrong.
"""

import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
CANCEL = struct.pack(">I", 8)
FRAME_BYTES = 16_384
CONNECT_SECONDS = 30

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_INITIAL_WINDOW_SIZE = 4
_HEAD = struct.Struct(">BHBBI")


class Peer:
    """One connection to a local port. `window` is the flow-control window of each response, in bytes."""

    def __init__(self, port: int, *, window: int = 65_535, reads: bool = True) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS)
        self._next_stream = 1
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"peer of {port}", daemon=True)
        self.send(_PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)))
        if reads:
            self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The reader ends with the connection. shutdown fails if the server has already closed it.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def call(self, path: str, *sent: bytes, end: bool = False, extra: Iterable[tuple[bytes, bytes]] = ()) -> int:
        """Open a stream for the method and send its headers and these bytes. Returns the id of the stream."""
        stream = self._next_stream
        self._next_stream += 2
        frames = [frame(HEADERS, END_HEADERS, stream, headers(path, extra))]
        data = b"".join(sent)
        parts = [data[at : at + FRAME_BYTES] for at in range(0, len(data), FRAME_BYTES)] or ([b""] if end else [])
        for number, part in enumerate(parts, 1):
            frames.append(frame(DATA, END_STREAM if end and number == len(parts) else 0, stream, part))
        self.send(b"".join(frames))
        return stream

    def cancel(self, stream: int) -> None:
        self.send(frame(RST_STREAM, 0, stream, CANCEL))

    def send(self, data: bytes) -> None:
        """Send any bytes. Raises OSError if the server has closed the connection."""
        with self._sending:
            self._socket.sendall(data)

    def _read(self) -> None:
        buffer = b""
        with suppress(OSError):
            while arrived := self._socket.recv(FRAME_BYTES):
                buffer += arrived
                while len(buffer) >= _HEAD.size:
                    high, low, kind, flags, _ = _HEAD.unpack_from(buffer)
                    end = _HEAD.size + (high << 16 | low)
                    if len(buffer) < end:
                        break
                    if kind in (PING, SETTINGS) and not flags & ACK:
                        self.send(frame(kind, ACK, 0, buffer[_HEAD.size : end] if kind == PING else b""))
                    buffer = buffer[end:]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def headers(path: str, extra: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """The header block of a gRPC call. :method and :scheme use HPACK's static table; other headers are literals."""
    named = [
        (b":path", path.encode()),
        (b":authority", b"shop"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    return b"\x83\x86" + b"".join(header(name, value) for name, value in [*named, *extra])


def header(name: bytes, value: bytes) -> bytes:
    """One literal header, which the server does not add to its dynamic table."""
    return b"\x00" + _text(name) + _text(value)


def message(content: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(content)) + content


def _text(content: bytes) -> bytes:
    size = len(content)
    if size < 127:
        return bytes([size]) + content
    out, rest = bytearray([127]), size - 127
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes(out) + bytes([rest]) + content
