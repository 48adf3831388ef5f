"""What the SQL of all services is made of: column types, the database's clock, statements over sets of rows.

A statement over a set takes all its rows as one JSON parameter: one text, one plan and one round trip, for one
row as for two thousand, on PostgreSQL (`json_to_recordset`) and on SQLite (`json_each`) alike.

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
    Column,
    Connection,
    DateTime,
    Dialect,
    Executable,
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

Row = Any
"""A mapping or dataclass instance whose keys are the statement's columns."""


class Timestamp(TypeDecorator[datetime]):
    """A point in time, UTC, to the microsecond: timestamptz on PostgreSQL, microseconds since 1970 on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return micros(value) if value is not None and dialect.name == "sqlite" else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # None where the driver gives what is wanted: a call for each value costs more than all else that is done to it.
        return _moment_or_none if dialect.name == "sqlite" else None


def _moment_or_none(value: int | None) -> datetime | None:
    return None if value is None else from_micros(value)


class Id(TypeDecorator[str]):
    """A UUID in its text form: uuid on PostgreSQL, text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Uuid(as_uuid=False))


class Amount(TypeDecorator[Decimal]):
    """An exact decimal: NUMERIC on PostgreSQL, text on SQLite, whose own numbers are inexact."""

    impl = Numeric(28, 9)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Numeric(28, 9))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return str(value) if value is not None and dialect.name == "sqlite" else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # See Timestamp: the driver of PostgreSQL gives Decimals.
        return _decimal_or_none if dialect.name == "sqlite" else None


def _decimal_or_none(value: str | None) -> Decimal | None:
    return None if value is None else Decimal(value)


# SQLite gives out an id again after its row is gone unless told AUTOINCREMENT, and knows that only for INTEGER.
RowId = BigInteger().with_variant(Integer(), "sqlite")


class Clock(FunctionElement[datetime]):
    """The database's clock, as SQL. In a statement use `clock()`."""

    type = Timestamp()
    inherit_cache = True


@compiles(Clock, "postgresql")
def _postgres_clock(*_: Any, **__: Any) -> str:
    # Not now(): that is when the transaction began, before it waited for its locks.
    return "clock_timestamp()"


