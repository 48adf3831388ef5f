"""Configures SQLite connections, and detects that the database file was removed or replaced while in use."""

import os
import random
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.pool import ConnectionPoolEntry

from shop_common.db.errors import is_statement_error, reword
from shop_common.errors import DatabaseNeedsRepair, DatabaseUnavailable

BUSY_SECONDS = 2.0
"""The longest time that a writer waits for a writer of another process."""

CONNECT = {"timeout": BUSY_SECONDS, "check_same_thread": False}

_BEGIN_WRITE = "BEGIN IMMEDIATE"  # failpoint: sqlite-begin

READ_ONLY = "shop_read_only"
"""Execution option of a connection: its next transaction is read-only."""


class SqliteFile:
    """The database file of an engine. After the first connection, its path must always lead to the same file.

    If the file is removed while a process has it open, the process still reads and writes without an error, but all its
    writes are lost. So the path is checked before each transaction and after each commit. Only the first connection
    creates a missing file.
    """

    def __init__(self, engine: Engine) -> None:
        self._path = Path(str(engine.url.database)).absolute()
        self._identity: tuple[int, int] | None = None
        event.listen(engine, "do_connect", self._connecting)
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "begin", _begin)
        event.listen(engine, "handle_error", self._name_file)

    def check(self) -> None:
        """Check the path before a transaction. Raises DatabaseNeedsRepair if the file was removed or replaced."""
        if (why := self._missing()) is not None:
            raise DatabaseNeedsRepair("the database needs a repair by its operator") from FileNotFoundError(why)

    def check_commit(self) -> None:
        """Check the path after a commit. Raises DatabaseUnavailable if the commit may be lost."""
        if (why := self._missing()) is not None:
            message = "the database file was removed while a change was committed"
            raise DatabaseUnavailable(message, rolled_back=False) from FileNotFoundError(why)

    def _missing(self) -> str | None:
        found = _identity(self._path)
        if self._identity is None or found == self._identity:
            return None
        happened = "was removed" if found is None else "was replaced by another file"
        return f"{self._path} {happened} while it was in use. Stop all processes before you move or restore it"

    def _connecting(self, _: Dialect, __: ConnectionPoolEntry, ___: object, ____: object) -> None:
        self.check()
        if self._identity is None:
            # Only the owner may read the file. SQLite creates the -wal and -shm files with the same mode.
            with suppress(OSError):  # the file exists, or SQLite reports why it cannot be created
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def _connected(self, connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        if self._identity is None:
            self._identity = _identity(self._path)
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    def _name_file(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if isinstance(error, exc.DBAPIError) and not is_statement_error(error):
            reword(error, f"{error.orig} ({self._path})")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _write_ahead(cursor: Any) -> None:
    # SQLite stores the mode in the file. If two processes open a new file at the same time, one of them gets
    # SQLITE_BUSY, because busy_timeout does not apply to this PRAGMA.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0, 0.02))


def _begin(tx: Connection) -> None:
    # A deferred BEGIN takes the write lock at the first write, after the reads. Two such transactions could read the
    # same stock, and one of them would oversell or fail. BEGIN IMMEDIATE takes the lock before the first read.
    tx.exec_driver_sql("BEGIN" if tx.get_execution_options().get(READ_ONLY) else _BEGIN_WRITE)
