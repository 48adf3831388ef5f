"""Transactions on PostgreSQL and SQLite, with retries and translated errors.

SQLite is the embedded default, PostgreSQL is for production. Only entry points open a transaction. They use this
module, which retries the whole transaction. Operations receive the transaction and never commit it.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from prometheus_client import Counter, Gauge
from psycopg.types.string import TextLoader
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, exc
from sqlalchemy.pool import ConnectionPoolEntry

from shop_common.db import sqlite
from shop_common.db.address import parse
from shop_common.db.errors import Collision, Phase, StaleConnection, cause_of, classify, is_statement_error
from shop_common.db.password import PasswordFile
from shop_common.db.pool import PoolInvalidator
from shop_common.db.sqlite import READ_ONLY, SqliteFile
from shop_common.errors import DatabaseUnavailable, PoolTimeout
from shop_common.telemetry import metrics, tracing
from shop_common.telemetry.metrics import Metric

__all__ = ["Database", "cause_of", "count_after_commit", "is_statement_error", "plain_engine"]

_T = TypeVar("_T")

TRIES_MAX = 3
"""The maximum number of runs of a transaction, if the database asks for retries."""

CONNECTIONS_MAX = 16
"""Connections per process. docs/postgresql.md quotes this number and the timeouts below."""

LOCK_TIMEOUT_SECONDS = 2.0
STATEMENT_TIMEOUT_SECONDS = 5.0
IDLE_TIMEOUT_SECONDS = 5.0
CONNECT_TIMEOUT_SECONDS = 3
POOL_TIMEOUT_SECONDS = 3.0
UNANSWERED_TIMEOUT_SECONDS = 15

FORCE_INDEX_PLANS = "".join(
    f"; SET LOCAL {feature} = off"
    for feature in ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_nestloop", "enable_mergejoin")
)
"""Settings of a transaction that make PostgreSQL use indexes, for any statistics.

If autoanalyze ran while a table was empty, PostgreSQL may plan a sequential scan. A prepared statement keeps this plan
while the table grows to millions of rows. With these settings PostgreSQL uses only index range scans and hash joins.
"""

ASYNC_COMMIT = "; SET LOCAL synchronous_commit = off"
"""Settings of a transaction whose commit does not wait for the disk.