@compiles(Clock, "sqlite")
def _sqlite_clock(*_: Any, **__: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"


def clock() -> ScalarSelect[datetime]:
    """The database's clock inside a statement, read once: a bare volatile function would forbid an index."""
    return select(Clock()).scalar_subquery()


class _Micros(FunctionElement[int]):
    type = BigInteger()
    inherit_cache = True


@compiles(_Micros, "postgresql")
def _postgres_micros(element: _Micros, compiler: Any, **options: Any) -> str:
    # Seconds as a double are exact to a quarter of a microsecond until 2106, and a fifth of the price of exact ones.
    return f"CAST(date_part('epoch', {compiler.process(element.clauses, **options)}) * 1000000 AS bigint)"


@compiles(_Micros, "sqlite")
def _sqlite_micros(element: _Micros, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


def micros_of(moment: ColumnElement[datetime]) -> ColumnElement[int]:
    """A Timestamp as microseconds since 1970: a number is cheaper to read than a moment."""
    return _Micros(moment)


def now(tx: Connection) -> datetime:
    """The database's clock. Read it after the locks are taken: waiting for them takes time."""
    moment: datetime = tx.execute(_NOW).scalar_one()  # failpoint: database-clock
    return moment


_NOW = select(Clock())


class _InRows(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        # Else SQLite, which has no booleans, is asked for `(… IN …) = 1`, and for that it has no index.
        return self


@compiles(_InRows, "postgresql")
def _postgres_in_rows(element: _InRows, compiler: Any, **options: Any) -> str:
    # Of IN with a subquery PostgreSQL makes a join, and of that a walk through the whole table while it is not large
    # yet. An array is a bound of an index, for one row as for two thousand.
    value, values = (compiler.process(each, **options) for each in element.clauses)
    return f"{value} = ANY (ARRAY{values})"


@compiles(_InRows, "sqlite")
def _sqlite_in_rows(element: _InRows, compiler: Any, **options: Any) -> str:
    value, values = (compiler.process(each, **options) for each in element.clauses)
    return f"{value} IN {values}"


def in_rows(
    value: ColumnElement[Any], values: ColumnElement[Any] | Select[Any], *, outer: Subquery | None = None
) -> ColumnElement[bool]:
    """Whether a column's value is among those of a column of the given rows, or selected; by the index of the first.

    What is selected may depend on a row of `outer`, of an enclosing statement.
    """
    selected = values if isinstance(values, Select) else select(values)
    return _InRows(value, selected.correlate(outer).scalar_subquery())


class _JoinRows(_InRows):
    inherit_cache = True


@compiles(_JoinRows, "sqlite")
def _sqlite_join_rows(*_: Any, **__: Any) -> str:
    # It goes through the given rows and finds the row of each; told more, it would do the opposite, n times n.
    return "1"


def join_rows(value: ColumnElement[Any], values: ColumnElement[Any]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The condition of an UPDATE FROM the given rows: equal, and on PostgreSQL found by index as with `in_rows`."""
    return value == values, _JoinRows(value, select(values).correlate(None).scalar_subquery())


class Statement:
    """A statement over a set of rows; built once per dialect, at its first use.

    `build` receives the rows as a subquery with the named columns. Calling it with no rows is an error of the
    caller: it would be a round trip for nothing.
    """

    def __init__(self, build: Callable[[Subquery], Executable], **columns: TypeEngine[Any]) -> None:
        self._build = build
        self._columns = columns
        self._built: dict[str, Executable] = {}

    def __call__(self, tx: Connection, rows: Sequence[Row], **parameters: Any) -> Sequence[sqlalchemy.Row[Any]]:
        """Run it for these rows. Returns what it selects, or RETURNING gives."""
        dialect = tx.dialect.name
        built = self._built.get(dialect)
        if built is None:
            built = self._built[dialect] = self._build(_given(dialect, self._columns))
        result = tx.execute(built, {"given": _packed(rows, dialect), **parameters})
        # All at once: a result that is walked through asks its cursor for each row.
        return result.all() if result.returns_rows else ()


def insert_into(
    table: Table, *names: str, or_ignore: bool = False, returning: Sequence[ColumnElement[Any]] = ()
) -> Statement:
    """An INSERT of many rows into the named columns, in the order given; `or_ignore` passes over conflicts."""

    def build(given: Subquery) -> Executable:
        # Rows arrive in the order of the JSON array on both databases, and get their ids in that order. The
        # WHERE keeps SQLite from reading ON CONFLICT as a join's condition.
        source = select(*(given.c[name] for name in names)).where(true())
        into = _InsertOrIgnore(table) if or_ignore else insert(table)
        statement = into.from_select(list(names), source)
        return statement.returning(*returning) if returning else statement

    return Statement(build, **{name: table.c[name].type for name in names})


def count_by(
    column: Column[Any], *where: ColumnElement[bool]
) -> Callable[[Connection, Collection[Any]], dict[Any, int]]:
    """Counts the rows that have each of some values in this column, found by its index.

    Values without a row are left out of the answer.
    """
    statement = Statement(
        lambda given: select(column, func.count()).where(in_rows(column, given.c.key), *where).group_by(column),
        key=column.type,
    )

    def count(tx: Connection, values: Collection[Any]) -> dict[Any, int]:
        return {row[0]: row[1] for row in statement(tx, [{"key": each} for each in values])} if values else {}

    return count


class _InsertOrIgnore(Insert):
    """INSERT … ON CONFLICT DO NOTHING. The dialects have their own, which are compiled anew at each use: 3 ms."""

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
