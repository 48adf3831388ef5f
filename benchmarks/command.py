"""Error handling, output and databases, which the commands of this folder share."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from sqlalchemy import NullPool, create_engine

from benchmarks.http2 import LoadError
from benchmarks.revisions import NoSuchRevision
from benchmarks.stock import WrongCount
from devstack import postgres
from devstack.postgres import PostgresServer
from devstack.process import ProcessEnded
from devstack.stack import Databases

POSTGRESQL, SQLITE = "postgresql", "sqlite"

LOG_MEGABYTES, LOG_FILE_MEGABYTES = 1024, 16
"""PostgreSQL's default max_wal_size and the size of its WAL files, in megabytes."""

_Measured = TypeVar("_Measured")


def measured(measure: Callable[[Console], _Measured]) -> _Measured | None:
    """Return the results of `measure`, or print why it failed and return None. Progress goes to standard error."""
    if not Path("/proc/self/stat").exists():
        sys.stderr.write("the benchmarks read CPU times from /proc, so they run on Linux only\n")
        return None
    console = Console(stderr=True)
    try:
        return measure(console)
    except (LoadError, NoSuchRevision, ProcessEnded, TimeoutError, WrongCount, postgres.PostgresUnavailable) as error:
        console.print(f"[red]failed:[/] {error}", highlight=False)
        return None


def output(width: int = 160) -> Console:
    """Return the console for results: as wide as the terminal, or with `width` columns if there is none."""
    return Console(width=None if sys.stdout.isatty() else width)


def synced_server(stack: ExitStack, console: Console, *, shared_buffers: str | None = None) -> PostgresServer:
    """Start a temporary PostgreSQL that syncs each commit, and print its description."""
    server = worn_in_server(stack, console.print, shared_buffers=shared_buffers)
    console.print(f"{server.description}, each commit synced", highlight=False)
    return server


def worn_in_server(
    stack: ExitStack, tell: Callable[[str], None], *, shared_buffers: str | None = None
) -> PostgresServer:
    """Start a temporary PostgreSQL that syncs each commit and has all its WAL files, like a long-running server.

    PostgreSQL fills and syncs each new WAL file before using it, which blocks commits for 50 ms.
    """
    server = stack.enter_context(postgres.provide(durable=True, tell=tell))
    with administering(server.url) as run:
        if shared_buffers is not None:
            run(f"ALTER SYSTEM SET shared_buffers = '{shared_buffers}'")
        run(f"ALTER SYSTEM SET min_wal_size = '{LOG_MEGABYTES}MB'")
    server.kill()
    server.start_again()
    with administering(server.url) as run:
        for _ in range(LOG_MEGABYTES // LOG_FILE_MEGABYTES):
            run("SELECT pg_logical_emit_message(false, 'worn in', ''), pg_switch_wal()")
        run("CHECKPOINT")
    return server


@contextmanager
def administering(url: str) -> Iterator[Callable[[str], object]]:
    """Yield a function that runs one SQL statement, in autocommit mode."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection.exec_driver_sql


def folder(stack: ExitStack) -> Path:
    """Create a temporary folder."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shop-benchmarks-")))


def databases(
    kind: str, stack: ExitStack, console: Console, *, shared_buffers: str | None = None
) -> tuple[Callable[[], Databases], list[int]]:
    """Return two values: a function that creates a pair of databases, and the pids of the database server."""
    if kind == POSTGRESQL:
        server = synced_server(stack, console, shared_buffers=shared_buffers)
        return lambda: Databases.on_server(server), [server.pid]
    root = folder(stack)
    return lambda: Databases.in_folder(Path(tempfile.mkdtemp(dir=root))), []