If the server crashes within about a second, the whole transaction may be lost. The database stays consistent.
"""

_SETTINGS = "shop_settings"
_AFTER_COMMIT = "shop_after_commit"
_PHASE = "shop_phase"
OUTSIDE_TRANSACTION = "shop_outside_transaction"
"""Execution option of a connection: each statement is its own transaction. Only `online_ddl` uses this option."""


_connections = metrics.gauge(
    __name__, "db_client_connection_count", "Connections of the pool: used, idle", "pool", "state"
)
_most = metrics.gauge(__name__, "db_client_connection_max", "Connections that the pool may open", "pool")
_waiting = metrics.gauge(
    __name__, "db_client_connection_pending_requests", "Transactions that wait for a connection", "pool"
)


class Database:
    """A database and its connection pool. Safe to share between threads."""

    def __init__(self, address: str | URL, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self.engine = _engine(
            parse(address),
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_use_lifo=True,
        )
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._invalidator = PoolInvalidator(self.engine)
        self._file = SqliteFile(self.engine) if self.is_sqlite else None
        if not self.is_sqlite:
            event.listen(self.engine, "begin", self._begin_postgres)
            event.listen(self.engine, "after_cursor_execute", _note_statement)
        # SQLite allows one writer. A thread that waits for this lock wakes as soon as the lock is free. SQLite's busy
        # handler sleeps and polls, so use it only to wait for other processes.
        self._turn: threading.Lock | None = threading.Lock() if self.is_sqlite else None
        self._waiting = _instrument_pool(self.engine, connections_max) if metrics.is_enabled() else None

    @contextmanager
    def write(self, settings: str = "") -> Iterator[Connection]:
        """Open a transaction that commits at the end of the block and rolls back if the block raises.

        `settings` are FORCE_INDEX_PLANS, ASYNC_COMMIT, or both. They apply to this transaction, on PostgreSQL only.

        Raises ShopError if the database fails. If the COMMIT got no response, raises a DatabaseUnavailable with
        `rolled_back` False: the transaction may have committed.
        """
        with self._in_turn(), _translated() as phase, self._connect() as tx:
            if settings:
                tx.execution_options(**{_SETTINGS: settings})
            self._begin(tx, phase)
            # A pooled connection keeps its `info`: replace the counts that a failed transaction may have left there.
            counted: list[tuple[Metric[Counter], Mapping[tuple[str, ...], int]]] = []
            tx.info[_AFTER_COMMIT] = counted
            try:
                yield tx
            except BaseException:
                tx.rollback()
                raise
            phase.committing = True
            # failpoint: before-commit
            with tracing.child_span("COMMIT"):
                tx.commit()
            if self._file is not None:
                self._file.check_commit()
        # failpoint: after-commit
        for metric, counts in counted:
            for labels, count in counts.items():
                metric(*labels).inc(count)

    @contextmanager
    def read(self, settings: str = "") -> Iterator[Connection]:
        """Open a read-only transaction. `settings` are those of `write`. Raises ShopError if the database fails."""
        options = {READ_ONLY: True, _SETTINGS: settings}
        with _translated() as phase, self._connect().execution_options(**options) as tx:
            self._begin(tx, phase)
            yield tx
            # Commit, because psycopg drops the prepared statements of a connection at every ROLLBACK.
            tx.commit()

    def transact(self, operation: Callable[[Connection], _T], settings: str = "") -> _T:
        """Run the operation in one transaction. If the database asks for it, repeat both, up to TRIES_MAX runs."""
        return self._retrying(self.write, operation, settings)

    def query(self, operation: Callable[[Connection], _T], settings: str = "") -> _T:
        """Run the operation in one read-only transaction, with the retries of `transact`."""
        return self._retrying(self.read, operation, settings)

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()

    def _begin(self, tx: Connection, phase: Phase) -> None:
        if self._file is not None:
            self._file.check()
        tx.begin()
        tx.info[_PHASE] = phase
        phase.begun = True

    def _begin_postgres(self, tx: Connection) -> None:
        options = tx.get_execution_options()
        if options.get(OUTSIDE_TRANSACTION):
            return
        # Bypass SQLAlchemy and do not prepare the statement: a prepared statement cannot contain several commands.
        driver: Any = tx.connection.driver_connection
        begin = (_BEGIN_READ if options.get(READ_ONLY) else _BEGIN_WRITE) + options.get(_SETTINGS, "")
        try:
            driver.execute(begin, prepare=False)
        except psycopg.Error as error:
            # SQLAlchemy does not see this error of the driver, so invalidate the connection here.
            self._invalidator.end(tx.info)
            tx.invalidate(error)
            raise exc.DBAPIError(begin, None, error, connection_invalidated=True) from error

    def _connect(self) -> Connection:
        if self._waiting is None:
            return self.engine.connect()
        with self._waiting.track_inprogress():
            return self.engine.connect()

    def _retrying(
        self, open_transaction: Callable[[str], Any], operation: Callable[[Connection], _T], settings: str
    ) -> _T:
        for attempt in range(1, TRIES_MAX + 1):
            try:
                with open_transaction(settings) as tx:
                    return operation(tx)
            except (StaleConnection, Collision):
                if attempt == TRIES_MAX:
                    raise
                # Wait a random time, so that two transactions that deadlocked do not retry at the same time.
                time.sleep(random.uniform(0, 0.01 * attempt))
        raise AssertionError("unreachable: the last try returns or raises")

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=POOL_TIMEOUT_SECONDS):
            raise DatabaseUnavailable("the database is busy with another change")
        try:
            yield
        finally:
            self._turn.release()


def count_after_commit(tx: Connection, metric: Metric[Counter], counts: Mapping[tuple[str, ...], int]) -> None:
    """Increase a counter after the transaction has committed. `counts` maps label values to increases.

    Counts nothing if the transaction rolls back or its outcome is unknown. A crash after the commit loses the counts.
    """
    if metrics.is_enabled():
        tx.info.setdefault(_AFTER_COMMIT, []).append((metric, counts))


def _note_statement(tx: Connection, *_: object) -> None:
    if (phase := tx.info.get(_PHASE)) is not None:
        phase.ran = True


def _instrument_pool(engine: Engine, connections_max: int) -> Gauge:
    """Export metrics of the pool. Returns the gauge of transactions that wait for a connection."""
    pool = Path(engine.url.database or "").stem
    used, idle = _connections(pool, "used"), _connections(pool, "idle")
    _most(pool).set(connections_max)

    def count(*_: object) -> None:
        used.set(engine.pool.checkedout())  # type: ignore[attr-defined]  # QueuePool's
        idle.set(engine.pool.checkedin())  # type: ignore[attr-defined]

    for happened in ("checkout", "checkin"):
        event.listen(engine, happened, count)
    return _waiting(pool)


@contextmanager
def _translated() -> Iterator[Phase]:
    """Translate SQLAlchemy's exceptions to ShopError. Errors caused by data or by our defects pass unchanged."""
    phase = Phase()
    try:
        yield phase
    except exc.TimeoutError as error:
        raise PoolTimeout("no database connection became free in time") from error
    except exc.DBAPIError as error:
        raise classify(error, phase) from error


