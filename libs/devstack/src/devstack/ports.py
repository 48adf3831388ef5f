"""Finds free TCP ports, and shows which process uses a busy port."""

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from threading import Lock

import psutil

# The range is below the ephemeral ports, which the system gives to outgoing connections (32768 and up on Linux). Until
# our process binds a free port, only another search in this range can take the port.
_LOWEST, _HIGHEST = 15_000, 32_000
_TRIES = 10 * (_HIGHEST - _LOWEST)
_COMMAND_LENGTH_MAX = 60

_claimed: set[int] = set()
_claiming = Lock()


def free_ports(count: int) -> list[int]:
    """Return `count` different ports on which no process listens.

    The ports are this process's until it ends: neither a later call nor another process of this user gets them. So a
    port stays free until its server is started, and while the server is started again.
    """
    found: list[int] = []
    for _ in range(_TRIES):
        if len(found) == count:
            return found
        port = random.randrange(_LOWEST, _HIGHEST)
        # Claim first: `is_busy` listens on the port for a moment, and its owner may start a server at that moment.
        if _claim(port) and not is_busy(port):
            found.append(port)
    raise RuntimeError(f"found only {len(found)} of {count} free ports from {_LOWEST} to {_HIGHEST - 1}")


def _claim(port: int) -> bool:
    """Claim the port for this process, and return whether no one had claimed it."""
    with _claiming:
        if port in _claimed:
            return False
        try:
            # A record lock of one byte per port. The system drops it when the process ends for any reason.
            fcntl.lockf(_claims_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        _claimed.add(port)
        return True


@cache
def _claims_file() -> int:
    # Never closed: if a process closes a file, the system drops all locks that the process holds on it.
    path = Path(tempfile.gettempdir()) / f"shop-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


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
