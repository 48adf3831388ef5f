"""What an error of a database means: whose fault it is, whether another try can help, and what to call it in a log.

| PostgreSQL, by SQLSTATE | SQLite, by result code | is raised as |
|---|---|---|
| 21, 22, 23, 54, most of 42 | CONSTRAINT, MISMATCH, TOOBIG, bad SQL | as it is: the statement's own fault |
| 40001, 40P01 | | Collision: tried again |
| 0A000, 25006, or a connection that was lost before its first statement | | StaleConnection: tried again on a new one |
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

# What the data of a request can cause, or a defect of our SQL: no later try succeeds, whatever the database does.
_OWN_FAULT_CLASSES = frozenset({"21", "22", "23", "42", "54"})
# Class 42, and yet the schema's or its grants' fault: missing privilege, table, column, function, other object, index.
_SCHEMA_STATES = frozenset({"42501", "42P01", "42703", "42883", "42704", "42P10", "3F000"})
# The database asks to run the transaction again: serialization failure, deadlock.
_COLLISION_STATES = frozenset({"40001", "40P01"})
_LOCK_NOT_AVAILABLE = "55P03"
# A statement, a pause between two statements, or the transaction took too long.
_TIMEOUT_STATES = frozenset({"57014", "25P03", "25P04"})
_DISK_FULL = "53100"
# Internal error (damaged data), system error: no waiting mends them.
_REPAIR_CLASSES = frozenset({"58", "XX"})
# The server is read-only, as after a failover; or a table has changed under a prepared statement. The transaction has
# done nothing, and succeeds on a new connection if it can succeed at all.
_STALE_STATES = frozenset({"0A000", "25006"})
# Shut down, crashed, starting up, idle for too long: true of all connections to that server.
_SHUTDOWN_STATES = frozenset({"57P01", "57P02", "57P03", "57P05"})

_SQLITE_OWN_FAULTS = frozenset(
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
"""SQLITE_ERROR stands for a missing table as well as for bad SQL or bad JSON; only the text tells them apart."""


class StaleConnection(DatabaseUnavailable):
    """The connection was of no use before anything had run on it: the transaction may be run again on a new one."""


class Collision(Contention):
    """The database has rolled the transaction back in favour of another, and asks to run it again."""


@dataclass
class Phase:
    """How far a transaction has come."""

    begun: bool = False
    ran: bool = False
    """Whether a statement after the BEGIN has succeeded. Known on PostgreSQL alone."""
    committing: bool = False


def classify(error: exc.DBAPIError, phase: Phase) -> Exception:
    """The error as its callers get it: a ShopError, or `error` itself where the statement is at fault."""
    state = _state(error)
    if phase.committing and _is_unanswered(error):
        return DatabaseUnavailable("the database did not answer a commit", rolled_back=False)
    if _was_stale(error, phase):
        return StaleConnection("the database is not available")
    if state in _COLLISION_STATES:
        return Collision("others changed the same rows; try again")
    if state == _LOCK_NOT_AVAILABLE:
        return LockTimeout("others hold the same rows; try again")
    if state in _TIMEOUT_STATES:
        return TransactionTimeout("the database took too long over this, and nothing was done")
    if is_statement_error(error):
        return error
    if _needs_repair(error):
        return DatabaseNeedsRepair("the database needs its operator; trying again does not help until then")
    return DatabaseUnavailable("the database is not available")


def is_end_of_connections(error: exc.DBAPIError) -> bool:
    """Whether no connection to this server is of use any more, although the driver may think that this one is."""
    state = _state(error)
    return state is not None and (state in _STALE_STATES | _SHUTDOWN_STATES or state.startswith("08"))


def is_statement_error(error: BaseException) -> bool:
    """Whether the statement or its data caused the error, so that no later try can succeed."""
    if not isinstance(error, exc.DBAPIError):
        return not isinstance(error, ShopError)
    if error.connection_invalidated:
        return False
    state = _state(error)
    if state is not None:
        return state[:2] in _OWN_FAULT_CLASSES and state not in _SCHEMA_STATES
    code = _sqlite_code(error)
    if code is not None:
        bad_sql = code == sqlite3.SQLITE_ERROR and not _is_missing(error)
        return bad_sql or code in _SQLITE_OWN_FAULTS
    # What a driver itself refuses, before the database has seen it, has no code.
    return isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError | exc.InterfaceError)


def cause_of(error: BaseException) -> str:
    """What the driver said, in one line for a log: without the SQL, its parameters, or a row."""
    driver_error = getattr(error.__cause__, "orig", None) or error.__cause__ or error
    return " ".join((_primary_message(driver_error) or str(driver_error)).split())


def without_rows(error: exc.DBAPIError) -> None:
    """Cut from PostgreSQL's message what follows its first sentence: DETAIL and CONTEXT quote rows of callers."""
    if primary := _primary_message(error.orig):
        reword(error, primary)


def reword(error: exc.DBAPIError, message: str) -> None:
    """Let the driver's error, and SQLAlchemy's around it, say this instead."""
    driver_error = error.orig
    if driver_error is not None:
        driver_error.args = (message,)
        error.args = (f"({type(driver_error).__name__}) {message}",)


def _primary_message(driver_error: object) -> str | None:
    """What PostgreSQL says first, and None for all that does not come from its server."""
    message: str | None = getattr(getattr(driver_error, "diag", None), "message_primary", None)
    return message


def _was_stale(error: exc.DBAPIError, phase: Phase) -> bool:
    state = _state(error)
    if not error.connection_invalidated:
        return False
    if not phase.begun or state in _STALE_STATES:
        return True
    # Shut down between the answer to our BEGIN and the first statement. Without a state that says so it may have been
    # the statement that brought the server down: that is not repeated.
    return not phase.ran and state in _SHUTDOWN_STATES


def _is_unanswered(error: exc.DBAPIError) -> bool:
    """Whether a commit that ended with this error may have happened all the same."""
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
    """SQLite's primary result code; the higher bits of what it gives say more than is needed here."""
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_missing(error: exc.DBAPIError) -> bool:
    return str(error.orig).startswith(_SQLITE_MISSING)
