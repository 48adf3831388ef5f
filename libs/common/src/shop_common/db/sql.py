"""SQL building blocks of all services: column types, the database's clock, and statements over sets of rows.

A statement over a set receives all its rows as one JSON parameter, read by `json_to_recordset` on PostgreSQL and
`json_each` on SQLite. So one row and two thousand rows have the same SQL text and plan, and take one round trip.

    add_reserved = Statement(
        lambda given: update(items).where(items.c.id == given.c.id).values(...),
        id=BigInteger(), quantity=BigInteger(),
    )
    add_reserved(tx, [{"id": 7, "quantity": 2}])
"""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson
import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    DateTime,
    Dialect,
    Executable,
    FromClause,
    Insert,
    Integer,
    Numeric,
    Select,
    Subquery,
    Table,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement, FunctionElement
from sqlalchemy.sql.selectable import ScalarSelect
from sqlalchemy.types import TypeDecorator, TypeEngine

from shop_common.timestamps import from_micros, micros

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
"""The names of indexes and constraints in every database, for MetaData."""

Row = Any
"""A mapping or dataclass instance with the statement's columns as keys."""


class Timestamp(TypeDecorator[datetime]):
    """A UTC timestamp with microseconds: timestamptz on PostgreSQL, microseconds since 1970 on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return micros(value) if value is not None and dialect.name == "sqlite" else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # PostgreSQL's driver already returns a datetime. A call per value would be the most expensive step of a read.
        return _timestamp_or_none if dialect.name == "sqlite" else None


def _timestamp_or_none(value: int | None) -> datetime | None:
    return None if value is None else from_micros(value)


class Id(TypeDecorator[str]):
    """A UUID in its text form: uuid on PostgreSQL, text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Uuid(as_uuid=False))


class Amount(TypeDecorator[Decimal]):
    """An exact decimal: NUMERIC on PostgreSQL, text on SQLite, which has no exact decimals."""

    impl = Numeric(28, 9)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Numeric(28, 9))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return str(value) if value is not None and dialect.name == "sqlite" else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # PostgreSQL's driver already returns a Decimal, see Timestamp.
        return _decimal_or_none if dialect.name == "sqlite" else None


def _decimal_or_none(value: str | None) -> Decimal | None:
    return None if value is None else Decimal(value)


# SQLite reuses the ids of deleted rows unless the column is AUTOINCREMENT, which requires the type INTEGER.
RowId = BigInteger().with_variant(Integer(), "sqlite")


class Clock(FunctionElement[datetime]):
    """The database's clock as an SQL expression, for column defaults. In a statement use `clock()`."""

    type = Timestamp()
    inherit_cache = True


@compiles(Clock, "postgresql")
def _postgres_clock(*_: Any, **__: Any) -> str:
    # Do not use now(): it is the start of the transaction, which is earlier than the wait for its locks.
    return "clock_timestamp()"


