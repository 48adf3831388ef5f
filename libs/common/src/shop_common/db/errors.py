"""Classifies database errors: the cause, whether a retry can help, and the text that a log may contain.

| PostgreSQL, by SQLSTATE | SQLite, by result code | is raised as |
|---|---|---|
| 21, 22, 23, 54, most of 42 | CONSTRAINT, MISMATCH, TOOBIG, bad SQL | the original error: the statement caused it |
| 40001, 40P01 | | Collision: retried |
| 0A000, 25006, or a connection lost before its first statement | | StaleConnection: retried on a new one |
| 55P03 | | LockTimeout |
| 57014, 25P03, 25P04 | | TransactionTimeout |
| a missing table, column or grant, 53100, 58, XX | NOTADB, FULL, READONLY, CANTOPEN | DatabaseNeedsRepair |
| everything else | BUSY, IOERR, everything else | DatabaseUnavailable |
"""

import sqlite3
from dataclasses import dataclass

from sqlalchemy import exc

from shop_common.errors import (
    Contention,
    DatabaseNeedsRepair,
    DatabaseUnavailable,
    LockTimeout,
    ShopError,
    TransactionTimeout,
)

# The data of a request or a defect in our SQL can cause these errors. A retry never succeeds.
_STATEMENT_CLASSES = frozenset({"21", "22", "23", "42", "54"})
# The schema causes these states of class 42: a missing privilege, table, column, function, other object, or index.
_SCHEMA_STATES = frozenset({"42501", "42P01", "42703", "42883", "42704", "42P10", "3F000"})
# The database asks for a retry after a serialization failure or a deadlock.
_COLLISION_STATES = frozenset({"40001", "40P01"})
_LOCK_NOT_AVAILABLE = "55P03"
# The timeouts for a statement, for the idle time between two statements, and for a transaction.
_TIMEOUT_STATES = frozenset({"57014", "25P03", "25P04"})
_DISK_FULL = "53100"
# Internal errors (such as corrupt data) and system errors. An operator must repair the cause.
_REPAIR_CLASSES = frozenset({"58", "XX"})
# The server has become read-only, for example after a failover, or the table of a prepared statement was altered. The
# transaction has done nothing, so a retry on a new connection can succeed.
_STALE_STATES = frozenset({"0A000", "25006"})
# The server shut down, crashed or is starting, or a session was idle for too long. All older connections are useless.
_SHUTDOWN_STATES = frozenset({"57P01", "57P02", "57P03", "57P05"})

_SQLITE_STATEMENT_ERRORS = frozenset(
    {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE}
)
_SQLITE_REPAIRS = frozenset(
    {
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
_SQLITE_MISSING = "no such "
"""SQLite uses one code, SQLITE_ERROR, for a missing table, bad SQL and bad JSON. Only the messages differ."""


class StaleConnection(DatabaseUnavailable):
    """The connection is useless, but the transaction has done nothing. So a retry on a new connection is safe."""


class Collision(Contention):
    """A serialization failure or deadlock. The database has rolled the transaction back, so a retry is safe."""


@dataclass
class Phase:
    """The progress of a transaction."""

    begun: bool = False
    ran: bool = False
    """Whether a statement after BEGIN has succeeded. Set only on PostgreSQL."""
    committing: bool = False


def classify(error: exc.DBAPIError, phase: Phase) -> Exception:
    """Return the ShopError to raise for a database error, or `error` itself if the statement caused it."""
    state = _state(error)
    if phase.committing and _is_unanswered(error):
        return DatabaseUnavailable("the database did not answer a commit", rolled_back=False)
    if _was_stale(error, phase):
        return StaleConnection("the database is not available")
    if state in _COLLISION_STATES:
        return Collision("another transaction changed the same rows; retry")
    if state == _LOCK_NOT_AVAILABLE:
        return LockTimeout("another transaction has locked the same rows; retry")
    if state in _TIMEOUT_STATES:
        return TransactionTimeout("the database cancelled the transaction because it took too long; nothing was done")
    if is_statement_error(error):
        return error
    if _needs_repair(error):
        return DatabaseNeedsRepair("the database needs a repair by its operator; retries fail until then")
    return DatabaseUnavailable("the database is not available")


def is_end_of_connections(error: exc.DBAPIError) -> bool:
    """Return whether all older connections to the server must be replaced, even if the driver treats them as open."""
    state = _state(error)
    return state is not None and (state in _STALE_STATES | _SHUTDOWN_STATES or state.startswith("08"))


def is_statement_error(error: BaseException) -> bool:
    """Return whether the statement, its data or a defect in our code caused the error, so that no retry can succeed."""
    if not isinstance(error, exc.DBAPIError):
        return not isinstance(error, ShopError)
    if error.connection_invalidated:
        return False
    state = _state(error)
    if state is not None:
        return state[:2] in _STATEMENT_CLASSES and state not in _SCHEMA_STATES
    code = _sqlite_code(error)
    if code is not None:
        bad_sql = code == sqlite3.SQLITE_ERROR and not _is_missing(error)
        return bad_sql or code in _SQLITE_STATEMENT_ERRORS
    # If the driver raises an error before it calls the database, the error has no code.
    return isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError | exc.InterfaceError)


def cause_of(error: BaseException) -> str:
    """Return the driver's message as one line for a log, without SQL, parameters or rows."""
    driver_error = getattr(error.__cause__, "orig", None) or error.__cause__ or error
    return " ".join((_primary_message(driver_error) or str(driver_error)).split())


def without_rows(error: exc.DBAPIError) -> None:
    """Reduce an error of PostgreSQL to its primary message, because DETAIL and CONTEXT quote data of callers."""
    if primary := _primary_message(error.orig):
        reword(error, primary)


def reword(error: exc.DBAPIError, message: str) -> None:
    """Replace the message of the driver's error and of SQLAlchemy's error around it."""
    driver_error = error.orig
    if driver_error is not None:
        driver_error.args = (message,)
        error.args = (f"({type(driver_error).__name__}) {message}",)


def _primary_message(driver_error: object) -> str | None:
    """Return the primary message of an error from a PostgreSQL server, and None for any other error."""
    message: str | None = getattr(getattr(driver_error, "diag", None), "message_primary", None)
    return message


def _was_stale(error: exc.DBAPIError, phase: Phase) -> bool:
    state = _state(error)
    if not error.connection_invalidated:
        return False
    if not phase.begun or state in _STALE_STATES:
        return True
    # The server shut down after BEGIN and before the first statement. If it did not report the shutdown, the statement
    # itself may have crashed the server: do not repeat such a statement.
    return not phase.ran and state in _SHUTDOWN_STATES


def _is_unanswered(error: exc.DBAPIError) -> bool:
    """Return whether a commit that failed with this error may have succeeded on the server."""
    state = _state(error)
    if state is not None:
        return error.connection_invalidated or state[:2] in {"08", "57"}
    return not _needs_repair(error)


def _needs_repair(error: exc.DBAPIError) -> bool:
    state = _state(error)
    if state is not None:
        return state in _SCHEMA_STATES or state == _DISK_FULL or state[:2] in _REPAIR_CLASSES
    code = _sqlite_code(error)
    return code in _SQLITE_REPAIRS or (code == sqlite3.SQLITE_ERROR and _is_missing(error))


def _state(error: exc.DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _sqlite_code(error: exc.DBAPIError) -> int | None:
    """Return SQLite's primary result code, without the bits of the extended code."""
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_missing(error: exc.DBAPIError) -> bool:
    return str(error.orig).startswith(_SQLITE_MISSING)
