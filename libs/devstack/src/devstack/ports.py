"""Finds free TCP ports, and shows which process uses a busy port."""

import random
import socket
from collections.abc import Iterable

import psutil

# The range is below the ephemeral ports, which the system gives to outgoing connections (32768 and up on Linux). Until
# our process binds a free port, only another search in this range can take the port.
_LOWEST, _HIGHEST = 15_000, 32_000
_COMMAND_LENGTH_MAX = 60


def free_ports(count: int) -> list[int]:
    """Return `count` different ports on which no process listens."""
    candidates = random.sample(range(_LOWEST, _HIGHEST), count + 500)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if not is_busy(port):
            found.append(port)
    return found


def busy_ports(ports: Iterable[int]) -> list[int]:
    """Return the ports on which a process listens."""
    return [port for port in ports if is_busy(port)]


def is_busy(port: int) -> bool:
    """Return whether a process listens on the port, at any address, with or without SO_REUSEPORT."""
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except OSError:
        return True
    return False


def listener(port: int) -> str | None:
    """Return the process that listens there, such as `pid 123 (python -m inventory_api)`, or None if unknown."""
    try:
        found = psutil.net_connections("tcp")
        listening = (one for one in found if one.status == psutil.CONN_LISTEN and one.laddr)
        if (pid := next((one.pid for one in listening if one.laddr[1:2] == (port,)), None)) is None:
            return None
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        # The process belongs to another user or has just ended.
        return None
    return f"pid {pid} ({command[:_COMMAND_LENGTH_MAX]})"
