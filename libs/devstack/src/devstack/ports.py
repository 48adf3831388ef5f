"""TCP ports: which are busy and who has them, and some that are free."""

import random
import socket
from collections.abc import Iterable

import psutil

# Below what the system gives to outgoing connections (32768 and up on Linux): between here and the process
# that it is meant for, nobody takes a free port but another one who searches here.
_LOWEST, _HIGHEST = 15_000, 32_000
_COMMAND_LENGTH_MAX = 60


def free_ports(count: int) -> list[int]:
    """That many different ports on which nobody listens."""
    candidates = random.sample(range(_LOWEST, _HIGHEST), count + 500)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if not is_busy(port):
            found.append(port)
    return found


def busy_ports(ports: Iterable[int]) -> list[int]:
    """Those on which somebody listens."""
    return [port for port in ports if is_busy(port)]


def is_busy(port: int) -> bool:
    """Whether somebody listens on it, at any address of this machine, sharing it (SO_REUSEPORT) or not."""
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except OSError:
        return True
    return False


def listener(port: int) -> str | None:
    """The process that listens there, as `pid 123 (python -m inventory_api)`; None where the system does not say."""
    try:
        found = psutil.net_connections("tcp")
        listening = (one for one in found if one.status == psutil.CONN_LISTEN and one.laddr)
        if (pid := next((one.pid for one in listening if one.laddr[1:2] == (port,)), None)) is None:
            return None
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        # Another user's process, or one that has just ended.
        return None
    return f"pid {pid} ({command[:_COMMAND_LENGTH_MAX]})"
