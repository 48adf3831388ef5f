"""Makes a system check identities: certificates, grants, and roles of PostgreSQL with row-level security."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import psycopg
import yaml
from psycopg import sql
from sqlalchemy import URL, make_url

from devstack import certificates
from devstack.certificates import OPERATOR, Files
from devstack.dev.identity import WORKLOADS
from devstack.stack import Databases
from shopctl.data import postgres_roles
from shopctl.data.postgres_roles import Roles
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY


@dataclass(frozen=True)
class Identities:
    """The certificates of the processes and of the clients, and the settings of both APIs."""

    certificates: Mapping[str, Files]
    settings: Mapping[str, Mapping[str, str]]

    @property
    def of_clients(self) -> Files:
        return self.certificates[OPERATOR]


def make(folder: Path) -> Identities:
    """Write the certificates and the grants into the folder."""
    grants = folder / "grants.yaml"
    # Clients and order-api may act for any tenant. So the reservations of all tenants have the same owner, and only the
    # tenant keeps them apart.
    grants.write_text(yaml.safe_dump({"workloads": dict(WORKLOADS)}))
    of_apis = {"GRANTS_PATH": str(grants)}
    return Identities(certificates.make(folder / "certificates"), {INVENTORY_API: of_apis, ORDER_API: of_apis})


@contextmanager
def roles(databases: Databases) -> Iterator[Mapping[str, Mapping[str, str]]]:
    """The settings with which each process uses its own role, until the block ends. Empty for SQLite.

    The databases have been migrated by the administrator whom their URLs name.
    """
    if make_url(databases.inventory).get_backend_name() == "sqlite":
        yield {}
        return
    inventory, orders = make_url(databases.inventory), make_url(databases.orders)
    of_inventory, of_orders = _create(inventory), _create(orders)
    yield {
        INVENTORY_API: {"DATABASE_URL": of_inventory["api"]},
        ORDER_API: {"DATABASE_URL": of_orders["api"]},
        RELAY: {"INVENTORY_DATABASE_URL": of_inventory["relay"], "ORDERS_DATABASE_URL": of_orders["relay"]},
    }
    for url in (inventory, orders):
        _drop(url)


def _names(url: URL) -> Roles:
    return Roles(url.username or "", *(f"{url.database}_{kind}" for kind in ("api", "relay", "console")))


def _create(url: URL) -> dict[str, str]:
    """Create the roles of a database. Returns the URL for each kind of role."""
    names = _names(url)
    passwords = {name: secrets.token_hex(16) for name in astuple(names)[1:]}
    postgres_roles.create(url, url.database or "", names, passwords)
    return {
        kind: url.set(username=name, password=passwords[name]).render_as_string(hide_password=False)
        for kind, name in (("api", names.api), ("relay", names.relay))
    }


def _drop(url: URL) -> None:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        for name in astuple(_names(url))[1:]:
            for statement in ("DROP OWNED BY {}", "DROP ROLE {}"):
                connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
