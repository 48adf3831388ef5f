"""The settings of a client, as arguments or as SHOP_* environment variables."""

import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Self

TIMEOUT_SECONDS = 10.0
TOKEN_FILE_SECONDS = 1.0
"""The maximum age of a token that was read from a file."""

TokenSource = Callable[[], str] | Callable[[], Awaitable[str]]


@dataclass(frozen=True)
class Tls:
    """The files of a TLS connection, in PEM format. Without `ca_path`, gRPC's own CAs verify the server.

    With `cert_path` and `key_path`, the client presents a certificate.
    """

    ca_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_path is None) != (self.key_path is None):
            raise ValueError("a client certificate needs both cert_path and key_path")


@dataclass(frozen=True)
class Settings:
    """How a client reaches the APIs.

    A target is `host:port` or a gRPC target such as `ipv4:10.0.0.1:50053,10.0.0.2:50053`. Calls go to all its addresses
    in turn. `timeout_seconds` applies to calls that have no timeout of their own. `token` is a JWT or an API key, or a
    function that returns the token of the current caller; AsyncShop also accepts a coroutine function. Without `tls`,
    connections use plain text, and a token is refused unless the target is this machine or `insecure` is set.
    """

    inventory_target: str = "localhost:50053"
    order_target: str = "localhost:50054"
    timeout_seconds: float = TIMEOUT_SECONDS
    token: str | TokenSource = field(default="", repr=False)
    tls: Tls | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be positive, not {self.timeout_seconds}")
        targets = (self.inventory_target, self.order_target)
        if self.token and self.tls is None and not self.insecure and not all(map(_is_local, targets)):
            raise ValueError("a token needs TLS, unless insecure is set: others could read it on the network")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the SHOP_* variables. A variable that is unset or empty has its default. Raises ValueError."""
        return cls(
            inventory_target=environment.get("SHOP_INVENTORY_TARGET") or cls.inventory_target,
            order_target=environment.get("SHOP_ORDER_TARGET") or cls.order_target,
            timeout_seconds=_number(environment, "SHOP_TIMEOUT_SECONDS", cls.timeout_seconds),
            token=_token(environment),
            tls=_tls(environment),
            insecure=_flag(environment, "SHOP_INSECURE"),
        )


class TokenFile:
    """A token in a file, which may be replaced at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._token = ""
        self._read_at = float("-inf")

    def __call__(self) -> str:
        """Return the token that the file had at most TOKEN_FILE_SECONDS ago. Raises OSError."""
        with self._lock:
            now = time.monotonic()
            if now - self._read_at > TOKEN_FILE_SECONDS:
                self._token, self._read_at = self._path.read_text().strip(), now
            return self._token


def _token(environment: Mapping[str, str]) -> str | TokenSource:
    if (token := environment.get("SHOP_TOKEN")) and environment.get("SHOP_TOKEN_FILE"):
        raise ValueError("set either SHOP_TOKEN or SHOP_TOKEN_FILE")
    if path := environment.get("SHOP_TOKEN_FILE"):
        return TokenFile(Path(path))
    return token or ""


def _tls(environment: Mapping[str, str]) -> Tls | None:
    paths = {
        name: Path(value) if (value := environment.get(f"SHOP_TLS_{name.upper()}")) else None
        for name in ("ca_path", "cert_path", "key_path")
    }
    return Tls(**paths) if any(paths.values()) or _flag(environment, "SHOP_TLS") else None


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None


def _flag(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name, "").lower()
    if text not in ("", "true", "false"):
        raise ValueError(f"{name} must be true or false, not {text!r}")
    return text == "true"


def _is_local(target: str) -> bool:
    """Return whether all addresses of the target are this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = target.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:").split(",")
    return all(_is_loopback(address.rpartition(":")[0].strip("[]")) for address in addresses)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
