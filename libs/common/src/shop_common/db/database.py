"""One code path to two databases: engines, transactions, and what their failures mean.

SQLite is the embedded default, PostgreSQL is production. The transaction is the unit of everything: it is
opened here, by entry points only, and retried here as a whole; operations receive it and never commit.
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
from shop_common.db.pool import PoolInvalidator
from shop_common.db.sqlite import READ_ONLY, SqliteFile
from shop_common.errors import DatabaseUnavailable, PoolTimeout
from shop_common.telemetry import metrics, telemetry
from shop_common.telemetry.metrics import Metric

__all__ = ["Database", "cause_of", "count_after_commit", "is_statement_error", "plain_engine"]

_T = TypeVar("_T")

TRIES_MAX = 3
"""How often one transaction is tried when the database itself asks for another try."""

CONNECTIONS_MAX = 16
"""Of one process. docs/postgresql.md reckons with it, and with the timeouts."""

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
"""Settings of a transaction: PostgreSQL plans it the same way whatever it believes of its tables.

Autoanalyze that has once seen a table empty makes a walk through all of it look cheap, and a prepared statement keeps
that plan while the table grows to millions. With these off, what is left are walks along an index from one bound to
another, and joins that read each side once.
"""

ASYNC_COMMIT = "; SET LOCAL synchronous_commit = off"
"""Settings of a transaction: its commit waits for no disk.

