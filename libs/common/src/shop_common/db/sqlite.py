"""An SQLite database: how its connections are configured, and a file that has to stay where it is."""

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
"""How long a writer waits for one of another process."""

CONNECT = {"timeout": BUSY_SECONDS, "check_same_thread": False}

_BEGIN_WRITE = "BEGIN IMMEDIATE"  # failpoint: sqlite-begin

READ_ONLY = "shop_read_only"
"""Execution option of a connection: its next transaction only reads."""


class SqliteFile:
    """The file behind an engine. Once it was opened it must keep its name.

    When a file is removed while a process has it open, the process can read and write without an error, and all that it
    writes is lost. So the name is compared before each transaction and after each commit. A missing file is made once,
    at the first connection, and never again.
    """

    def __init__(self, engine: Engine) -> None:
        self._path = Path(str(engine.url.database)).absolute()
        self._identity: tuple[int, int] | None = None
        event.listen(engine, "do_connect", self._connecting)
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "begin", _begin)
        event.listen(engine, "handle_error", self._name_file)

    def check(self) -> None:
        """Raises DatabaseNeedsRepair when the name stands for another file, or for none. Nothing was done yet."""
        if (why := self._missing()) is not None:
            raise DatabaseNeedsRepair("the database needs its operator") from FileNotFoundError(why)

    def check_commit(self) -> None:
        """The same behind a commit, which then may be lost."""
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
            # Nobody but its owner may read it. SQLite gives the same mode to the files beside it.
            with suppress(OSError):  # it is there, or SQLite says why it can't be made
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
    # The file keeps this mode. Of two that open a new file at once one is refused: busy_timeout does not apply.
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
    # A deferred BEGIN takes the write lock at the first write, after it has read: two such transactions read the
    # same stock, and one of them oversells or fails. IMMEDIATE takes it before the first read.
    tx.exec_driver_sql("BEGIN" if tx.get_execution_options().get(READ_ONLY) else _BEGIN_WRITE)
