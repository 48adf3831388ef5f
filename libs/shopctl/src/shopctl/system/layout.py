"""The names of the processes, their default ports, and their databases."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from shop_common.db.address import sqlite_url

INVENTORY_API = "inventory-api"
ORDER_API = "order-api"
REAPER = "reservation-reaper"
RELAY = "event-relay"
CONSOLE = "console"

INVENTORY_PORT = 50053
ORDERS_PORT = 50054


class Server(Protocol):
    """A PostgreSQL server on which databases can be created."""

    def new_database(self, prefix: str) -> str:
        """Create an empty database and return its URL."""
        ...


@dataclass(frozen=True)
class Databases:
    """The URLs of the two databases."""

    inventory: str
    orders: str

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Use two SQLite files. Creates a missing folder, accessible to its owner only."""
        folder = folder.absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(sqlite_url(folder / "inventory.db"), sqlite_url(folder / "orders.db"))

    @classmethod
    def on_server(cls, server: Server) -> Self:
        """Create two new databases, which last as long as the server."""
        return cls(server.new_database("inventory"), server.new_database("orders"))


def reachable(listen_host: str) -> str:
    """Return the host at which this machine reaches the listener: a wildcard address includes loopback."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "127.0.0.1"}.get(listen_host, listen_host)  # noqa: S104 - not bound
