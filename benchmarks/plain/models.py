"""The tables of both services as ORM classes, and sessions on them. The services' migrations create the tables."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Connection, FetchedValue, ForeignKey, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from shop_common.db.sql import Amount, Id, RowId, Timestamp

READ_ONLY = {"plain_read_only": True}
"""Options of a connection that only reads."""

CONNECTIONS = 16
"""The size of the connection pool, as in our services."""


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger(), datetime: Timestamp(), Decimal: Amount()}  # noqa: RUF012  # read by SQLAlchemy


class ItemColumns:
    """The columns of an item that a reservation needs."""

    __tablename__ = "inventory_items"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    product_id: Mapped[int]
    location: Mapped[str]
    quantity: Mapped[int]
    reserved_quantity: Mapped[int]
    updated_at: Mapped[datetime]


class Item(ItemColumns, Base):
    """An item whose row the caller locks."""


class Allocation(Base):
    __tablename__ = "reservation_allocations"

    reservation_id: Mapped[str] = mapped_column(Id, ForeignKey("stock_reservations.id"), primary_key=True)
    item_id: Mapped[int] = mapped_column(primary_key=True)
    quantity: Mapped[int]


class Reservation(Base):
    __tablename__ = "stock_reservations"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    product_id: Mapped[int]
    quantity: Mapped[int]
    order_id: Mapped[str]
    state: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    allocations: Mapped[list[Allocation]] = relationship(lazy="raise")


class OrderItem(Base):
    __tablename__ = "order_items"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    order_id: Mapped[str] = mapped_column(Id, ForeignKey("orders.id"))
    product_id: Mapped[int]
    quantity: Mapped[int]
    price: Mapped[Decimal]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    user_id: Mapped[int]
    total_amount: Mapped[Decimal]
    currency: Mapped[str]
    status: Mapped[str]
    status_reason: Mapped[str]
    reserved_until: Mapped[datetime]
    version: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    items: Mapped[list[OrderItem]] = relationship(lazy="raise", order_by=OrderItem.id)


class Event(Base):
    """A row of the outbox, in either database."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(RowId, FetchedValue(), primary_key=True)
    shard: Mapped[int]
    event_id: Mapped[str] = mapped_column(Id)
    topic: Mapped[str]
    key: Mapped[str]
    type: Mapped[str]
    payload: Mapped[str]
    created_at: Mapped[datetime]


def sessions(url: str, connections: int = CONNECTIONS) -> sessionmaker[Session]:
    """Return a session factory. A transaction begins with the first statement of its session."""
    sqlite = make_url(url).get_backend_name() == "sqlite"
    arguments = {"timeout": 60} if sqlite else {}
    engine = create_engine(url, pool_size=connections, max_overflow=0, pool_timeout=60, connect_args=arguments)
    if sqlite:
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
    return sessionmaker(engine, expire_on_commit=False)


def _configure(connection: Any, _: object) -> None:
    connection.isolation_level = None  # we send BEGIN ourselves
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # IMMEDIATE takes the write lock before reading: without it, two writers could oversell.
    reads = connection.get_execution_options().keys() & READ_ONLY
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
