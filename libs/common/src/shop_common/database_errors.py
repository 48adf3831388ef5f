"""What an error of a database means: whose fault it is, whether another try can help, and what to call it in a log.

PostgreSQL, by SQLSTATE                     SQLite, by result code              is raised as
21, 22, 23, 54 and most of 42               CONSTRAINT, MISMATCH, TOOBIG, …     as it is: the statement's own fault
40001, 40P01                                                                    Collision: tried again
    55P03                                                                           LockTimeout
    57014, 25P03, 25P04                                                             TransactionTimeout
a missing table, column, grant; 53100, XX   NOTADB, FULL, READONLY, CANTOPEN    DatabaseNeedsRepair
everything else                             BUSY, IOERR, …                      DatabaseUnavailable
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
# Internal error (damaged data), system error, feature not supported: no waiting mends them.
_REPAIR_CLASSES = frozenset({"0A", "58", "XX"})

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
    committing: bool = False


def meaning(error: exc.DBAPIError, phase: Phase) -> Exception:
    """The error as its callers get it: a ShopError, or `error` itself where the statement is at fault."""
    state = _state(error)
    if phase.committing and _is_unanswered(error):
        return DatabaseUnavailable("the database did not answer a commit", rolled_back=False)
    if not phase.begun and error.connection_invalidated:
        return StaleConnection("the database closed the connection")
    if state in _COLLISION_STATES:
        return Collision("others changed the same rows; try again")
    if state == _LOCK_NOT_AVAILABLE:
        return LockTimeout("others hold the same rows; try again")
    if state in _TIMEOUT_STATES:
        return TransactionTimeout("the database took too long over this, and nothing was done")
    if is_own_fault(error):
        return error
    if _needs_repair(error):
        return DatabaseNeedsRepair("the database needs its operator; trying again does not help until then")
    return DatabaseUnavailable("the database is not available")


def is_own_fault(error: BaseException) -> bool:
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
    """What the driver said, in one line for a log: without the SQL and its parameters."""
    driver_error = getattr(error.__cause__, "orig", None) or error.__cause__ or error
    return str(driver_error).strip().partition("\n")[0]


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
