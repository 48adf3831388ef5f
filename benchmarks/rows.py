"""Creates millions of rows in SQL: the data of several years, and a backlog of due reservations.

It drops indexes and skips foreign keys meanwhile, so that ten million rows take only minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, NullPool, Table, create_engine, text
from sqlalchemy.exc import NotSupportedError

from benchmarks import command
from benchmarks.http2 import LoadError
from benchmarks.scenarios import ORDERS_PER_USER, PRODUCTS
from benchmarks.stock import QUANTITY
from inventory_api.store import tables as inventory
from order_api.store import tables as orders
from shop_common.timestamps import micros

SECOND = 1_000_000  # all times are microseconds since 1970
HOUR, YEAR = 3600 * SECOND, 365 * 86_400 * SECOND


def row_id(number: int) -> str:
    """Return the id of the order or reservation with this number, from 1. The ids sort like the numbers."""
    return str(UUID(int=number))


def fill_catalogue(url: str, rows: int, now: datetime) -> None:
    """Create items with a reservation of one unit each: a quarter held for a year, a quarter confirmed, half ended."""
    state = "CASE i % 4 WHEN 0 THEN 'HELD' WHEN 1 THEN 'CONFIRMED' WHEN 2 THEN 'FULFILLED' ELSE 'EXPIRED' END"
    with _filling(url, inventory.inventory_items) as sql:
        then = sql.at(micros(now) - YEAR)
        sql.insert(
            "inventory_items (id, product_id, location, quantity, reserved_quantity, version, created_at, updated_at)",
            f"i, i, 'WAREHOUSE_A', {QUANTITY}, CASE WHEN i % 4 < 2 THEN 1 ELSE 0 END, 1, {then}, {then}",
            rows,
        )
    made_at, expires_at = micros(now) - YEAR, str(micros(now) + YEAR)
    _fill_reservations(url, rows, made_at, item="i", product="i", state=state, expires_at=expires_at)


def fill_expired_holds(url: str, holds: int, now: datetime) -> None:
    """Create due reservations of one unit, evenly over PRODUCTS, that expired one by one during the last hour."""
    turn = f"i % {len(PRODUCTS)}"
    # Item ids follow the sequence of filling: first the hot product, then the others.
    item, product = f"{turn} + 2", f"{turn} + {PRODUCTS.start}"
    expires_at = f"{micros(now) - HOUR} + i * {HOUR // holds}"
    # The reservations are recent, so that the reaper does not purge them right after it has expired them.
    made_at = micros(now) - 2 * HOUR
    _fill_reservations(url, holds, made_at, item=item, product=product, state="'HELD'", expires_at=expires_at)
    with _filling(url) as sql:
        held = "SELECT count(*) FROM reservation_allocations WHERE item_id = inventory_items.id"
        sql.run(f"UPDATE inventory_items SET reserved_quantity = ({held})")


def fill_orders(url: str, rows: int, now: datetime) -> None:
    """Create orders with one line each, one second apart, twenty per user; one in a hundred is PENDING."""
    with _filling(url, orders.orders, orders.order_items) as sql:
        created_at = sql.at(f"{created_at_micros(0, rows, now)} + i * {SECOND}")
        columns = "id, user_id, total_amount, currency, status, status_reason, reserved_until, version"
        status = "CASE WHEN i % 100 = 0 THEN 'PENDING' ELSE 'DELIVERED' END"
        reserved_until = sql.at(micros(now) + YEAR)
        sql.insert(
            f"orders ({columns}, created_at, updated_at)",
            f"{sql.row_id}, 1 + i % {users(rows)}, {sql.price}, 'EUR', {status}, '', {reserved_until}, 1,"
            f" {created_at}, {created_at}",
            rows,
        )
        sql.insert("order_items (order_id, product_id, quantity, price)", f"{sql.row_id}, i, 1, {sql.price}", rows)


def users(rows: int) -> int:
    """Return the number of users for this many orders."""
    return rows // ORDERS_PER_USER


def created_at_micros(number: int, rows: int, now: datetime) -> int:
    """Return when the order with this number was created, in microseconds since 1970."""
    return micros(now) - (rows - number) * SECOND


def _fill_reservations(
    url: str, rows: int, made_at: int, *, item: str, product: str, state: str, expires_at: str
) -> None:
    with _filling(url, inventory.stock_reservations, inventory.reservation_allocations) as sql:
        made, ends = sql.at(made_at), sql.at(expires_at)
        sql.insert(
            "stock_reservations (id, product_id, quantity, order_id, state, created_at, expires_at)",
            f"{sql.row_id}, {product}, 1, 'order-' || i, {state}, {made}, {ends}",
            rows,
        )
        sql.insert("reservation_allocations (reservation_id, item_id, quantity)", f"{sql.row_id}, {item}, 1", rows)


def read_into_memory(url: str) -> None:
    """Load all tables and indexes into the shared buffers, as far as they fit. Raises LoadError."""
    ours = "relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace"
    with command.administering(url) as run:
        try:
            run("CREATE EXTENSION pg_prewarm")
        except NotSupportedError as error:
            raise LoadError("this PostgreSQL lacks pg_prewarm: leave out --shared-buffers") from error
        run(f"SELECT pg_prewarm(oid) FROM pg_class WHERE {ours}")


class _Sql:
    """SQL for both databases, with the few expressions that differ."""

    def __init__(self, tx: Connection) -> None:
        self._tx = tx
        self._is_sqlite = tx.dialect.name == "sqlite"
        self.row_id = "CAST(lpad(to_hex(i), 32, '0') AS uuid)"
        self.price = "12.99"
        if self._is_sqlite:
            self.row_id, self.price = "printf('00000000-0000-0000-0000-%012x', i)", "'12.99'"

    def at(self, at_micros: int | str) -> str:
        """Return the SQL for a timestamp from an expression in microseconds."""
        return str(at_micros) if self._is_sqlite else f"timestamptz 'epoch' + ({at_micros}) * interval '1 microsecond'"

    def insert(self, into: str, values: str, rows: int) -> None:
        """Insert one row for each number `i` from 1 to `rows`."""
        first = "1" if self._is_sqlite else "CAST(1 AS bigint)"
        numbers = f"SELECT {first} UNION ALL SELECT i + 1 FROM numbers WHERE i < {rows}"
        self.run(f"INSERT INTO {into} WITH RECURSIVE numbers (i) AS ({numbers}) SELECT {values} FROM numbers")

    def run(self, statement: str) -> None:
        self._tx.execute(text(statement))


@contextmanager
def _filling(url: str, *filled: Table) -> Iterator[_Sql]:
    """Open one transaction without the services' timeouts. It drops the indexes first, and recreates them last."""
    engine = create_engine(url, poolclass=NullPool)
    # Foreign keys need the unique indexes.
    indexes = [index for table in filled for index in table.indexes if not index.unique]
    with engine.begin() as tx:
        if tx.dialect.name == "postgresql":
            # Skip foreign keys: in PostgreSQL they are triggers, which are called for each row.
            tx.exec_driver_sql("SET session_replication_role = replica")
            tx.exec_driver_sql("SET maintenance_work_mem = '512MB'")
        for index in indexes:
            index.drop(tx)
        yield _Sql(tx)
        for index in indexes:
            index.create(tx)
    if engine.dialect.name == "postgresql":
        with command.administering(url) as run:
            # autovacuum would do this later.
            run("VACUUM ANALYZE")
