"""Statements over sets of rows, column types and the clock behave alike on both databases."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    event,
    select,
    update,
)

from shop_common.api.valid import INT64_MAX
from shop_common.db.database import Database
from shop_common.db.sql import (
    Amount,
    Id,
    RowId,
    Statement,
    Timestamp,
    clock,
    in_rows,
    insert_into,
    join_rows,
    micros_of,
    now,
)
from shop_common.timestamps import micros

METADATA = MetaData()
PARCELS = Table(
    "parcels",
    METADATA,
    Column("id", RowId, primary_key=True),
    Column("label", Id, unique=True),
    Column("name", Text),
    Column("weight", BigInteger),
    Column("price", Amount),
    Column("sent_at", Timestamp),
    sqlite_autoincrement=True,
)
LABELS = [f"018f3d5e-7b7a-7c3e-9a52-{number:012}" for number in range(4)]

put = insert_into(PARCELS, "label", "name", "weight", "sent_at", returning=[PARCELS.c.id])
put_new = insert_into(PARCELS, "label", or_ignore=True, returning=[PARCELS.c.label])
weigh = Statement(
    lambda given: update(PARCELS).values(weight=given.c.weight).where(PARCELS.c.label == given.c.label),
    label=Id(),
    weight=BigInteger(),
)
find = Statement(
    lambda given: select(PARCELS.c.label).where(PARCELS.c.weight.in_(select(given.c.weight))).order_by(PARCELS.c.id),
    weight=BigInteger(),
)

put_names = insert_into(PARCELS, "name")
read = Statement(lambda given: select(PARCELS).where(in_rows(PARCELS.c.id, given.c.id)), id=BigInteger())
weigh_by_id = Statement(
    lambda given: update(PARCELS).values(weight=given.c.weight).where(*join_rows(PARCELS.c.id, given.c.id)),
    id=BigInteger(),
    weight=BigInteger(),
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.write() as tx:
        METADATA.create_all(tx)
    yield database
    database.close()


def row(number: int, **other: object) -> dict[str, object]:
    return {"label": LABELS[number], "name": None, "weight": None, "sent_at": None, **other}


def test_rows_are_inserted_in_the_order_given_and_numbered_in_it(database: Database) -> None:
    with database.write() as tx:
        ids = [each.id for each in put(tx, [row(number) for number in (2, 0, 3, 1)])]
        stored = list(tx.execute(select(PARCELS.c.label).order_by(PARCELS.c.id)).scalars())

    assert ids == sorted(ids)
    assert stored == [LABELS[number] for number in (2, 0, 3, 1)]


def test_conflicts_are_passed_over_and_only_what_was_inserted_is_returned(database: Database) -> None:
    with database.write() as tx:
        put(tx, [row(1)])
        won = {each.label for each in put_new(tx, [{"label": LABELS[number]} for number in (0, 1, 2)])}

    assert won == {LABELS[0], LABELS[2]}


def test_an_id_is_a_text_on_any_engine(database: Database, database_url: str) -> None:
    with database.write() as tx:
        put(tx, [row(1)])
    with create_engine(database_url, poolclass=NullPool).connect() as tx:
        assert tx.execute(select(PARCELS.c.label)).scalars().all() == [LABELS[1]]


def test_an_update_gives_each_row_its_own_value(database: Database) -> None:
    with database.write() as tx:
        put(tx, [row(number, weight=0) for number in range(3)])
        weigh(tx, [{"label": LABELS[0], "weight": INT64_MAX}, {"label": LABELS[2], "weight": None}])
        found = list(tx.execute(select(PARCELS.c.weight).order_by(PARCELS.c.id)).scalars())

    assert found == [INT64_MAX, 0, None]


def test_one_statement_serves_any_number_of_rows(database: Database) -> None:
    with database.write() as tx:
        put(tx, [row(number, weight=number) for number in range(4)])
        found = [len(find(tx, [{"weight": weight} for weight in range(count)])) for count in (1, 2000, 3)]

    assert found == [1, 4, 3]


def test_a_row_id_is_never_given_out_again(database: Database) -> None:
    with database.write() as tx:
        (first,) = put(tx, [row(0)])
        tx.execute(PARCELS.delete())
        (second,) = put(tx, [row(1)])

    assert second.id > first.id


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    weight=st.integers(-(2**63), 2**63 - 1),
    sent_at=st.datetimes(datetime(1000, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - given one
)
def test_any_value_comes_back_as_it_was(database: Database, name: str, weight: int, sent_at: datetime) -> None:
    with database.write() as tx:
        tx.execute(PARCELS.delete())
        put(tx, [row(0, name=name, weight=weight, sent_at=sent_at)])
        stored = tx.execute(select(PARCELS.c.name, PARCELS.c.weight, PARCELS.c.sent_at)).one()

    assert tuple(stored) == (name, weight, sent_at)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent_at=st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - given one
def test_a_moment_can_be_read_as_microseconds(database: Database, sent_at: datetime) -> None:
    with database.write() as tx:
        tx.execute(PARCELS.delete())
        put(tx, [row(0, sent_at=sent_at)])
        read_as = tx.execute(select(micros_of(PARCELS.c.sent_at))).scalar_one()

    assert read_as == micros(sent_at)


@pytest.mark.parametrize("price", ["0", "0.000000001", "199.99", "1000000000000000", "999999999999999.999999999"])
def test_an_amount_is_stored_exactly(database: Database, price: str) -> None:
    with database.write() as tx:
        tx.execute(PARCELS.insert().values(price=Decimal(price)))
        assert tx.execute(select(PARCELS.c.price)).scalar_one() == Decimal(price)


def test_the_databases_clock_goes_on_within_a_transaction(database: Database) -> None:
    with database.write() as tx:
        first = second = now(tx)
        deadline = time.monotonic() + 5
        while second == first and time.monotonic() < deadline:
            second = now(tx)

    assert first.tzinfo is not None
    assert first < second
    assert abs(second - datetime.now(UTC)) < timedelta(seconds=5)


def test_the_clock_inside_a_statement_is_the_same_clock(database: Database) -> None:
    with database.write() as tx:
        moment = now(tx)
        put(tx, [row(0, sent_at=moment - timedelta(hours=1)), row(1, sent_at=moment + timedelta(hours=1))])
        past = tx.execute(select(PARCELS.c.label).where(PARCELS.c.sent_at <= clock())).scalars().all()

    assert past == [LABELS[0]]


@pytest.mark.parametrize("count", [1, 300])
def test_rows_are_found_by_index_for_one_as_for_many(database: Database, count: int) -> None:
    plans: list[str] = []

    def explain(tx: Connection, _: object, statement: str, parameters: Any, *__: object) -> None:
        if not statement.startswith("EXPLAIN"):
            word = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
            plans.extend(str(step) for step in tx.exec_driver_sql(word + statement, parameters))

    with database.write() as tx:
        put_names(tx, [{"name": f"parcel {number}"} for number in range(5000)])
        if not database.is_sqlite:
            tx.exec_driver_sql("ANALYZE parcels")
        event.listen(tx, "before_cursor_execute", explain)
        ids = [{"id": number + 1, "weight": number} for number in range(count)]

        assert len(read(tx, ids)) == count
        weigh_by_id(tx, ids)

    assert plans
    assert not [step for step in plans if "SCAN parcels" in step or "Seq Scan on parcels" in step], "\n".join(plans)
