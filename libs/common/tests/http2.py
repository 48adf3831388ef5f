"""An HTTP/2 client that can do what no gRPC client does: send calls without a message, and never read a response."""

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes

_RECEIVE_BYTES = 65_536


class Peer:
    """One connection to a gRPC server. Streams are numbered as they are opened: 1, 3, 5, …"""

    def __init__(self, connection: socket.socket, *, reads_answers: bool) -> None:
        self._connection = connection
        self._http2 = H2Connection()
        self._received: deque[Event] = deque()
        self._statuses: dict[int, int] = {}
        self._http2.initiate_connection()
        if not reads_answers:
            self._http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        self._flush()

    def begin(self, path: str, *, calls: int = 1) -> list[int]:
        """Open this many calls by sending only their headers. Returns their streams."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        streams = []
        for _ in range(calls):
            streams.append(self._http2.get_next_available_stream_id())
            self._http2.send_headers(streams[-1], headers)
        self._flush()
        return streams

    def send(self, stream: int, message: bytes, *, end: bool = True) -> None:
        """Send a message on a stream."""
        self._http2.send_data(stream, b"\x00" + len(message).to_bytes(4) + message, end_stream=end)
        self._flush()

    def finish(self, stream: int) -> None:
        """End the client's side of a stream."""
        self._http2.end_stream(stream)
        self._flush()

    def wait_ended(self, streams: list[int], seconds: float) -> dict[int, int | None]:
        """Read until these streams have ended. Returns their grpc-statuses; None for a reset without a status."""
        ended: dict[int, int | None] = {}
        for stream, status in self._ended(seconds):
            ended.setdefault(stream, status)
            if ended.keys() >= set(streams):
                return ended
        raise ConnectionError(f"closed when {len(ended)} streams had ended")

    def wait_any_ended(self, seconds: float) -> int | None:
        """Read until a stream ends. Returns its grpc-status; None for a reset without a status."""
        return next(status for _, status in self._ended(seconds))

    def _ended(self, seconds: float) -> Iterator[tuple[int, int | None]]:
        self._connection.settimeout(seconds)
        for event in self._events():
            if isinstance(event, ResponseReceived | TrailersReceived):
                status = dict(event.headers).get(b"grpc-status")
                if status is not None:
                    self._statuses[event.stream_id] = int(status)
            elif isinstance(event, StreamEnded | StreamReset):
                yield event.stream_id, self._statuses.get(event.stream_id)
            elif isinstance(event, ConnectionTerminated):
                return

    def is_closed(self, seconds: float) -> bool:
        """Return whether the server closes the connection within this time."""
        self._connection.settimeout(seconds)
        try:
            while self._connection.recv(_RECEIVE_BYTES):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def _events(self) -> Iterator[Event]:
        while True:
            while self._received:
                yield self._received.popleft()
            data = self._connection.recv(_RECEIVE_BYTES)
            if not data:
                return
            self._received.extend(self._http2.receive_data(data))
            self._flush()  # acknowledges pings and settings

    def _flush(self) -> None:
        self._connection.sendall(self._http2.data_to_send())


@contextmanager
def connected(address: str, *, reads_answers: bool = True) -> Iterator[Peer]:
    """A connection to HOST:PORT. Without `reads_answers`, its window stays 0, so the server cannot send a response."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        yield Peer(connection, reads_answers=reads_answers)
