"""A gRPC client for load: it keeps a fixed number of unary calls open on a connection, and does nothing else.

grpcio's own clients use more than twice as much CPU per call (`README.md` has the numbers), which they would take from
the servers on the same machine. A closed loop of unary calls needs only a small part of HTTP/2: each request is the
same block of headers and one message. Responses are not decoded: the response has a message if the call succeeded, and
none if it failed.
"""

import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

CONNECT_SECONDS = 5
_RECEIVE_BYTES = 256 * 1024

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_FRAME = struct.Struct(">BHBBI")  # length in two parts, type, flags, stream
_MESSAGE_HEAD = struct.Struct(">BHBBIBI")  # the same, then the head of a gRPC message: compression flag, length
_INITIAL_WINDOW_SIZE = 4
_WINDOW_BYTES = 2**31 - 1
_DEFAULT_WINDOW_BYTES = 65_535
_TIMEOUT = "30S"


@dataclass(frozen=True)
class Credentials:
    """The credentials of a client: the paths of its certificate, its key and the CAs that it trusts, and a token."""

    cert: str
    key: str
    ca: str
    token: str


class LoadError(Exception):
    """The load cannot continue: the connection ended, or the server did something that the client does not support."""


@dataclass(slots=True)
class Tally:
    """The results of the calls. `latencies` has only calls that ended in the window; the counts are of all calls."""

    succeeded: int = 0
    failed: int = 0
    failure: str = ""
    window: tuple[float, float] = (0.0, 0.0)
    latencies: list[float] = field(default_factory=list)

    def note_failure(self, detail: bytes) -> None:
        self.failed += 1
        self.failure = self.failure or detail.decode("ascii", "backslashreplace")


class Connection:
    """One connection, on which `calls` unary calls of one method are open at any time, until `draining` is True.

    If `calls` is 0, only the method `call` sends calls.
    """

    def __init__(
        self,
        target: str,
        method: str,
        calls: int,
        next_request: Callable[[], bytes],
        tally: Tally,
        credentials: Credentials | None = None,
    ) -> None:
        self._socket = _connected(target, credentials)
        self._calls = calls
        self._next_request = next_request
        self._tally = tally
        self._first_headers, self._headers = _header_blocks(target, method, credentials.token if credentials else None)
        self._stream = 1
        self._open: dict[int, float] = {}  # when each open call was sent
        self._answered: set[int] = set()  # the open calls whose message has arrived
        self._buffer = b""
        self._send_window = _DEFAULT_WINDOW_BYTES
        self._received = 0
        self.draining = calls == 0

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def is_idle(self) -> bool:
        return not self._open

    def start(self) -> None:
        """Send the first calls."""
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW_BYTES)
        grow = struct.pack(">I", _WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)
        out = [_PREFACE, _frame(_SETTINGS, settings), _frame(_WINDOW_UPDATE, grow)]
        now = time.perf_counter()
        out += [self._call(now) for _ in range(self._calls)]
        self._socket.sendall(b"".join(out))

    def call(self, due: float) -> None:
        """Send one more call. Its latency counts from `due`."""
        self._socket.sendall(self._call(due))

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> None:
        """Read the data that have arrived, and send a new call for each call that has ended."""
        buffer = self._buffer + self._arrived()
        now = time.perf_counter()
        out: list[bytes] = []
        position, end = 0, len(buffer)
        unpack = _FRAME.unpack_from
        while position + 9 <= end:
            high, low, kind, flags, stream = unpack(buffer, position)
            after = position + 9 + (high << 16 | low)
            if after > end:
                break
            if kind == _DATA:
                self._received += after - position - 9
                self._answered.add(stream)
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    self._end(stream, now, buffer[position + 9 : after])
                    if not self.draining:
                        out.append(self._call(now))
            else:
                self._control(kind, flags, buffer[position + 9 : after], out)
            position = after
        self._buffer = buffer[position:]
        if self._received > _WINDOW_BYTES // 2:
            out.append(_frame(_WINDOW_UPDATE, struct.pack(">I", self._received)))
            self._received = 0
        if out:
            self._socket.sendall(b"".join(out))

    def _arrived(self) -> bytes:
        arrived = self._socket.recv(_RECEIVE_BYTES)
        if not arrived:
            raise LoadError("the server closed the connection")
        if isinstance(self._socket, ssl.SSLSocket):
            # The selector does not see data that TLS has already decrypted.
            while pending := self._socket.pending():
                arrived += self._socket.recv(pending)
        return arrived

    def _call(self, now: float) -> bytes:
        stream = self._stream
        self._stream = stream + 2
        self._open[stream] = now
        body = self._next_request()
        size = len(body)
        self._send_window -= size + 5
        if self._send_window < 0:
            raise LoadError("the server takes requests more slowly than they are sent")
        headers = self._headers
        if stream == 1:
            headers = self._first_headers
        return b"".join(
            (
                _FRAME.pack(0, len(headers), _HEADERS, _END_HEADERS, stream),
                headers,
                _MESSAGE_HEAD.pack(0, size + 5, _DATA, _END_STREAM, stream, 0, size),
                body,
            )
        )

    def _end(self, stream: int, now: float, trailers: bytes) -> None:
        sent = self._open.pop(stream)
        tally = self._tally
        if stream not in self._answered:
            tally.note_failure(trailers)
            return
        self._answered.remove(stream)
        tally.succeeded += 1
        begin, end = tally.window
        if begin <= now < end:
            tally.latencies.append(now - sent)

    def _control(self, kind: int, flags: int, payload: bytes, out: list[bytes]) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            out.append(_frame(_SETTINGS, b"", _ACK))
        elif kind == _PING and not flags & _ACK:
            out.append(_frame(_PING, payload, _ACK))
        elif kind == _WINDOW_UPDATE:
            # Also count the windows of single streams. Their requests are already sent, so a window that is too large
            # does no harm.
            self._send_window += int.from_bytes(payload, "big")
        elif kind in (_RST_STREAM, _GOAWAY):
            raise LoadError(f"the server ended calls: {payload!r}")


