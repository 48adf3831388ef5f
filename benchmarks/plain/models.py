"""The tables of both services as ORM classes, and sessions on them."""

from inventory_api import tables as inventory
from order_api import tables as orders
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, relationship, sessionmaker

CONNECTIONS = 16
"""As many as our services have."""


class Base(DeclarativeBase):
    pass


class Item(Base):
    __table__ = inventory.inventory_items


class Allocation(Base):
    __table__ = inventory.reservation_allocations


class Reservation(Base):
    __table__ = inventory.stock_reservations
    allocations: Mapped[list[Allocation]] = relationship(lazy="raise")


class InventoryEvent(Base):
    __table__ = inventory.outbox.table


class OrderItem(Base):
    __table__ = orders.order_items


class Order(Base):
    __table__ = orders.orders
    items: Mapped[list[OrderItem]] = relationship(lazy="raise", order_by=OrderItem.__table__.c.id)


class OrderEvent(Base):
    __table__ = orders.outbox.table


def sessions(url: str) -> sessionmaker[Session]:
    """What opens a session, whose transaction begins with its first statement."""
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_engine(url, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=60)
        return sessionmaker(engine, expire_on_commit=False)
    engine = create_engine(url, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=60, connect_args={"timeout": 60})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return sessionmaker(engine, expire_on_commit=False)


def _configure(connection: object, _: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # of sqlite3: we say BEGIN
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]  # of sqlite3


def _begin(connection: Connection) -> None:
    # Without it two writers oversell.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
