"""TCP ports: which are busy, and some that are not."""

import random
import socket
from collections.abc import Iterable

# Below what the system gives to outgoing connections (32768 and up on Linux): between here and the process
# that it is meant for, nobody takes a free port but another one who searches here.
_LOWEST, _HIGHEST = 15_000, 32_000


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
