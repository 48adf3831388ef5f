"""Ports to listen on: opened for this process alone, or refused in one sentence.

gRPC opens ports with SO_REUSEPORT by default, by which a second server shares a busy one in silence.
"""

import socket
from collections.abc import Callable


class PortBusy(Exception):
    """Someone else listens there, or the address is not ours. The message is for the person who started us."""


def address(host: str, port: int) -> str:
    """Host and port as gRPC takes them; an IPv6 host is written in brackets."""
    return f"{host}:{port}"


def python_host(host: str) -> str:
    """The host as Python's sockets take it. `[::]` is every address, also where there is no IPv6, as gRPC has it."""
    if host != "[::]":
        return host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as any_port:
            any_port.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104 - the same wish, in IPv4
    return "::"


def probe(host: str, port: int) -> None:
    """Make sure that nobody listens there. Raises PortBusy. Port 0 is always free."""
    if not port:
        return
    try:
        found = socket.getaddrinfo(python_host(host), port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, at = found[0]
        with socket.socket(family, kind, protocol) as listener:
            # Connections of an earlier process, which linger in TIME_WAIT, are no reason to refuse; a listener is.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(at)
            listener.listen(1)
    except OSError as error:
        raise PortBusy(refusal(host, port, error)) from error


def opened(host: str, port: int, open_port: Callable[[str], int]) -> int:
    """The port that gRPC opened, by its `add_insecure_port`. Raises PortBusy."""
    try:
        return open_port(address(host, port))
    except RuntimeError as error:
        raise PortBusy(refusal(host, port)) from error


def refusal(host: str, port: int, error: OSError | None = None) -> str:
    """The one sentence for the person who started us."""
    why = f" ({error.strerror.lower()})" if error is not None and error.strerror else ""
    return f"cannot listen on {address(host, port)}{why}: stop what uses this port, or choose another"
