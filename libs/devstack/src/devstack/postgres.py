"""Provides a real PostgreSQL for tests, development and benchmarks, from the first source that works."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from devstack.ports import free_ports
from devstack.servers import postmaster
from devstack.servers.postmaster import PostgresUnavailable, Postmaster
from shopctl.system import docker

if TYPE_CHECKING:
    from devstack.servers.containers import Container

__all__ = ["PostgresServer", "PostgresUnavailable", "Source", "provide", "sources"]

IMAGE = "postgres:17"
START_SECONDS = 120
_POLL_SECONDS = 0.05


class PostgresServer:
    """A running server, which creates databases on request."""

    def __init__(self, url: URL, description: str, own: "Postmaster | Container | None" = None) -> None:
        self.description = description
        self._url = url
        self._own = own
        self._created: set[str] = set()

    @property
    def url(self) -> str:
        """The administrator's SQLAlchemy URL, for the database `postgres`."""
        return self._url.render_as_string(hide_password=False)

    def new_database(self, prefix: str = "shop") -> str:
        """Create an empty database with a unique name, and return its SQLAlchemy URL."""
        name = f"{prefix}_{secrets.token_hex(6)}"
        self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self._created.add(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop a database from `new_database`, even if clients are still connected. May be repeated."""
        name = make_url(url).database
        if name not in self._created:
            return
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._created.remove(name)

    def stop(self) -> None:
        """End the server if we started it. On a given server, only drop the databases that we created."""
        if self._own is not None:
            self._own.stop()
            return
        for name in list(self._created):
            self.drop_database(self._url.set(database=name).render_as_string(hide_password=False))

    @property
    def pid(self) -> int:
        """The postmaster's pid. Raises PostgresUnavailable if the server is not our process on this machine."""
        return self._local().pid

    @property
    def bin_folder(self) -> Path:
        """The folder of the client programs (psql, pgbench).

        Raises PostgresUnavailable if the server is not our process on this machine.
        """
        return self._local().bin_folder

    def freeze(self) -> None:
        """Freeze all processes of the server until `thaw`. They keep their connections and locks."""
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

    def kill(self) -> None:
        """End the server at once, which acts like a crash. Committed data survive."""
        self._ours().kill()

    def start_again(self) -> None:
        """Restart the server after `kill`, with the same data and port. Raises PostgresUnavailable."""
        self._ours().start_again()
        wait_until_it_answers(self._url)

    def _ours(self) -> "Postmaster | Container":
        if self._own is None:
            raise PostgresUnavailable(f"{self.description} was not started by us, so it cannot be frozen or killed")
        return self._own

    def _local(self) -> Postmaster:
        if not isinstance(self._own, Postmaster):
            raise PostgresUnavailable(f"{self.description} is not our process on this machine")
        return self._own

    def _execute(self, statement: sql.Composed) -> None:
        plain = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)


@dataclass(frozen=True)
class Source:
    """A way to get a PostgreSQL server. `start(durable)` raises PostgresUnavailable if it fails."""

    description: str
    start: Callable[[bool], PostgresServer]


def sources(url: str | None = None, *, containers: bool = False) -> list[Source]:
    """Return the possible sources, best first, without starting one. A given server is the only source."""
    if url:
        return [_given(url)]
    attempts: list[Callable[[], Source | None]] = [_on_this_machine, _from_the_wheel]
    if containers:
        attempts.insert(0, _in_a_container)
    return [source for attempt in attempts if (source := attempt()) is not None]


@contextmanager
def provide(
    url: str | None = None,
    *,
    durable: bool = False,
    containers: bool = False,
    tell: Callable[[str], None] = print,
) -> Iterator[PostgresServer]:
    """Provide a server for the block, from the first source that starts. Raises PostgresUnavailable.

    If an earlier source does not start, `tell` is called with the reason. With `durable`, a server that we start syncs
    each commit; benchmarks need that, tests do not. With `containers`, the first source is a container if there is
    Docker.
    """
    server = _first_that_works(sources(url, containers=containers), durable, tell)
    try:
        yield server
    finally:
        server.stop()


def wait_until_it_answers(url: URL) -> None:
    """Wait until the server responds. Raises PostgresUnavailable if the server does not respond in time."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(plain, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise PostgresUnavailable(f"no response within {START_SECONDS} s: {error}") from error
            time.sleep(_POLL_SECONDS)


def _first_that_works(candidates: Sequence[Source], durable: bool, tell: Callable[[str], None]) -> PostgresServer:
    failures = ["set TEST_POSTGRES_URL, install PostgreSQL, or install the dev dependencies"]
    for source in candidates:
        try:
            server = source.start(durable)
        except PostgresUnavailable as failure:
            failures.append(str(failure))
        else:
            for reason in failures[1:]:
                tell(f"using {server.description} instead: {reason}")
            return server
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


def _in_a_container() -> Source | None:
    engine = docker.engine()
    return Source(f"{IMAGE} in a container ({engine})", _start_container) if engine else None


def _start_container(durable: bool) -> PostgresServer:
    # Import this only if there is Docker: the dependencies of this module are installed only for tests.
    from devstack.servers.containers import Container, ContainerUnavailable  # noqa: PLC0415

    (port,) = free_ports(1)
    password = secrets.token_urlsafe(24)
    settings = postmaster.settings(durable=durable)
    environment = {"POSTGRES_PASSWORD": password, "POSTGRES_INITDB_ARGS": "--no-sync --locale=C --encoding=UTF8"}
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    try:
        own = Container.start(IMAGE, port, environment, ["postgres", *arguments], inside=5432)
    except ContainerUnavailable as error:
        raise PostgresUnavailable(str(error)) from error
    url = URL.create("postgresql+psycopg", "postgres", password, "127.0.0.1", port, "postgres")
    try:
        wait_until_it_answers(url)
    except BaseException:
        own.stop()
        raise
    return PostgresServer(url, f"{IMAGE} in a container", own)


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