def _frame(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return _FRAME.pack(0, len(payload), kind, flags, 0) + payload


def _connected(target: str, credentials: Credentials | None) -> socket.socket:
    host, _, port = target.rpartition(":")
    plain = socket.create_connection((host, int(port)), CONNECT_SECONDS)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if credentials is None:
        return plain
    context = ssl.create_default_context(cafile=credentials.ca)
    context.load_cert_chain(credentials.cert, credentials.key)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(plain, server_hostname=host)


def _header_blocks(target: str, method: str, token: str | None) -> tuple[bytes, bytes]:
    """Return the header blocks of the first request and of all later ones.

    The server stores the headers of the first request, so the later block only refers to them.
    """
    post, http = b"\x83", b"\x86"
    path, authority, content_type = b"\x44", b"\x41", b"\x5f"  # HPACK's static names; the server stores the values
    remembered = [
        path + _text(method),
        authority + _text(target),
        content_type + _text("application/grpc"),
        b"\x40" + _text("te") + _text("trailers"),
        b"\x40" + _text("grpc-timeout") + _text(_TIMEOUT),
        b"\x40" + _text("user-agent") + _text("shop-benchmarks"),
        *([b"\x40" + _text("authorization") + _text(f"Bearer {token}")] if token else []),
    ]
    # The newest stored header has the number 62, the one before it the number 63, and so on.
    numbers = range(62 + len(remembered) - 1, 61, -1)
    return post + http + b"".join(remembered), post + http + bytes(0x80 | number for number in numbers)


def _text(value: str) -> bytes:
    """Encode a string. Its length is an integer of HPACK: seven bits, then as many bytes as needed (RFC 7541, 5.1)."""
    content = value.encode()
    if len(content) < 127:
        return bytes((len(content),)) + content
    length, rest = [127], len(content) - 127
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes((*length, rest)) + content
