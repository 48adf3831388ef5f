"""A real PostgreSQL for tests, development and benchmarks, from the first place that has one."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from devstack import postmaster
from devstack.postmaster import PostgresUnavailable, Postmaster

__all__ = ["PostgresServer", "PostgresUnavailable", "Source", "provide", "sources"]


class PostgresServer:
    """A running server: an administrator's URL, and new databases on request."""

    def __init__(self, url: URL, description: str, own: Postmaster | None = None) -> None:
        self.description = description
        self._url = url
        self._own = own
        self._created: set[str] = set()

    @property
    def url(self) -> str:
        """The administrator's, on the database `postgres`, as SQLAlchemy writes it."""
        return self._url.render_as_string(hide_password=False)

    def new_database(self, prefix: str = "shop") -> str:
        """An empty database under a name of its own: its URL, as SQLAlchemy writes it."""
        name = f"{prefix}_{secrets.token_hex(6)}"
        self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self._created.add(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop a database that `new_database` made, whoever is still connected. May be repeated."""
        name = make_url(url).database
        if name not in self._created:
            return
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._created.remove(name)

    def stop(self) -> None:
        """End a server of ours; leave one that was given as it was found."""
        if self._own is not None:
            self._own.stop()
            return
        for name in list(self._created):
            self.drop_database(self._url.set(database=name).render_as_string(hide_password=False))

    @property
    def pid(self) -> int:
        """Of the postmaster, where it is ours."""
        return self._ours().pid

    @property
    def bin_folder(self) -> Path:
        """Where its client programs are (psql, pgbench), where it is ours."""
        return self._ours().bin_folder

    def freeze(self) -> None:
        """Stop all of its processes where they are, connections open and locks held, until `thaw`."""
        self._ours().freeze()

    def thaw(self) -> None:
        self._ours().thaw()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _ours(self) -> Postmaster:
        if self._own is None:
            raise PostgresUnavailable(f"{self.description} is not ours to freeze or look into")
        return self._own

    def _execute(self, statement: sql.Composed) -> None:
        plain = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)


@dataclass(frozen=True)
class Source:
    """A place that has a PostgreSQL. `start(durable)` raises PostgresUnavailable."""

    description: str
    start: Callable[[bool], PostgresServer]


def sources(url: str | None = None) -> list[Source]:
    """Where one can be had, best first, nothing started. One that is named is never replaced by another."""
    if url:
        return [_given(url)]
    attempts: Sequence[Callable[[], Source | None]] = (_on_this_machine, _from_the_wheel)
    return [source for attempt in attempts if (source := attempt()) is not None]


@contextmanager
def provide(url: str | None = None, *, durable: bool = False) -> Iterator[PostgresServer]:
    """The first that starts, until the block ends. Raises PostgresUnavailable.

    With `durable` a server of ours syncs each commit, as benchmarks need it; tests do without.
    """
    server = _first_that_works(sources(url), durable)
    try:
        yield server
    finally:
        server.stop()


def _first_that_works(candidates: Sequence[Source], durable: bool) -> PostgresServer:
    failures = ["set TEST_POSTGRES_URL, install PostgreSQL, or install the dev dependencies"]
    for source in candidates:
        try:
            return source.start(durable)
        except PostgresUnavailable as failure:
            failures.append(str(failure))
    raise PostgresUnavailable("no PostgreSQL works here: " + "; ".join(reversed(failures)))


def _given(named: str) -> Source:
    url = make_url(named).set(drivername="postgresql+psycopg")
    description = f"PostgreSQL at {url.host or 'a local socket'} (given)"

    def connect(_durable: bool) -> PostgresServer:
        server = PostgresServer(url if url.database else url.set(database="postgres"), description)
        try:
            server.drop_database(server.new_database())
        except psycopg.Error as error:
            raise PostgresUnavailable(f"{description}: {error}") from error
        return server

    return Source(description, connect)


def _on_this_machine() -> Source | None:
    return _started(postmaster.on_this_machine())


def _from_the_wheel() -> Source | None:
    return _started(postmaster.from_the_wheel())


def _started(installation: postmaster.Installation | None) -> Source | None:
    if installation is None:
        return None

    def start(durable: bool) -> PostgresServer:
        own = postmaster.start(installation, durable=durable)
        return PostgresServer(own.url, installation.description, own)

    return Source(installation.description, start)
