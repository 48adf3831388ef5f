"""PurgeHistory deletes what ended long ago and nothing else, and bulk statements use their indexes."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import bindparam, case, event, func, select, text, update

from inventory_api.domain.commands import ExpireRequest, PurgeRequest
from inventory_api.domain.errors import ReservationNotFound
from inventory_api.domain.model import ENDED, Item, Line, OrderSize, Reservation, State
from inventory_api.operations.purge import Purge, Purged
from inventory_api.operations.reservations.cover_shortage import cover_shortage
from inventory_api.operations.reservations.expire import ExpirySweep
from inventory_api.store import tables
from inventory_api.store.reservations import by_order, counts, newest
from shop_common.db.database import FORCE_INDEX_PLANS, Database
from shop_common.db.sql import Timestamp, now
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import InventoryDriver, deadline, order_key, stock_key

DAY = 24 * 3600.0


def age(inventory: InventoryDriver, *reservations: Reservation, days: float) -> None:
    """Make the reservations this many days old, and also the ends of those that have ended."""
    table = tables.stock_reservations
    with inventory.database.write() as tx:
        then = now(tx) - timedelta(days=days)
        ended = case((table.c.is_active, None), else_=bindparam("ended_at", then, type_=Timestamp()))
        tx.execute(
            update(table)
            .where(table.c.id.in_([each.id for each in reservations]))
            .values(created_at=then, ended_at=ended)
        )


def age_keys(inventory: InventoryDriver, days: float) -> None:
    with inventory.database.write() as tx:
        tx.execute(update(tables.idempotency_keys.table).values(created_at=now(tx) - timedelta(days=days)))


def purge(inventory: InventoryDriver, *, max_count: int = 1000, older_than_seconds: float = DAY) -> Purged:
    return inventory.operations.purge(PurgeRequest(older_than_seconds, max_count), deadline=deadline())


def rows(database: Database, table: str) -> int:
    with database.read() as tx:
        return tx.execute(select(func.count()).select_from(tables.metadata.tables[table])).scalar_one()


def test_only_old_reservations_that_have_ended_are_purged(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 100)
    held, confirmed, due, released, expired, fulfilled, recent = (
        inventory.reserve(1, 1, order=order) for order in ("h", "c", "l", "r", "e", "f", "recent")
    )
    inventory.make_due(expired)
    inventory.expire()
    inventory.confirm("c")
    inventory.confirm("f")
    inventory.ship("f")
    inventory.release(released)
    inventory.release(recent)
    inventory.make_due(due)
    age(inventory, held, confirmed, due, released, expired, fulfilled, days=2)
    age(inventory, recent, days=0.5)

    assert purge(inventory) == Purged(keys=0, reservations=3)

    with inventory.database.read() as tx:
        left = set(tx.execute(select(tables.stock_reservations.c.id)).scalars())
    assert left == {each.id for each in (held, confirmed, due, recent)}
    assert rows(inventory.database, "reservation_allocations") == 4
    assert rows(inventory.database, "inventory_items") == 1
    # The consistency check after the test would report the events of purged reservations.
    with inventory.database.write() as tx:
        tx.execute(tables.outbox.table.delete())
        tx.execute(tables.stock_movements.delete())
        tx.execute(tables.stock_reservations.delete())
        tx.execute(update(tables.inventory_items).values(reserved_quantity=0, version=0, revision=0, booked_quantity=0))


def test_a_reservation_that_ended_today_is_kept_however_old_it_is(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    released, shipped, expired = (inventory.reserve(1, 1, order=order) for order in ("released", "shipped", "expired"))
    inventory.confirm("released")
    inventory.confirm("shipped")
    age(inventory, released, shipped, expired, days=8)
    inventory.make_due(expired, ago_seconds=8 * DAY)

    inventory.release(released)
    inventory.ship("shipped")
    inventory.expire()

    assert purge(inventory, older_than_seconds=7 * DAY) == Purged(0, 0)
    assert inventory.release(released) == 1
    assert inventory.ship("shipped") == {"shipped": {1: 1}}


def test_a_reservation_without_ended_at_counts_as_ended_at_the_first_purge(
    inventory: InventoryDriver,
) -> None:
    inventory.add_stock(1, 10)
    held, ended = (inventory.reserve(1, 1, order=order) for order in ("held", "ended"))
    inventory.release(ended)
    age(inventory, held, ended, days=8)
    with inventory.database.write() as tx:
        tx.execute(update(tables.stock_reservations).values(ended_at=None))

    assert purge(inventory, older_than_seconds=7 * DAY) == Purged(0, 0)

    with inventory.database.read() as tx:
        times = tx.execute(select(tables.stock_reservations.c.id, tables.stock_reservations.c.ended_at)).all()
        today = now(tx) - timedelta(days=1)
    written = {row.id: row.ended_at for row in times}
    assert written[held.id] is None
    assert written[ended.id] > today


def test_a_purge_deletes_at_most_max_count_oldest_first(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 100)
    ended = [inventory.reserve(1, 1, order=f"order-{n}", request_id=f"r-{n}") for n in range(5)]
    for days, reservation in enumerate(ended, start=2):
        inventory.release(reservation)
        age(inventory, reservation, days=days)
    age_keys(inventory, days=2)
    with inventory.database.write() as tx:
        tx.execute(tables.outbox.table.delete())
        tx.execute(tables.stock_movements.delete())
        tx.execute(update(tables.inventory_items).values(version=0, revision=0, booked_quantity=0))

    assert purge(inventory, max_count=2) == Purged(keys=2, reservations=2)

    with inventory.database.read() as tx:
        left = set(tx.execute(select(tables.stock_reservations.c.id)).scalars())
    assert left == {each.id for each in ended[:3]}
    assert purge(inventory, max_count=2) == Purged(2, 2)
    assert purge(inventory, max_count=2) == Purged(1, 1)
    assert purge(inventory, max_count=2) == Purged(0, 0)
    assert rows(inventory.database, "inventory_items") == 1


def test_a_recent_request_id_is_kept(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, request_id="r")
    age_keys(inventory, days=0.9)

    assert purge(inventory) == Purged(0, 0)
    assert inventory.add_stock(1, 1, request_id="r").quantity == 1


def test_a_purged_request_id_is_a_new_request(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, request_id="r")
    age_keys(inventory, days=1.1)

    assert purge(inventory) == Purged(1, 0)
    assert inventory.add_stock(1, 1, request_id="r").quantity == 2


def test_a_repeat_whose_reservation_was_purged_reserves_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    held = inventory.reserve(1, 1, request_id="r")
    inventory.release(held)
    age(inventory, held, days=2)
    purge(inventory)
    with inventory.database.write() as tx:
        tx.execute(tables.outbox.table.delete())
        tx.execute(tables.stock_movements.delete())
        tx.execute(update(tables.inventory_items).values(version=0, revision=0, booked_quantity=0))

    with pytest.raises(ReservationNotFound):
        inventory.reserve_lines("order-1", Line(1, 1), request_id="r")
    assert inventory.available(1) == 1


@pytest.fixture
def long_history(database: Database) -> Database:
    """20,000 reservations, half of them ended and a few of those old, and 20,000 idempotency keys."""
    series = {
        "sqlite": "(WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 20000) SELECT n FROM g)",
        "postgresql": "(SELECT n FROM generate_series(1, 20000) AS g(n))",
    }[database.engine.dialect.name]
    uuid, timestamp = {
        "sqlite": ("printf('00000000-0000-7000-8000-%012d', n)", "strftime('%s','now') * 1000000 - n * 1000000"),
        "postgresql": (
            "('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid",
            "clock_timestamp() - n * interval '1 second'",
        ),
    }[database.engine.dialect.name]
    with database.write() as tx:
        if not database.is_sqlite:
            tx.execute(
                text("SET LOCAL statement_timeout = 0")
            )  # inserting so many rows may take long on a busy machine
        tx.execute(
            text(
                "INSERT INTO inventory_items"
                " (id, product_id, location, quantity, reserved_quantity, version, created_at, updated_at)"
                f" SELECT n - 1, n - 1, 'A', 9, 9, 1, {timestamp}, {timestamp} FROM {series} AS g WHERE n <= 5000"
            )
        )
        tx.execute(
            text(
                "INSERT INTO stock_reservations"
                " (id, product_id, quantity, order_id, state, created_at, expires_at, ended_at, sole_item_id)"
                f" SELECT {uuid}, n % 5000, 1, 'order-' || n,"
                " CASE WHEN n % 2 = 0 THEN 'HELD' ELSE 'RELEASED' END,"
                f" {timestamp}, {timestamp}, CASE WHEN n % 2 = 0 THEN NULL ELSE {timestamp} END, n % 5000"
                f" FROM {series} AS g"
            )
        )
        tx.execute(
            text(
                "INSERT INTO reservation_allocations (reservation_id, item_id, quantity)"
                f" SELECT {uuid}, n % 5000, 1 FROM {series} AS g"
            )
        )
        tx.execute(
            text(
                "INSERT INTO idempotency_keys (method, scope, request_id, fingerprint, resources, created_at)"
                f" SELECT 'm', '', 'r-' || n, '', '[]', {timestamp} FROM {series} AS g"
            )
        )
        tx.execute(text("ANALYZE"))
    return database


@pytest.fixture
def explained(long_history: Database) -> Iterator[list[str]]:
    """The plans of all statements on reservations and keys that the test runs. None may scan a whole table."""
    plans: list[str] = []

    def explain(tx: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "stock_reservations" in statement or "DELETE" in statement:
            plans.append(_plan(long_history, statement, parameters))

    event.listen(long_history.engine, "before_cursor_execute", explain)
    yield plans
    event.remove(long_history.engine, "before_cursor_execute", explain)
    tables_read = "(stock_reservations|idempotency_keys|reservation_allocations)"
    assert [plan for plan in plans if re.search(f"Seq Scan on {tables_read}|SCAN {tables_read}\n", plan + "\n")] == []


def test_a_purge_scans_no_whole_table(long_history: Database, explained: list[str]) -> None:
    purged = Purge(long_history).run(PurgeRequest(19_900, 10))

    assert purged == Purged(10, 10)
    without_end, ended, _, of_keys = explained
    assert "ix_stock_reservations_ended_at" in without_end
    assert "ix_stock_reservations_ended_at" in ended
    assert "ix_idempotency_keys_created_at" in of_keys


def test_expiring_scans_no_whole_table(long_history: Database, explained: list[str]) -> None:
    assert ExpirySweep(long_history).expire_due(ExpireRequest(5)) == 5

    assert "ix_stock_reservations_due" in explained[0]


@pytest.mark.parametrize(
    ("location", "indexes"),
    [
        (None, ["ix_stock_reservations_product_tenant_due", "ix_stock_reservations_product_tenant_due"]),
        ("A", ["ix_stock_reservations_product_tenant_due", *["ix_stock_reservations_item_tenant_due"] * 2]),
    ],
)
def test_finding_due_reservations_for_a_stock_key_uses_its_index_and_sorts_nothing(
    long_history: Database, explained: list[str], location: str | None, indexes: list[str]
) -> None:
    timestamp = datetime.now(UTC)
    stock = {8: Item(DEFAULT, 8, 8, "A", 10, 10, 1, timestamp, timestamp)}

    with long_history.write() as tx:
        expired, more = cover_shortage(tx, {stock_key(8, location): 3}, stock, 0)

    assert (expired, more) == ([], True)
    searches = explained[: len(indexes)]
    for plan, index in zip(searches, indexes, strict=True):
        # Each query reads the first due reservations in index order.
        assert index in plan
        assert not re.search("Sort|TEMP B-TREE", plan)


def test_the_newest_reservations_of_an_item_are_read_from_an_index(
    long_history: Database, explained: list[str]
) -> None:
    timestamp = datetime.now(UTC)
    item = Item(DEFAULT, 8, 8, "A", 10, 10, 1, timestamp, timestamp)

    with long_history.write() as tx:
        held = newest.held(tx, item, 9)
        tx.execute(
            update(tables.stock_reservations)
            .where(tables.stock_reservations.c.id.in_([held[0].reservation.id]))
            .values(state="CONFIRMED")
        )
        explained.clear()
        assert newest.held(tx, item, 2) == held[1:3]
        assert newest.confirmed(tx, item, 2) == held[:1]

    for plan in explained[:2]:
        assert "ix_stock_reservations_item_tenant_due" in plan
    for plan in explained[2:]:
        # Confirmed reservations may be many, so each query reads only the first ones in index order.
        assert "ix_stock_reservations_item_tenant_confirmed" in plan
        assert not re.search("Sort|TEMP B-TREE", plan)


def test_the_reservations_of_an_order_are_found_by_state_in_an_index(
    long_history: Database, explained: list[str]
) -> None:
    order_2, order_3 = orders = [order_key("order-2"), order_key("order-3")]
    with long_history.read() as tx:
        _, sizes = by_order.sizes(tx, orders)
        overviews = by_order.overviews(tx, orders)
        active = by_order.in_states(tx, orders, [State.HELD, State.CONFIRMED], 10)
        by_order.unreleased(tx, orders)
        by_order.fulfilled_units(tx, orders)

    assert sizes == {order_2: OrderSize(1, 1), order_3: OrderSize(0, 0)}
    assert (overviews[order_2].has_released, overviews[order_3].has_released) == (False, True)
    assert [(each.order, each.allocations) for each in active] == [(order_2, 1)]
    assert len(explained) == 5
    assert all("ix_stock_reservations_order_id_tenant_state_id_owner" in plan for plan in explained)


def test_counting_held_reservations_scans_no_whole_table(long_history: Database) -> None:
    plans: list[str] = []

    def explain(tx: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if "stock_reservations" in statement:
            # Explain in the transaction of the statement, because the settings of the transaction change the plan.
            plans.append(_explained(cursor.connection, long_history, statement, parameters))

    event.listen(long_history.engine, "before_cursor_execute", explain)
    try:
        long_history.query(counts.count, FORCE_INDEX_PLANS)
    finally:
        event.remove(long_history.engine, "before_cursor_execute", explain)

    (plan,) = plans
    assert plan.count("ix_stock_reservations_due") == 2
    assert plan.count("ix_stock_reservations_set_aside") == 1


def test_the_indexes_for_purging_cover_every_ended_state() -> None:
    conditions = "".join(
        str(index.dialect_options["postgresql"]["where"])
        for index in tables.stock_reservations.indexes
        if index.name in ("ix_stock_reservations_ended_at", "ix_stock_reservations_replaced")
    )

    assert all(f"'{state}'" in conditions for state in ENDED)


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
