"""The relay's queries use indexes even when the statistics were taken while the outbox was empty."""

from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy import Connection, event

from event_relay.outbox_rows import OutboxRows
from shop_common.db.database import FORCE_INDEX_PLANS
from shop_common.events.outbox import SHARDS
from testkit.drivers.relay import OutboxDriver


def test_plans_use_indexes_after_the_table_was_analyzed_while_it_was_empty(driver: OutboxDriver) -> None:
    rows = OutboxRows(driver.outbox.table)
    driver.write_numbered(keys=100, each=20)
    relay = driver.relay()
    while relay.relay_once():
        pass
    analyze(driver)
    driver.write_numbered(keys=100, each=200)

    pending = driver.pending()
    read = plan(driver, lambda tx: rows.oldest(tx, range(SHARDS)))
    half = plan(driver, lambda tx: rows.oldest(tx, range(0, SHARDS, 2)))
    deletion = plan(driver, lambda tx: rows.delete(tx, pending))
    backlog = plan(driver, rows.backlog)

    if driver.database.is_sqlite:
        assert read == "SCAN outbox", "by rowid, up to the limit"
        assert half.count("USING INDEX ix_outbox_shard_id (shard>? AND shard<?)") == SHARDS / 2
        assert "SEARCH outbox USING INTEGER PRIMARY KEY (rowid=?)" in deletion
        assert "TEMP B-TREE" not in half
    else:
        assert "Index Scan using outbox_pkey" in read
        assert half.count("Index Scan using ix_outbox_shard_id") == SHARDS / 2
        assert "Index Cond: (id = ANY (" in deletion
        assert "Join" not in deletion
        for text in (read, half, deletion, backlog):
            assert "Seq Scan" not in text
            assert "Sort" not in text


def analyze(driver: OutboxDriver) -> None:
    """Take statistics now, as autovacuum does at times."""
    if driver.database.is_sqlite:
        with driver.database.write() as tx:
            tx.exec_driver_sql("ANALYZE")
    else:
        with psycopg.connect(driver.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE outbox")


def plan(driver: OutboxDriver, operation: Callable[[Connection], Any]) -> str:
    """The query plans of the operation's statements on the outbox, as text. The operation is rolled back."""
    explain = "EXPLAIN QUERY PLAN" if driver.database.is_sqlite else "EXPLAIN"
    lines: list[str] = []

    def explained(
        tx: Connection, cursor: Any, statement: str, parameters: Any, _context: object, _many: bool
    ) -> tuple[str, Any]:
        if "outbox" in statement and not statement.startswith(explain):
            cursor.execute(f"{explain} {statement}", parameters)
            lines.extend(str(row[-1]) for row in cursor.fetchall())
        return statement, parameters

    event.listen(driver.database.engine, "before_cursor_execute", explained, retval=True)
    try:
        with driver.database.write(FORCE_INDEX_PLANS) as tx:
            operation(tx)
            tx.rollback()
            tx.begin()
    finally:
        event.remove(driver.database.engine, "before_cursor_execute", explained)
    return "\n".join(lines)
