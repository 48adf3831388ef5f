"""Opens ports for this process alone, or reports in one sentence why that is not possible.

By default gRPC opens ports with SO_REUSEPORT, so a second server would silently share a port that is in use.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class PortBusy(Exception):
    """The port is in use, or the address is not one of this machine. The message is for the operator."""


def address(host: str, port: int) -> str:
    """Return HOST:PORT for gRPC. An IPv6 host has brackets."""
    return f"{host}:{port}"


def python_host(host: str) -> str:
    """Return the host for Python's sockets. `[::]` means every address, as in gRPC, even on a machine without IPv6."""
    if host != "[::]":
        return host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as any_port:
            any_port.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104 - every address, of IPv4
    return "::"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address. False for any name other than localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def probe(host: str, port: int) -> None:
    """Check that the port is free. Raises PortBusy if it is not. Port 0 is always free."""
    if not port:
        return
    try:
        # gRPC listens on every address of a host name, and silently skips an address on which the port is in use.
        addresses = socket.getaddrinfo(python_host(host), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PortBusy(refusal(host, port, error)) from error
    errors = [_listen_error(family, at) for family, _, _, _, at in addresses]
    for failure in errors:
        # On machines without IPv6, localhost often still has an IPv6 address. One usable address is enough.
        if failure is not None and (failure.errno not in _NO_SUCH_ADDRESS or None not in errors):
            raise PortBusy(refusal(host, port, failure)) from failure


def _listen_error(family: int, at: tuple[Any, ...]) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # SO_REUSEADDR ignores old connections in TIME_WAIT, but still fails if another socket listens.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(at)
            listener.listen(1)
    except OSError as error:
        return error
    return None


def opened(host: str, port: int, open_port: Callable[[str], int]) -> int:
    """Open the port with gRPC's `add_insecure_port` or `add_secure_port` and return its number. Raises PortBusy."""
    try:
        return open_port(address(host, port))
    except RuntimeError as error:
        raise PortBusy(refusal(host, port)) from error


def refusal(host: str, port: int, error: OSError | None = None) -> str:
    """Return the error message for the operator."""
    why = f" ({error.strerror.lower()})" if error is not None and error.strerror else ""
    return f"cannot listen on {address(host, port)}{why}: stop what uses this port, or choose another"