@compiles(Clock, "sqlite")
def _sqlite_clock(*_: Any, **__: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"


def clock() -> ScalarSelect[datetime]:
    """Return an expression that reads the clock once per statement. A bare volatile function prevents index use."""
    return select(Clock()).scalar_subquery()


class _Micros(FunctionElement[int]):
    type = BigInteger()
    inherit_cache = True


@compiles(_Micros, "postgresql")
def _postgres_micros(element: _Micros, compiler: Any, **options: Any) -> str:
    # A double is exact to a quarter of a microsecond until 2106, and five times cheaper than numeric.
    return f"CAST(date_part('epoch', {compiler.process(element.clauses, **options)}) * 1000000 AS bigint)"


@compiles(_Micros, "sqlite")
def _sqlite_micros(element: _Micros, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


def micros_of(timestamp: ColumnElement[datetime]) -> ColumnElement[int]:
    """Convert a Timestamp to microseconds since 1970 in SQL. An integer is cheaper to read than a datetime."""
    return _Micros(timestamp)


def now(tx: Connection) -> datetime:
    """Return the time of the database's clock. Call it after taking locks, because waiting for them takes time."""
    timestamp: datetime = tx.execute(_NOW).scalar_one()  # failpoint: database-clock
    return timestamp


_NOW = select(Clock())


class _InRows(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        # Without this, SQLAlchemy renders `(… IN …) = 1` for SQLite, which has no booleans. No index serves that.
        return self


@compiles(_InRows, "postgresql")
def _postgres_in_rows(element: _InRows, compiler: Any, **options: Any) -> str:
    # PostgreSQL plans IN with a subquery as a join, and scans the whole table while the table is small. With an array
    # it uses the index, for one row as well as for two thousand.
    value, values = (compiler.process(each, **options) for each in element.clauses)
    return f"{value} = ANY (ARRAY{values})"


@compiles(_InRows, "sqlite")
def _sqlite_in_rows(element: _InRows, compiler: Any, **options: Any) -> str:
    value, values = (compiler.process(each, **options) for each in element.clauses)
    return f"{value} IN {values}"


def in_rows(
    value: ColumnElement[Any], values: ColumnElement[Any] | Select[Any], *, outer: Subquery | None = None
) -> ColumnElement[bool]:
    """Return the condition that the column `value` equals one of `values`.

    `values` is a column of the input rows or a SELECT, which may refer to `outer`, a subquery of the enclosing
    statement. Both databases use the index on the column `value`.
    """
    selected = values if isinstance(values, Select) else select(values)
    return _InRows(value, selected.correlate(outer).scalar_subquery())


class _JoinRows(_InRows):
    inherit_cache = True


@compiles(_JoinRows, "sqlite")
def _sqlite_join_rows(*_: Any, **__: Any) -> str:
    # SQLite loops over the input rows, and finds the table row of each input row by index. With a second condition it
    # would loop over the table and scan all input rows for each table row, which takes quadratic time.
    return "1"


def join_rows(value: ColumnElement[Any], values: ColumnElement[Any]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the join conditions for an UPDATE from the input rows. PostgreSQL uses the index, as with `in_rows`."""
    return value == values, _JoinRows(value, select(values).correlate(None).scalar_subquery())


class _Each(FunctionElement[Any]):
    inherit_cache = True


@compiles(_Each, "postgresql")
def _postgres_each(element: _Each, compiler: Any, **options: Any) -> str:
    # With `=` alone, PostgreSQL may choose a hash join, and scans the whole table while the table is small or has no
    # statistics. It cannot hash `= ANY`, so it looks up each input row in the index.
    return f"ANY (ARRAY[{compiler.process(element.clauses, **options)}])"


@compiles(_Each, "sqlite")
def _sqlite_each(element: _Each, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


def is_each(table: Table, given: FromClause, *names: str) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that join the input rows with the rows of `table` that have equal values in these columns.

    Use it for keys of several columns, such as a tenant and an id. Both databases find the rows of one input row after
    another by an index that begins with these columns, in any order. The input rows must be distinct.
    """
    return tuple(table.c[name] == _Each(given.c[name]) for name in names)


class Statement:
    """A statement over a set of rows. `build` builds it for each dialect, at the first use.

    `build` receives the input rows as a subquery with the named columns. Do not call the statement with an empty list:
    this would cost a round trip and do nothing.
    """

    def __init__(self, build: Callable[[Subquery], Executable], **columns: TypeEngine[Any]) -> None:
        self._build = build
        self._columns = columns
        self._built: dict[str, Executable] = {}

    def __call__(self, tx: Connection, rows: Sequence[Row], **parameters: Any) -> Sequence[sqlalchemy.Row[Any]]:
        """Run the statement for these rows. Returns the rows of its SELECT or RETURNING, else an empty sequence."""
        dialect = tx.dialect.name
        built = self._built.get(dialect)
        if built is None:
            built = self._built[dialect] = self._build(_given(dialect, self._columns))
        result = tx.execute(built, {"given": _packed(rows, dialect), **parameters})
        # Fetch all rows at once, because iteration over a result calls the cursor for each row.
        return result.all() if result.returns_rows else ()


def insert_into(
    table: Table, *names: str, or_ignore: bool = False, returning: Sequence[ColumnElement[Any]] = ()
) -> Statement:
    """Make an INSERT of many rows into the named columns, in row order. `or_ignore` skips rows that conflict."""

    def build(given: Subquery) -> Executable:
        # Both databases read the rows in the order of the JSON array, so they assign ids in this order. Without the
        # WHERE clause, SQLite would parse ON CONFLICT as the condition of a join.
        source = select(*(given.c[name] for name in names)).where(true())
        into = _InsertOrIgnore(table) if or_ignore else insert(table)
        statement = into.from_select(list(names), source)
        return statement.returning(*returning) if returning else statement

    return Statement(build, **{name: table.c[name].type for name in names})


def count_by(table: Table, *names: str) -> Callable[[Connection, Collection[tuple[Any, ...]]], dict[Any, int]]:
    """Make a function that counts the rows for each of some keys. A key has the values of the named columns.

    The function returns the counts by key. Keys without rows are missing from the result. It needs the index of
    `is_each`.
    """
    columns = [table.c[name] for name in names]
    statement = Statement(
        lambda given: select(*columns, func.count()).where(*is_each(table, given, *names)).group_by(*columns),
        **{name: table.c[name].type for name in names},
    )

    def count(tx: Connection, keys: Collection[tuple[Any, ...]]) -> dict[Any, int]:
        rows = [dict(zip(names, key, strict=True)) for key in set(keys)]
        return {tuple(row[:-1]): row[-1] for row in statement(tx, rows)} if rows else {}

    return count


class _InsertOrIgnore(Insert):
    """INSERT … ON CONFLICT DO NOTHING. SQLAlchemy's own classes for it are compiled at each use, which takes 3 ms."""

    inherit_cache = True


@compiles(_InsertOrIgnore)
def _insert_or_ignore(statement: _InsertOrIgnore, compiler: Any, **options: Any) -> str:
    text: str = compiler.visit_insert(statement, **options)
    rows, returning, columns = text.partition(" RETURNING ")
    return f"{rows} ON CONFLICT DO NOTHING{returning}{columns}"


def _given(dialect: str, columns: dict[str, TypeEngine[Any]]) -> Subquery:
    if dialect == "sqlite":
        each = func.json_each(bindparam("given", type_=Text())).table_valued("value")
        fields = [
            type_coerce(func.json_extract(each.c.value, f"$.{name}"), kind).label(name)
            for name, kind in columns.items()
        ]
        return select(*fields).subquery("given")
    records = func.json_to_recordset(cast(bindparam("given", type_=Text()), JSON)).table_valued(
        *(column(name, kind) for name, kind in columns.items())
    )
    typed = records.render_derived(with_types=True)
    return select(*(typed.c[name] for name in columns)).subquery("given")


def _packed(rows: Sequence[Row], dialect: str) -> str:
    if dialect == "sqlite":
        return orjson.dumps(rows, default=_as_sqlite_stores, option=orjson.OPT_PASSTHROUGH_DATETIME).decode()
    return orjson.dumps(rows, default=str).decode()


def _as_sqlite_stores(value: object) -> object:
    return micros(value) if isinstance(value, datetime) else str(value)