def plain_engine(address: str | URL) -> Engine:
    """Make an engine for tools: without a pool, in autocommit mode, and without the timeouts of transactions."""
    return _engine(parse(address), poolclass=NullPool)


def _engine(url: URL, **pool: Any) -> Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        # This module sends BEGIN itself. sqlite3 would send it too late, and psycopg in a separate round trip.
        isolation_level="AUTOCOMMIT",
        # Errors are logged, and logs must not contain data of callers.
        hide_parameters=True,
        connect_args=sqlite.CONNECT if is_sqlite else _postgres_arguments(url),
        **pool,
    )
    if not is_sqlite:
        event.listen(engine, "connect", _configure_postgres)
        if (file := PasswordFile.of(url)) is not None:
            event.listen(engine, "do_connect", file.connect)
    return engine


def _postgres_arguments(url: URL) -> dict[str, object]:
    # After a failover, an address may lead to a standby for a while. A standby accepts no writes, so do not connect to
    # it. The URL that the operator configures may set another value.
    target = {} if "target_session_attrs" in url.query else {"target_session_attrs": "primary"}
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": "shop",
        # This must be set when the connection is opened: in a database with SQL_ASCII, even SQLAlchemy's first query
        # would return bytes. PgBouncer accepts this startup parameter and few others.
        "client_encoding": "UTF8",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": UNANSWERED_TIMEOUT_SECONDS * 1000,
        **target,
    }


_SESSION = "; ".join(
    f"SET {name} = {value}"
    for name, value in (
        ("TimeZone", "'UTC'"),
        ("DateStyle", "'ISO, MDY'"),
        ("IntervalStyle", "'postgres'"),
        ("standard_conforming_strings", "on"),
    )
)
"""Settings of each new connection, because servers, databases and roles may have other defaults.

The time zone must be UTC: Python compares two timestamps of the same zone by wall clock, which is ambiguous for one
hour in autumn. PgBouncer applies these settings to each server connection that it uses for a client. It does not do so
for other settings.
"""


def _configure_postgres(connection: psycopg.Connection, _: ConnectionPoolEntry) -> None:
    connection.execute(_SESSION, prepare=False)
    # Ids are text in our code. The default loader would create UUID objects, and SQLAlchemy would convert them to text.
    connection.adapters.register_loader("uuid", TextLoader)


# SET LOCAL is sent in the same round trip as BEGIN, because PgBouncer refuses startup options. The idle timeout ends
# the transaction of a frozen process, which could otherwise hold the lock of a hot row.
_TIMEOUTS = (
    f"; SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_SECONDS * 1000)}"
    f"; SET LOCAL statement_timeout = {int(STATEMENT_TIMEOUT_SECONDS * 1000)}"
    f"; SET LOCAL idle_in_transaction_session_timeout = {int(IDLE_TIMEOUT_SECONDS * 1000)}"
)
_BEGIN_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED" + _TIMEOUTS
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" + _TIMEOUTS