When the server crashes within the second, the change may be as if never made: as a whole, and the database in order.
"""

_SETTINGS = "shop_settings"
_AFTER_COMMIT = "shop_after_commit"
_PHASE = "shop_phase"
OUTSIDE_TRANSACTION = "shop_outside_transaction"
"""Execution option of a connection: its statements are transactions of their own, for `online_ddl` alone."""


_connections = metrics.gauge(
    __name__, "db_client_connection_count", "Connections of the pool: used, idle", "pool", "state"
)
_most = metrics.gauge(__name__, "db_client_connection_max", "Connections that the pool may open", "pool")
_waiting = metrics.gauge(
    __name__, "db_client_connection_pending_requests", "Transactions that wait for a connection", "pool"
)


class Database:
    """A database and the transactions on it. Safe to share between threads."""

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
        # SQLite has one writer. Waiting for one's turn here is fair and wakes at once; its own busy
        # handler sleeps and polls, so it is left for writers of other processes.
        self._turn: threading.Lock | None = threading.Lock() if self.is_sqlite else None
        self._waiting = _instrument_pool(self.engine, connections_max) if telemetry.metrics_wanted() else None

    @contextmanager
    def write(self, settings: str = "") -> Iterator[Connection]:
        """A transaction that commits when the block ends and rolls back when it raises.

        `settings` are PostgreSQL's for this transaction: FORCE_INDEX_PLANS, ASYNC_COMMIT, or both.

        Raises ShopError for failures of the surroundings; where the commit itself got no answer, a
        DatabaseUnavailable whose `rolled_back` is False: nobody knows whether it happened.
        """
        with self._in_turn(), _translated() as phase, self._connect() as tx:
            if settings:
                tx.execution_options(**{_SETTINGS: settings})
            self._begin(tx, phase)
            # A pooled connection keeps what a transaction before this one left behind when it failed.
            counted: list[tuple[Metric[Counter], Mapping[tuple[str, ...], int]]] = []
            tx.info[_AFTER_COMMIT] = counted
            try:
                yield tx
            except BaseException:
                tx.rollback()
                raise
            phase.committing = True
            # failpoint: before-commit
            with telemetry.span_below("COMMIT"):
                tx.commit()
            if self._file is not None:
                self._file.check_commit()
        # failpoint: after-commit
        for metric, counts in counted:
            for labels, count in counts.items():
                metric(*labels).inc(count)

    @contextmanager
    def read(self, settings: str = "") -> Iterator[Connection]:
        """A read-only transaction, with `settings` as in `write`. Raises ShopError for failures of the surroundings."""
        options = {READ_ONLY: True, _SETTINGS: settings}
        with _translated() as phase, self._connect().execution_options(**options) as tx:
            self._begin(tx, phase)
            yield tx
            # Not rolled back: psycopg forgets a connection's prepared statements with every ROLLBACK.
            tx.commit()

    def transact(self, operation: Callable[[Connection], _T], settings: str = "") -> _T:
        """Run the operation in one transaction; again, as a whole, where the database asks for that."""
        return self._retrying(self.write, operation, settings)

    def query(self, operation: Callable[[Connection], _T], settings: str = "") -> _T:
        """Run the operation in one read-only transaction, tried as `transact` is."""
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
        # Through the driver and never prepared: a prepared statement can't hold several commands.
        driver: Any = tx.connection.driver_connection
        begin = (_BEGIN_READ if options.get(READ_ONLY) else _BEGIN_WRITE) + options.get(_SETTINGS, "")
        try:
            driver.execute(begin, prepare=False)
        except psycopg.Error as error:
            # Raised outside SQLAlchemy's own cursor, so the pool has to be told that this connection is gone.
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
                # Two that deadlocked must not meet again in step.
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
    """Add to a counter, by its labels' values, when the transaction has committed.

    Never when it has not, or nobody knows; and what was to be counted may be lost with the process.
    """
    if telemetry.metrics_wanted():
        tx.info.setdefault(_AFTER_COMMIT, []).append((metric, counts))


def _note_statement(tx: Connection, *_: object) -> None:
    if (phase := tx.info.get(_PHASE)) is not None:
        phase.ran = True


def _instrument_pool(engine: Engine, connections_max: int) -> Gauge:
    """Let Prometheus see the pool; what counts those who wait for it."""
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
    """Turn SQLAlchemy's exceptions into ours. What a request's data or a defect caused passes unchanged."""
    phase = Phase()
    try:
        yield phase
    except exc.TimeoutError as error:
        raise PoolTimeout("no database connection came free in time") from error
    except exc.DBAPIError as error:
        raise classify(error, phase) from error


def plain_engine(address: str | URL) -> Engine:
    """For tools: a connection for each use, and each statement by itself, without the timeouts of our transactions."""
    return _engine(parse(address), poolclass=NullPool)


def _engine(url: URL, **pool: Any) -> Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        # We say BEGIN ourselves, see _begin_*: drivers begin late (sqlite3) or in a round trip of its own (psycopg).
        isolation_level="AUTOCOMMIT",
        # What callers sent is nobody else's business: errors are logged, and logs are read by many.
        hide_parameters=True,
        connect_args=sqlite.CONNECT if is_sqlite else _postgres_arguments(url),
        **pool,
    )
    if not is_sqlite:
        event.listen(engine, "connect", _configure_postgres)
    return engine


def _postgres_arguments(url: URL) -> dict[str, object]:
    # After a failover an address may lead to a standby for a while. We can do nothing on a standby, so we refuse the
    # connection. An address with several servers may ask for something else.
    target = {} if "target_session_attrs" in url.query else {"target_session_attrs": "primary"}
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "application_name": "shop",
        # With the connection and not after it: a database in SQL_ASCII answers even SQLAlchemy's first question in
        # bytes. It is one of the few start-up parameters that PgBouncer takes.
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
"""What servers, databases and roles may have other defaults for, and what is meant here.

Python compares two times of one zone by their wall clocks, which go back by an hour in autumn. So no time may come in
another zone than UTC. They are set once, on each new connection: PgBouncer carries each of them from one server
connection to another, as it does not with other settings.
"""


def _configure_postgres(connection: psycopg.Connection, _: ConnectionPoolEntry) -> None:
    connection.execute(_SESSION, prepare=False)
    # Our ids are texts. The driver would make an object of each, of which SQLAlchemy makes a text again.
    connection.adapters.register_loader("uuid", TextLoader)


# SET LOCAL, not startup options, since PgBouncer refuses those; one round trip with the BEGIN. A frozen holder
# of a hot row is thrown out after the idle timeout, so that others go on.
_TIMEOUTS = (
    f"; SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_SECONDS * 1000)}"
    f"; SET LOCAL statement_timeout = {int(STATEMENT_TIMEOUT_SECONDS * 1000)}"
    f"; SET LOCAL idle_in_transaction_session_timeout = {int(IDLE_TIMEOUT_SECONDS * 1000)}"
)
_BEGIN_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED" + _TIMEOUTS
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" + _TIMEOUTS
