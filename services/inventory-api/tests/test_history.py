"""Forgetting what ended long ago, and nothing else."""

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select, text, update
from stockroom import Stockroom, deadline

from inventory_api import history, holds, tables, transitions
from inventory_api.domain import ENDED, Line, Reservation, ReservationNotFound
from inventory_api.expiry import Expiry
from inventory_api.history import Purged, PurgeRequest
from shop_common.database import STEADY_PLANS, Database
from shop_common.sql import now

DAY = 24 * 3600.0


def age(stockroom: Stockroom, *reservations: Reservation, days: float) -> None:
    """Let the reservations have been made so many days ago."""
    table = tables.stock_reservations
    with stockroom.database.write() as tx:
        tx.execute(
            update(table)
            .where(table.c.id.in_([each.id for each in reservations]))
            .values(created_at=now(tx) - timedelta(days=days))
        )


def age_keys(stockroom: Stockroom, days: float) -> None:
    with stockroom.database.write() as tx:
        tx.execute(update(tables.idempotency_keys.table).values(created_at=now(tx) - timedelta(days=days)))


def purge(stockroom: Stockroom, *, max_count: int = 1000, older_than_seconds: float = DAY) -> Purged:
    return stockroom.operations.purge(PurgeRequest(older_than_seconds, max_count), deadline=deadline())


def rows(database: Database, table: str) -> int:
    with database.read() as tx:
        return tx.execute(select(func.count()).select_from(tables.metadata.tables[table])).scalar_one()


def test_only_what_has_ended_and_is_old_is_forgotten(stockroom: Stockroom) -> None:
    stockroom.add(1, 100)
    held, confirmed, lapsed, released, expired, fulfilled, recent = (
        stockroom.hold(1, 1, order=order) for order in ("h", "c", "l", "r", "e", "f", "recent")
    )
    stockroom.lapse(expired)
    stockroom.expire()
    stockroom.confirm("c")
    stockroom.confirm("f")
    stockroom.ship("f")
    stockroom.release(released)
    stockroom.release(recent)
    stockroom.lapse(lapsed)
    age(stockroom, held, confirmed, lapsed, released, expired, fulfilled, days=2)
    age(stockroom, recent, days=0.5)

    assert purge(stockroom) == Purged(keys=0, reservations=3)

    with stockroom.database.read() as tx:
        left = set(tx.execute(select(tables.stock_reservations.c.id)).scalars())
    assert left == {each.id for each in (held, confirmed, lapsed, recent)}
    assert rows(stockroom.database, "reservation_allocations") == 4
    assert rows(stockroom.database, "inventory_items") == 1
    # Its events outlive it, so the audit after the test has nothing to compare them with.
    with stockroom.database.write() as tx:
        tx.execute(tables.outbox.table.delete())
        tx.execute(tables.stock_reservations.delete())
        tx.execute(update(tables.inventory_items).values(reserved_quantity=0, version=0))


def test_one_purge_forgets_no_more_than_it_was_asked_to_the_oldest_first(stockroom: Stockroom) -> None:
    stockroom.add(1, 100)
    gone = [stockroom.hold(1, 1, order=f"order-{n}", request_id=f"r-{n}") for n in range(5)]
    for days, reservation in enumerate(gone, start=2):
        stockroom.release(reservation)
        age(stockroom, reservation, days=days)
    age_keys(stockroom, days=2)
    with stockroom.database.write() as tx:
        tx.execute(tables.outbox.table.delete())
        tx.execute(update(tables.inventory_items).values(version=0))

    assert purge(stockroom, max_count=2) == Purged(keys=2, reservations=2)

    with stockroom.database.read() as tx:
        left = set(tx.execute(select(tables.stock_reservations.c.id)).scalars())
    assert left == {each.id for each in gone[:3]}
    assert purge(stockroom, max_count=2) == Purged(2, 2)
    assert purge(stockroom, max_count=2) == Purged(1, 1)
    assert purge(stockroom, max_count=2) == Purged(0, 0)
    assert rows(stockroom.database, "inventory_items") == 1


def test_a_recent_request_id_is_remembered(stockroom: Stockroom) -> None:
    stockroom.add(1, 1, request_id="r")
    age_keys(stockroom, days=0.9)

    assert purge(stockroom) == Purged(0, 0)
    assert stockroom.add(1, 1, request_id="r").quantity == 1


def test_a_forgotten_request_id_is_a_new_call(stockroom: Stockroom) -> None:
    stockroom.add(1, 1, request_id="r")
    age_keys(stockroom, days=1.1)

    assert purge(stockroom) == Purged(1, 0)
    assert stockroom.add(1, 1, request_id="r").quantity == 2


