"""Four ways to reserve one unit of a product: three that a shop would write itself, and the client of inventory-api.

The three ways write the same rows as the plain variant. They differ in what keeps two callers from taking the same
unit.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

import redis
from redis.exceptions import LockNotOwnedError
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from benchmarks.plain.inventory import hold
from benchmarks.plain.models import Base, Item, ItemColumns, sessions
from shop_client import Settings, Shop
from shop_client.errors import InsufficientStock
from shop_common.db.sql import now

CALL_SECONDS = 60.0

ROW_LOCKS, VERSIONS, REDIS_LOCK, CLIENT = "row-locks", "versions", "redis-lock", "client"
WAYS = (ROW_LOCKS, VERSIONS, REDIS_LOCK, CLIENT)

_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX = 0.001, 0.1
# redis-py's default is 0.1 s, at which a lock is idle for most of the time.
_POLL_SECONDS = 0.01

Reserve = Callable[[int, str], bool]
"""Reserve one unit of a product for an order. Returns false if there is none left."""


@dataclass(frozen=True)
class Way:
    """A way, and where its data are. A lock in Redis ends after `lock_seconds`, even if its holder still works."""

    kind: str
    database: str
    target: str = ""
    redis_port: int = 0
    lock_seconds: float = 30.0


class VersionedBase(DeclarativeBase):
    type_annotation_map = Base.type_annotation_map


class VersionedItem(ItemColumns, VersionedBase):
    """An item that SQLAlchemy updates only if no one has changed its version since it was read."""

    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # read by SQLAlchemy


@contextmanager
def connected(way: Way, callers: int, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Reserve]:
    """Yield the way's function, which `callers` threads may call.

    The ways of our own call `meanwhile` after they have read the item, and before they write it.
    """
    if way.kind == CLIENT:
        with Shop(Settings(inventory_target=way.target, timeout_seconds=CALL_SECONDS)) as shop:
            yield _by_client(shop)
        return
    begin = sessions(way.database, callers).begin

    def by_row_locks(product_id: int, order_id: str) -> bool:
        with begin() as session:
            item = session.scalars(select(Item).where(Item.product_id == product_id).with_for_update()).one()
            meanwhile()
            return _take(session, item, order_id)

    def by_versions(product_id: int, order_id: str) -> bool:
        for attempt in count():
            # Another caller was faster: read the item again.
            with suppress(StaleDataError), begin() as session:
                item = session.scalars(select(VersionedItem).where(VersionedItem.product_id == product_id)).one()
                meanwhile()
                return _take(session, item, order_id)
            time.sleep(random.uniform(0, min(_BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS * 2**attempt)))
        raise AssertionError("the loop ends with a result")

    def by_redis_lock(product_id: int, order_id: str) -> bool:
        lock = locks.lock(f"product:{product_id}", timeout=way.lock_seconds, sleep=_POLL_SECONDS)
        if not lock.acquire(blocking_timeout=CALL_SECONDS):
            raise TimeoutError(f"no lock of product {product_id} within {CALL_SECONDS:g} s")
        try:
            with begin() as session:
                item = session.scalars(select(Item).where(Item.product_id == product_id)).one()
                meanwhile()
                return _take(session, item, order_id)
        finally:
            # The lock's time had ended before the commit. Nothing can be done about it now.
            with suppress(LockNotOwnedError):
                lock.release()

    if way.kind == REDIS_LOCK:
        with redis.Redis(port=way.redis_port, max_connections=callers) as locks:
            yield by_redis_lock
    else:
        yield by_row_locks if way.kind == ROW_LOCKS else by_versions


def _by_client(shop: Shop) -> Reserve:
    def reserve(product_id: int, order_id: str) -> bool:
        try:
            shop.reserve(product_id, 1, order_id)
        except InsufficientStock:
            return False
        return True

    return reserve


def _take(session: Session, item: ItemColumns, order_id: str) -> bool:
    if item.quantity - item.reserved_quantity < 1:
        return False
    hold(session, item, order_id, (item.product_id, 1), now(session.connection()))
    return True
