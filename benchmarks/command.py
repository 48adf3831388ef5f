"""What the commands of this folder share: how they fail, where they print, and the databases that they run on."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from benchmarks.http2 import LoadError
from benchmarks.stock import WrongCount
from devstack import postgres
from devstack.postgres import PostgresServer
from devstack.process import ProcessEnded
from devstack.stack import Databases

POSTGRESQL, SQLITE = "postgresql", "sqlite"

_Measured = TypeVar("_Measured")


def measured(measure: Callable[[Console], _Measured]) -> _Measured | None:
    """What came out; None when nothing did, which is said. Tells of its progress on stderr."""
    if not Path("/proc/self/stat").exists():
        sys.stderr.write("the benchmarks read CPU times from /proc, so they run on Linux only\n")
        return None
    console = Console(stderr=True)
    try:
        return measure(console)
    except (LoadError, ProcessEnded, TimeoutError, WrongCount, postgres.PostgresUnavailable) as error:
        console.print(f"[red]failed:[/] {error}", highlight=False)
        return None


def output(width: int = 160) -> Console:
    """Where results go: as wide as the terminal, or as this in a file."""
    return Console(width=None if sys.stdout.isatty() else width)


def synced_server(stack: ExitStack, console: Console) -> PostgresServer:
    """A throw-away PostgreSQL that syncs each commit."""
    server = stack.enter_context(postgres.provide(durable=True))
    console.print(f"{server.description}, each commit synced", highlight=False)
    return server


def folder(stack: ExitStack) -> Path:
    """A throw-away folder."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shop-benchmarks-")))


def databases(kind: str, stack: ExitStack, console: Console) -> tuple[Callable[[], Databases], list[int]]:
    """What makes a new pair of databases, and the processes that these take their CPU time in, beside the APIs."""
    if kind == POSTGRESQL:
        server = synced_server(stack, console)
        return lambda: Databases.on_server(server), [server.pid]
    root = folder(stack)
    return lambda: Databases.in_folder(Path(tempfile.mkdtemp(dir=root))), []
