"""Faults of databases: write locks that another client holds, and servers that freeze."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
from sqlalchemy.engine import make_url

from devstack.postgres import PostgresServer
from devstack.stack import Stack


@contextmanager
def orders_write_locked(stack: Stack) -> Iterator[None]:
    """Holds a lock against writes to orders, as a long migration does. Reads still work."""
    with _write_locked(stack.databases.orders, "orders"):
        yield


@contextmanager
def databases_frozen(stack: Stack, server: PostgresServer | None) -> Iterator[None]:
    """No database accepts a write: the PostgreSQL server is frozen; with SQLite, the write locks are held."""
    if server is None:
        with (
            _write_locked(stack.databases.inventory, "inventory_items"),
            _write_locked(stack.databases.orders, "orders"),
        ):
            yield
        return
    with server.frozen():
        yield


@contextmanager
def _write_locked(url: str, table: str) -> Iterator[None]:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(parsed.database), isolation_level=None, timeout=10)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
        return
    address = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connection:
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        yield
        connection.rollback()
