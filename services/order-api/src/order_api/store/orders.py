"""All SQL on the tables orders and order_items: insert, read, list, and lock for a change of status."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, literal, literal_column, select, tuple_, update
from sqlalchemy.types import TypeEngine

from order_api.domain import events
from order_api.domain.commands import NewOrder, OrderFilter, ReservedOrder
from order_api.domain.errors import OrderNotFound
from order_api.domain.model import LINES_MAX, NewItem, Order, OrderItem, Status
from order_api.store import tables
from shop_common.api.paging import Page, PageRequest, Position, page_of
from shop_common.batching.coalescers import Sizes
from shop_common.db.idempotency import RequestIdReused
from shop_common.db.sql import Id, Statement, Timestamp, count_by, in_rows, insert_into, join_rows, now
from shop_common.errors import ShopError
from shop_common.events.outbox import Message
from shop_common.timestamps import from_micros, micros

PAGE_LINES_MAX = 10_000
"""The most lines on one page, as many as fifty of the longest orders have: about 0.1 s of work. Even a page of a
thousand orders with the longest texts and the largest amounts is smaller than the 4 MiB that gRPC clients accept."""

_orders = tables.orders
_items = tables.order_items

_COLUMNS = tuple(_orders.c[name] for name in Order.__slots__ if name != "items")


def insert(tx: Connection, reserved: Sequence[ReservedOrder]) -> list[Order | ShopError]:
    """Store orders whose stock is reserved, as PENDING. Returns one outcome per order, in order.

    An order whose id is already stored is a repeat, even if its request_id was purged. The outcome is then the current
    order, or RequestIdReused if the earlier call had other content. A batch contains an id at most once.

    Emits ORDER_CREATED.
    """
    claimed = tables.idempotency_keys.claim(tx, reserved, [each.order.claim() for each in reserved])
    earlier = get(tx, [claim.resources[0] for claim in claimed.replays])
    return claimed.settle(tx, replayed=earlier, new=_insert(tx, claimed.new))


def _insert(tx: Connection, reserved: Sequence[ReservedOrder]) -> list[Order | ShopError]:
    if not reserved:
        return []
    created_at = now(tx)
    by_id = {each.order.id: each for each in reserved}
    # No need to sort: two transactions with the same order id have the same request_id, so one of them has already
    # waited for the other's claim, and they cannot deadlock here.
    added = [row.id for row in _insert_orders(tx, [_row(each, created_at) for each in reserved])]
    made: dict[str, Order | ShopError] = {}
    if added:
        lines = [_line(each.order.id, item) for each in map(by_id.__getitem__, added) for item in each.order.items]
        # Ids are assigned in the sequence of the lines.
        item_ids = iter(sorted(row.id for row in _insert_items(tx, lines)))
        created = [_created(by_id[order_id], created_at, item_ids) for order_id in added]
        made.update((order.id, order) for order in created)
        tables.outbox.append(tx, [events.status_changed(order, by_id[order.id].order.traceparent) for order in created])
    if len(made) < len(reserved):
        # The other orders were stored before, but their keys were purged. So compare with the stored orders.
        for order in load(tx, by_id.keys() - made.keys()).values():
            made[order.id] = _settled(by_id[order.id].order, order, None)
    return [made[each.order.id] for each in reserved]


def find_earlier(tx: Connection, new: Collection[NewOrder]) -> dict[str, Order | ShopError]:
    """Return, by id, each order that an earlier call stored, or RequestIdReused if its content is different."""
    by_id = {order.id: order for order in new}
    stored = statuses(tx, by_id)
    if not stored:
        return {}
    claims = {order_id: claim for order_id in stored if (claim := by_id[order_id].claim())}
    keys = tables.idempotency_keys.find(tx, [claim.key for claim in claims.values()])
    # The stored order may be far longer than the request: read no more lines than the request has.
    lines = count_lines(tx, stored)
    of_same_length = load(tx, [order_id for order_id in stored if lines[order_id] == len(by_id[order_id].items)])
    found: dict[str, Order | ShopError] = {}
    for order_id in stored:
        claim = claims.get(order_id)
        key = keys.get(claim.key) if claim else None
        same_key = key.fingerprint == claim.fingerprint if claim and key else None
        found[order_id] = _settled(by_id[order_id], of_same_length.get(order_id), same_key)
    return found


def _settled(new: NewOrder, stored: Order | None, same_content: bool | None) -> Order | ShopError:
    """Return the outcome of a repeat. If its key was purged, `same_content` is None: compare with the stored order."""
    if stored is not None and (new.is_what_made(stored) if same_content is None else same_content):
        return stored
    return RequestIdReused(new.request_id or new.id)


def get(tx: Connection, ids: Sequence[str]) -> list[Order | ShopError]:
    """Return one outcome per id, in order: the order or OrderNotFound."""
    found = load(tx, ids)
    return [found.get(each) or OrderNotFound(each) for each in ids]


def load(tx: Connection, ids: Iterable[str]) -> dict[str, Order]:
    """Return the orders that exist, by id. Locks nothing."""
    rows = [{"id": each} for each in set(ids)]
    return {order.id: order for order in _with_items(tx, _load(tx, rows))} if rows else {}


def statuses(tx: Connection, ids: Iterable[str]) -> dict[str, Status]:
    """Return the status of each order that exists, by id. Locks nothing."""
    rows = [{"id": each} for each in set(ids)]
    return {row.id: Status(row.status) for row in _statuses_of(tx, rows)} if rows else {}


count_lines = count_by(_items.c.order_id)
"""Returns the number of lines of each order that exists, by id."""


def list_page(tx: Connection, request: PageRequest[OrderFilter]) -> Page[Order]:
    """Return a page by creation time and id, newest first. It is shorter than requested if the orders are very long."""
    order_filter = request.filter
    query = select(*_COLUMNS).order_by(_orders.c.created_at.desc(), _orders.c.id.desc()).limit(request.size + 1)
    if order_filter.user_id is not None:
        query = query.where(_orders.c.user_id == order_filter.user_id)
    if order_filter.status is not None:
        query = query.where(_orders.c.status == order_filter.status)
    if order_filter.created_after is not None:
        query = query.where(_orders.c.created_at >= order_filter.created_after)
    if order_filter.created_before is not None:
        query = query.where(_orders.c.created_at < order_filter.created_before)
    if request.after is not None:
        created_at, order_id = request.after
        last = tuple_(literal(from_micros(int(created_at)), Timestamp()), literal(order_id, Id()))
        query = query.where(tuple_(_orders.c.created_at, _orders.c.id) < last)
    rows = tx.execute(query).all()
    # Lines never change, so the count is still right when they are read.
    prefix = _PAGE_LINES.prefix_within(tx, rows[: request.size], PAGE_LINES_MAX)
    page = page_of(rows, len(prefix), _position)
    return Page(_with_items(tx, page.rows), page.next_position)


_PAGE_LINES = Sizes[Row[Any]](key=lambda row: str(row.id), read=count_lines, size_max=LINES_MAX)


def abandoned(tx: Connection, grace_seconds: float, max_count: int) -> list[str]:
    """Return the ids of orders still PENDING `grace_seconds` after their reservations have ended, the oldest first."""
    before = now(tx) - timedelta(seconds=grace_seconds)
    rows = tx.execute(
        select(_orders.c.id)
        # The status is a literal, as in the partial index. With a parameter, PostgreSQL may not use that index.
        .where(_orders.c.status == literal_column("'PENDING'"), _orders.c.reserved_until < before)
        .order_by(_orders.c.reserved_until)
        .limit(max_count)
    )
    return list(rows.scalars())


class Locked:
    """Orders that this transaction has locked, as of `now`. No other transaction changes them until this one ends."""

    def __init__(self, now: datetime, orders: dict[str, Order]) -> None:
        self.now = now
        self.orders = orders
        self._changed: set[str] = set()
        self._messages: list[Message] = []

    def change_status(self, order_id: str, status: Status, reason: str, traceparent: str | None) -> Order:
        """Change the status of an order. The caller has checked that the change is legal. `save` writes it."""
        order = self.orders[order_id]
        order = replace(order, status=status, status_reason=reason, version=order.version + 1, updated_at=self.now)
        self.orders[order_id] = order
        self._changed.add(order_id)
        self._messages.append(events.status_changed(order, traceparent))
        return order

    def save(self, tx: Connection) -> None:
        """Write the changed orders, and one event per change, in the sequence of the changes."""
        if self._changed:
            _set_status(tx, [_status_row(self.orders[each]) for each in self._changed])
            tables.outbox.append(tx, self._messages)


def lock(tx: Connection, ids: Iterable[str]) -> Locked:
    """Lock the orders, sorted by id. Ids that do not exist are left out."""
    rows = [{"id": each} for each in set(ids)]
    found = _with_items(tx, _lock(tx, rows)) if rows else []
    return Locked(now(tx), {order.id: order for order in found})


def _row(reserved: ReservedOrder, created_at: datetime) -> dict[str, object]:
    order = reserved.order
    return {
        "id": order.id,
        "user_id": order.user_id,
        "total_amount": order.total_amount,
        "currency": order.currency,
        "status": Status.PENDING,
        "status_reason": "",
        "reserved_until": _reserved_until(reserved, created_at),
        "version": 1,
        "created_at": created_at,
        "updated_at": created_at,
    }


def _reserved_until(reserved: ReservedOrder, created_at: datetime) -> datetime:
    return created_at + timedelta(seconds=reserved.reserved_seconds)


def _line(order_id: str, item: NewItem) -> dict[str, object]:
    return {"order_id": order_id, "product_id": item.product_id, "quantity": item.quantity, "price": item.price}


def _created(reserved: ReservedOrder, created_at: datetime, item_ids: Iterator[int]) -> Order:
    order = reserved.order
    items = tuple(OrderItem(next(item_ids), item.product_id, item.quantity, item.price) for item in order.items)
    return Order(
        order.id, order.user_id, order.total_amount, order.currency, Status.PENDING, "",
        _reserved_until(reserved, created_at), 1, created_at, created_at, items,
    )  # fmt: skip


def _with_items(tx: Connection, rows: Sequence[Row[Any]]) -> list[Order]:
    if not rows:
        return []
    lines: dict[str, list[OrderItem]] = {row.id: [] for row in rows}
    for order_id, *item in _items_of(tx, [{"id": row.id} for row in rows]):
        lines[order_id].append(OrderItem(*item))
    return [
        Order(
            row.id, row.user_id, row.total_amount, row.currency, Status(row.status), row.status_reason,
            row.reserved_until, row.version, row.created_at, row.updated_at, tuple(lines[row.id]),
        )
        for row in rows
    ]  # fmt: skip


def _position(order: Order | Row[Any]) -> Position:
    return (micros(order.created_at), order.id)


def _status_row(order: Order) -> dict[str, object]:
    return {name: getattr(order, name) for name in _STATUS}


_STATUS: dict[str, TypeEngine[Any]] = {
    "id": Id(),
    "status": Text(),
    "status_reason": Text(),
    "version": BigInteger(),
    "updated_at": Timestamp(),
}

_insert_orders = insert_into(_orders, *(column.name for column in _COLUMNS), or_ignore=True, returning=(_orders.c.id,))
_insert_items = insert_into(_items, "order_id", "product_id", "quantity", "price", returning=(_items.c.id,))
_load = Statement(lambda given: select(*_COLUMNS).where(in_rows(_orders.c.id, given.c.id)), id=Id())
_lock = Statement(
    lambda given: (
        select(*_COLUMNS).where(in_rows(_orders.c.id, given.c.id)).order_by(_orders.c.id).with_for_update(of=_orders)
    ),
    id=Id(),
)
_statuses_of = Statement(
    lambda given: select(_orders.c.id, _orders.c.status).where(in_rows(_orders.c.id, given.c.id)), id=Id()
)
_items_of = Statement(
    lambda given: (
        select(_items.c.order_id, _items.c.id, _items.c.product_id, _items.c.quantity, _items.c.price)
        .where(in_rows(_items.c.order_id, given.c.id))
        .order_by(_items.c.id)
    ),
    id=Id(),
)
_set_status = Statement(
    lambda given: (
        update(_orders)
        .values({name: given.c[name] for name in _STATUS if name != "id"})
        .where(*join_rows(_orders.c.id, given.c.id))
    ),
    **_STATUS,
)
