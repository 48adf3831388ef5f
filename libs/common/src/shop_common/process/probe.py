"""The health check of an image: asks grpc.health.v1 of a process, with nothing that the process itself has not.

    python -m shop_common.process.probe localhost:50063                       # ready for calls?
    python -m shop_common.process.probe localhost:50063 --service liveness    # does it work at all?

Says what the process answered. Exit code 0 is SERVING, 1 is everything else.
"""

import argparse
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

SERVING = "SERVING"

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_CHECK = (
    b"\x83\x86"  # :method POST, :scheme http, as HPACK's table has them
    b"\x04\x1c/grpc.health.v1.Health/Check"
    b"\x01\x01h"  # :authority
    b"\x0f\x10\x10application/grpc"
    b"\x00\x02te\x08trailers"
)
_IS_SERVING = b"\x00\x00\x00\x00\x02\x08\x01"  # a message of two bytes: field 1, status, is 1


@dataclass(frozen=True)
class Answer:
    """What was said of a service: SERVING, NOT_SERVING, …, or the status of the failed call with its reason."""

    said: str
    reason: str = ""


def ask(address: str, service: str = "", *, timeout_seconds: float = 1) -> Answer:
    """Ask at HOST:PORT about a service: '' is ready for calls, `liveness` is works at all. Raises nothing."""
    # Loaded only when there is more to say than SERVING, see `is_serving`.
    import grpc  # noqa: PLC0415
    from grpc_health.v1 import health_pb2  # noqa: PLC0415

    # A pool of its own: in a shared one, an address that has failed waits longer and longer until it is tried again.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_seconds)
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "")
    return Answer(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def is_serving(address: str, service: str = "", *, timeout_seconds: float = 1) -> bool:
    """Whether `ask` would be told SERVING: the same call, with the few bytes of HTTP/2 that it takes.

    Loading gRPC costs half a second of CPU; a machine full of containers would spend a core on asking them. Raises
    ValueError for an address that is none.
    """
    host, _, port = address.rpartition(":")
    name = service.encode()
    question = b"\x0a%c%b" % (len(name), name) if name else b""
    message = b"\x00" + len(question).to_bytes(4) + question
    request = _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, _CHECK)
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout_seconds) as connection:
        connection.sendall(_PREFACE + request + _frame(_DATA, _END_STREAM, 1, message))
        for kind, flags, payload in _frames(connection):
            if kind == _DATA:
                return payload == _IS_SERVING
            if kind == _GOAWAY or (kind == _HEADERS and flags & _END_STREAM):
                return False
    return False


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Kind, flags and payload of each frame that comes, until the other side closes."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
        while len(received) >= 9 and len(received) >= (end := 9 + int.from_bytes(received[:3])):
            yield received[3], received[4], received[9:end]
            received = received[end:]


def main(argv: Sequence[str] | None = None) -> int:
    """Ask once; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shop_common.process.probe", description="Ask a process for its health. Exit code 0 is SERVING."
    )
    parser.add_argument("address", type=_address, metavar="HOST:PORT", help="where it serves grpc.health.v1")
    parser.add_argument("--service", default="", help="liveness, or an API's full name (default: ready for calls)")
    parser.add_argument("--timeout", type=float, default=2, metavar="SECONDS", help="how long to wait (default: 2)")
    options = parser.parse_args(argv)
    if is_serving(options.address, options.service, timeout_seconds=options.timeout):
        answer = Answer(SERVING)
    else:
        answer = ask(options.address, options.service, timeout_seconds=options.timeout)
    sys.stdout.write(f"{answer.said}{f': {answer.reason}' if answer.reason else ''}\n")
    return 0 if answer.said == SERVING else 1


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError("must be HOST:PORT")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