def test_a_repeat_whose_reservation_was_forgotten_holds_nothing_anew(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    held = stockroom.hold(1, 1, request_id="r")
    stockroom.release(held)
    age(stockroom, held, days=2)
    purge(stockroom)
    with stockroom.database.write() as tx:
        tx.execute(tables.outbox.table.delete())
        tx.execute(update(tables.inventory_items).values(version=0))

    with pytest.raises(ReservationNotFound):
        stockroom.hold_lines("order-1", Line(1, 1), request_id="r")
    assert stockroom.available(1) == 1


@pytest.fixture
def long_history(database: Database) -> Database:
    """Twenty thousand reservations, half of them ended, a few of those old; and as many keys."""
    series = {
        "sqlite": "(WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 20000) SELECT n FROM g)",
        "postgresql": "(SELECT n FROM generate_series(1, 20000) AS g(n))",
    }[database.engine.dialect.name]
    uuid, moment = {
        "sqlite": ("printf('00000000-0000-7000-8000-%012d', n)", "strftime('%s','now') * 1000000 - n * 1000000"),
        "postgresql": (
            "('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid",
            "clock_timestamp() - n * interval '1 second'",
        ),
    }[database.engine.dialect.name]
    with database.write() as tx:
        tx.execute(
            text(
                "INSERT INTO stock_reservations (id, product_id, quantity, order_id, state, created_at, expires_at)"
                f" SELECT {uuid}, n % 5000, 1, 'order-' || n,"
                " CASE WHEN n % 2 = 0 THEN 'HELD' ELSE 'RELEASED' END,"
                f" {moment}, {moment} FROM {series} AS g"
            )
        )
        tx.execute(
            text(
                "INSERT INTO idempotency_keys (method, scope, request_id, fingerprint, resources, created_at)"
                f" SELECT 'm', '', 'r-' || n, '', '[]', {moment} FROM {series} AS g"
            )
        )
        tx.execute(text("ANALYZE"))
    return database


def test_a_purge_reads_no_table_from_end_to_end(long_history: Database) -> None:
    plans: list[str] = []

    def explain(tx: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("DELETE"):
            plans.append(_plan(long_history, statement, parameters))

    event.listen(long_history.engine, "before_cursor_execute", explain)
    try:
        purged = long_history.transact(lambda tx: history.purge(tx, PurgeRequest(19_900, 10)))
    finally:
        event.remove(long_history.engine, "before_cursor_execute", explain)

    assert purged == Purged(10, 10)
    of_reservations, of_keys = plans
    assert "ix_stock_reservations_ended" in of_reservations
    assert "ix_idempotency_keys_created_at" in of_keys
    for plan in plans:
        assert "Seq Scan" not in plan
        assert "SCAN stock_reservations\n" not in plan + "\n"
        assert "SCAN idempotency_keys\n" not in plan + "\n"


def test_expiring_what_is_due_reads_no_table_from_end_to_end(long_history: Database) -> None:
    plans: list[str] = []

    def explain(tx: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("SELECT stock_reservations.id"):
            plans.append(_plan(long_history, statement, parameters))

    event.listen(long_history.engine, "before_cursor_execute", explain)
    try:
        with long_history.read() as tx:
            found = transitions.due_of_products(tx, [7], 10_001)
        expired = Expiry(long_history).expire_due(5)
    finally:
        event.remove(long_history.engine, "before_cursor_execute", explain)

    assert found == []  # 7 is odd, and what is odd has ended
    assert expired == 5
    of_product, of_all, *_ = plans
    # By product or by time: which is cheaper, the planner knows.
    assert re.search("ix_stock_reservations_(product_)?due", of_product)
    assert "ix_stock_reservations_due" in of_all


def test_counting_holds_reads_no_table_from_end_to_end(long_history: Database) -> None:
    plans: list[str] = []

    def explain(tx: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if "stock_reservations" in statement:
            # In its own transaction, whose settings are part of it.
            plans.append(_explained(cursor.connection, long_history, statement, parameters))

    event.listen(long_history.engine, "before_cursor_execute", explain)
    try:
        long_history.query(holds.count, STEADY_PLANS)
    finally:
        event.remove(long_history.engine, "before_cursor_execute", explain)

    (plan,) = plans
    assert plan.count("ix_stock_reservations_due") == 2


def test_every_state_that_has_ended_is_in_the_index_of_what_can_be_purged() -> None:
    (condition,) = (
        str(index.dialect_options["postgresql"]["where"])
        for index in tables.stock_reservations.indexes
        if index.name == "ix_stock_reservations_ended"
    )

    assert all(f"'{state}'" in condition for state in ENDED)


def _plan(database: Database, statement: str, parameters: Any) -> str:
    driver = database.engine.raw_connection()
    try:
        return _explained(driver, database, statement, parameters)
    finally:
        driver.close()


def _explained(driver: Any, database: Database, statement: str, parameters: Any) -> str:
    cursor = driver.cursor()
    cursor.execute(("EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN ") + statement, parameters)
    return "\n".join(str(row[-1]) for row in cursor.fetchall())
