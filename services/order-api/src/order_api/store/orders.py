"""Orders as rows: inserting, reading, listing, and locking them for a change of status."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, literal, select, tuple_, update
from sqlalchemy.types import TypeEngine

from order_api.domain import events
from order_api.domain.commands import HeldOrder, NewOrder
from order_api.domain.model import LINES_MAX, NewItem, Order, OrderItem, OrderNotFound, Status
from order_api.store import tables
from shop_common.api.paging import Page, PageRequest, Position, page_of
from shop_common.batching.coalesced import Sizes
from shop_common.db.idempotency import RequestIdReused
from shop_common.db.sql import Id, Statement, Timestamp, among, counting, inserting, joined, now
from shop_common.errors import ShopError
from shop_common.events.outbox import Message
from shop_common.moments import from_micros, micros

PAGE_LINES_MAX = 10_000
"""Lines on one page, as many as fifty of the longest orders have: a tenth of a second of work. A page of a thousand
orders with the longest texts and the largest amounts is smaller than the 4 MiB that gRPC clients take."""

_orders = tables.orders
_items = tables.order_items

_COLUMNS = tuple(_orders.c[name] for name in Order.__slots__ if name != "items")


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """Which orders to list; None is any. Created at `created_after` or later, and before `created_before`."""

    user_id: int | None = None
    status: Status | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def insert(tx: Connection, held: Sequence[HeldOrder]) -> list[Order | ShopError]:
    """Store orders whose stock is held, PENDING. One outcome per order, in order.

    An id that is there already, whether or not its request_id is still remembered, is a repeat: it answers with the
    order as it is now, or RequestIdReused when the earlier call asked for something else. One batch holds an id once.

    Emits ORDER_CREATED.
    """
    claimed = tables.idempotency_keys.claim(tx, held, [each.order.claim() for each in held])
    earlier = get(tx, [claim.resources[0] for claim in claimed.replays])
    return claimed.settle(tx, replayed=earlier, new=_insert(tx, claimed.new))


def _insert(tx: Connection, held: Sequence[HeldOrder]) -> list[Order | ShopError]:
    moment = now(tx)
    by_id = {each.order.id: each for each in held}
    # In any sequence: whoever inserts the same id has the same request_id, and waits for its claim first.
    added = [row.id for row in _insert_orders(tx, [_row(each, moment) for each in held])]
    made: dict[str, Order | ShopError] = {}
    if added:
        lines = [_line(each.order.id, item) for each in map(by_id.__getitem__, added) for item in each.order.items]
        # Ids are drawn in the sequence of the lines.
        item_ids = iter(sorted(row.id for row in _insert_items(tx, lines)))
        created = [_created(by_id[order_id], moment, item_ids) for order_id in added]
        made.update((order.id, order) for order in created)
        tables.outbox.append(tx, [events.order_arrived(order, by_id[order.id].order.traceparent) for order in created])
    if len(made) < len(held):
        # Its key was purged, or it would have been found: the content of the order itself decides.
        for order in load(tx, by_id.keys() - made.keys()).values():
            made[order.id] = _settled(by_id[order.id].order, order, None)
    return [made[each.order.id] for each in held]


def find_earlier(tx: Connection, wanted: Collection[NewOrder]) -> dict[str, Order | ShopError]:
    """What earlier calls made of these ids, by id: the order as it is now, or RequestIdReused for other content."""
    by_id = {order.id: order for order in wanted}
    stored = statuses(tx, by_id)
    if not stored:
        return {}
    claims = {order_id: claim for order_id in stored if (claim := by_id[order_id].claim())}
    keys = tables.idempotency_keys.find(tx, [claim.key for claim in claims.values()])
    # A request may name an order that is far longer than itself: no more lines are read than were asked for.
    lines = count_lines(tx, stored)
    of_same_length = load(tx, [order_id for order_id in stored if lines[order_id] == len(by_id[order_id].items)])
    found: dict[str, Order | ShopError] = {}
    for order_id in stored:
        claim = claims.get(order_id)
        key = keys.get(claim.key) if claim else None
        same_key = key.fingerprint == claim.fingerprint if claim and key else None
        found[order_id] = _settled(by_id[order_id], of_same_length.get(order_id), same_key)
    return found


def _settled(wanted: NewOrder, stored: Order | None, same_content: bool | None) -> Order | ShopError:
    """A repeat is answered with what is stored. None: its key is forgotten, so the order's own content tells."""
    if stored is not None and (wanted.is_what_made(stored) if same_content is None else same_content):
        return stored
    return RequestIdReused(wanted.request_id or wanted.id)


def get(tx: Connection, ids: Sequence[str]) -> list[Order | ShopError]:
    """One outcome per id, in order: the order or OrderNotFound."""
    found = load(tx, ids)
    return [found.get(each) or OrderNotFound(each) for each in ids]


def load(tx: Connection, ids: Iterable[str]) -> dict[str, Order]:
    """The orders that exist, by id. Locks nothing."""
    rows = [{"id": each} for each in set(ids)]
    return {order.id: order for order in _with_items(tx, _load(tx, rows))} if rows else {}


def statuses(tx: Connection, ids: Iterable[str]) -> dict[str, Status]:
    """The status of each order that exists, by id. Locks nothing."""
    rows = [{"id": each} for each in set(ids)]
    return {row.id: Status(row.status) for row in _statuses_of(tx, rows)} if rows else {}


