"""After a million events have passed through the outbox, a pass of the relay costs as much as before.

The cost is the number of blocks that PostgreSQL reads for the relay's statements, which does not depend on the load of
the machine. Without the vacuum settings of the migrations it would be three times as high.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event, make_url, text

from devstack.postgres import PostgresServer
from event_relay.outbox_rows import OutboxRows
from order_api.migrations import SCHEMA
from order_api.store.tables import outbox
from shop_common.db.database import FORCE_INDEX_PLANS, Database
from shop_common.events.outbox import SHARDS

EVENTS = 1_000_000
BATCH_EVENTS = 20_000
WAITING_EVENTS = 2_000
SETTLE_SECONDS = 60
_POLL_SECONDS = 0.2

# Dead rows accumulate between runs of autovacuum. A million events take a minute here and at least a quarter of an hour
# in production, so autovacuum has to run more often here.
_VACUUM_EACH_SECOND = "ALTER SYSTEM SET autovacuum_naptime = '1s'"
_RESET_VACUUM = "ALTER SYSTEM RESET autovacuum_naptime"

_EVENTS = text(
    "INSERT INTO outbox (shard, event_id, topic, key, type, payload, created_at)"
    " SELECT number % :shards, gen_random_uuid(), 'order-events', number::text, 'ORDER_CREATED', repeat('x', 300),"
    " clock_timestamp() FROM generate_series(1, :count) AS number"
)


@pytest.fixture
def administrator(postgres_server: PostgresServer) -> Iterator[psycopg.Connection]:
    plain = make_url(postgres_server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        yield connection


@pytest.fixture
def database(postgres_server: PostgresServer, administrator: psycopg.Connection) -> Iterator[Database]:
    """A migrated database on a server whose autovacuum starts every second."""
    for statement in (_VACUUM_EACH_SECOND, "SELECT pg_reload_conf()"):
        administrator.execute(statement)
    url = postgres_server.new_database("orders")
    with closing(Database(url, connections_max=1)) as database:
        SCHEMA.upgrade(database)
        yield database
    postgres_server.drop_database(url)
    for statement in (_RESET_VACUUM, "SELECT pg_reload_conf()"):
        administrator.execute(statement)


@pytest.mark.timeout(400)
def test_after_a_million_events_a_relay_pass_reads_as_many_blocks_as_before(database: Database) -> None:
    rows = OutboxRows(outbox.table)
    write(database, WAITING_EVENTS)
    blocks_before, pages_before = cost(database, rows), pages(database)

    for _ in range(EVENTS // BATCH_EVENTS):
        write(database, BATCH_EVENTS)
        ship(database, rows, BATCH_EVENTS)
    # The next vacuum removes the rows that died after the last one.
    deadline = time.monotonic() + SETTLE_SECONDS
    while (blocks_after := cost(database, rows)) > 1.5 * blocks_before and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)

    assert blocks_after <= 1.5 * blocks_before
    passed = pages_before * EVENTS / WAITING_EVENTS
    assert pages(database) < passed / 2, "space of shipped events is reused"


def write(database: Database, count: int) -> None:
    database.transact(lambda tx: tx.execute(_EVENTS, {"shards": SHARDS, "count": count}))


def ship(database: Database, rows: OutboxRows, count: int) -> None:
    """Read and delete events in batches, as the relay does."""
    shipped = 0
    while shipped < count:
        batch = database.query(lambda tx: rows.oldest(tx, range(SHARDS)), FORCE_INDEX_PLANS)
        shipped += len(batch)
        with database.write(FORCE_INDEX_PLANS) as tx:
            rows.delete(tx, batch)


def cost(database: Database, rows: OutboxRows) -> int:
    """The number of blocks that four statements touch: read all shards, read half of them, delete, count the rest."""
    waiting = database.query(lambda tx: rows.oldest(tx, range(SHARDS)), FORCE_INDEX_PLANS)
    assert len(waiting) == WAITING_EVENTS
    return sum(
        blocks(database, statement)
        for statement in (
            lambda tx: rows.oldest(tx, range(SHARDS)),
            lambda tx: rows.oldest(tx, range(0, SHARDS, 2)),
            lambda tx: rows.delete(tx, waiting),
            rows.backlog,
        )
    )


def blocks(database: Database, run: Callable[[Connection], object]) -> int:
    """The number of blocks that the statements on the outbox touch. The changes are rolled back."""
    touched: list[int] = []

    def measured(
        _tx: Connection, cursor: Any, statement: str, parameters: Any, _context: object, _many: bool
    ) -> tuple[str, Any]:
        if "outbox" in statement:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
            plan = cursor.fetchone()[0][0]["Plan"]
            touched.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        return statement, parameters

    event.listen(database.engine, "before_cursor_execute", measured, retval=True)
    try:
        with database.write(FORCE_INDEX_PLANS) as tx:
            run(tx)
            tx.rollback()
            tx.begin()
    finally:
        event.remove(database.engine, "before_cursor_execute", measured)
    assert touched
    return sum(touched)


def pages(database: Database) -> int:
    query = text("SELECT pg_relation_size('outbox') / current_setting('block_size')::int")
    return int(database.query(lambda tx: tx.execute(query).scalar_one()))