count_lines = counting(_items.c.order_id)
"""How many lines each order has that exists, by id."""


def list_page(tx: Connection, asked: PageRequest[OrderFilter]) -> Page[Order]:
    """A page, newest first: by creation time and id, descending. Fewer than asked for where orders are very long."""
    wanted = asked.wanted
    query = select(*_COLUMNS).order_by(_orders.c.created_at.desc(), _orders.c.id.desc()).limit(asked.size + 1)
    if wanted.user_id is not None:
        query = query.where(_orders.c.user_id == wanted.user_id)
    if wanted.status is not None:
        query = query.where(_orders.c.status == wanted.status)
    if wanted.created_after is not None:
        query = query.where(_orders.c.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(_orders.c.created_at < wanted.created_before)
    if asked.after is not None:
        created_at, order_id = asked.after
        last = tuple_(literal(from_micros(int(created_at)), Timestamp()), literal(order_id, Id()))
        query = query.where(tuple_(_orders.c.created_at, _orders.c.id) < last)
    rows = tx.execute(query).all()
    # Counted before they are read. The orders and their lines are of one snapshot, and lines never change.
    fitting = _PAGE_LINES.fitting(tx, rows[: asked.size], PAGE_LINES_MAX)
    page = page_of(rows, len(fitting), _position)
    return Page(_with_items(tx, page.rows), page.next_position)


_PAGE_LINES = Sizes[Row[Any]](of=lambda row: str(row.id), read=count_lines, most=LINES_MAX)


class Locked:
    """Orders that this transaction has locked, as of `now`: nobody else changes them until it ends."""

    def __init__(self, moment: datetime, orders: dict[str, Order]) -> None:
        self.now = moment
        self.orders = orders
        self._changed: set[str] = set()
        self._messages: list[Message] = []

    def move(self, order_id: str, status: Status, reason: str, traceparent: str | None) -> Order:
        """Bring an order into a new status; the caller has checked that the step is legal. `save` writes it."""
        order = self.orders[order_id]
        order = replace(order, status=status, status_reason=reason, version=order.version + 1, updated_at=self.now)
        self.orders[order_id] = order
        self._changed.add(order_id)
        self._messages.append(events.order_arrived(order, traceparent))
        return order

    def save(self, tx: Connection) -> None:
        """Write what has moved, and one event for each move, in the sequence of the moves."""
        if self._changed:
            _set_status(tx, [_status_row(self.orders[each]) for each in self._changed])
            tables.outbox.append(tx, self._messages)


def lock(tx: Connection, ids: Iterable[str]) -> Locked:
    """Lock the orders, by id. Ids that don't exist are left out."""
    rows = [{"id": each} for each in set(ids)]
    found = _with_items(tx, _lock(tx, rows)) if rows else []
    return Locked(now(tx), {order.id: order for order in found})


def _row(held: HeldOrder, moment: datetime) -> dict[str, object]:
    order = held.order
    return {
        "id": order.id,
        "user_id": order.user_id,
        "total_amount": order.total_amount,
        "currency": order.currency,
        "status": Status.PENDING,
        "status_reason": "",
        "reserved_until": _reserved_until(held, moment),
        "version": 1,
        "created_at": moment,
        "updated_at": moment,
    }


def _reserved_until(held: HeldOrder, moment: datetime) -> datetime:
    return moment + timedelta(seconds=held.hold_seconds)


def _line(order_id: str, item: NewItem) -> dict[str, object]:
    return {"order_id": order_id, "product_id": item.product_id, "quantity": item.quantity, "price": item.price}


def _created(held: HeldOrder, moment: datetime, item_ids: Iterator[int]) -> Order:
    order = held.order
    items = tuple(OrderItem(next(item_ids), item.product_id, item.quantity, item.price) for item in order.items)
    return Order(
        order.id, order.user_id, order.total_amount, order.currency, Status.PENDING, "",
        _reserved_until(held, moment), 1, moment, moment, items,
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

_insert_orders = inserting(_orders, *(column.name for column in _COLUMNS), or_ignore=True, returning=(_orders.c.id,))
_insert_items = inserting(_items, "order_id", "product_id", "quantity", "price", returning=(_items.c.id,))
_load = Statement(lambda given: select(*_COLUMNS).where(among(_orders.c.id, given.c.id)), id=Id())
_lock = Statement(
    lambda given: (
        select(*_COLUMNS).where(among(_orders.c.id, given.c.id)).order_by(_orders.c.id).with_for_update(of=_orders)
    ),
    id=Id(),
)
_statuses_of = Statement(
    lambda given: select(_orders.c.id, _orders.c.status).where(among(_orders.c.id, given.c.id)), id=Id()
)
_items_of = Statement(
    lambda given: (
        select(_items.c.order_id, _items.c.id, _items.c.product_id, _items.c.quantity, _items.c.price)
        .where(among(_items.c.order_id, given.c.id))
        .order_by(_items.c.id)
    ),
    id=Id(),
)
_set_status = Statement(
    lambda given: (
        update(_orders)
        .values({name: given.c[name] for name in _STATUS if name != "id"})
        .where(*joined(_orders.c.id, given.c.id))
    ),
    **_STATUS,
)
