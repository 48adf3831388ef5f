"""The SQL of ListOrders: one query for each combination of filters, each served by an index.

A page is one range of an index. For several statuses, the query takes the first rows of one range per status.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    exists,
    false,
    literal,
    literal_column,
    select,
    tuple_,
    union_all,
)

from order_api.domain.commands import OrderFilter
from order_api.domain.model import LINES_MAX, Order, OrderKey
from order_api.store import orders, tables
from order_api.store.details import NO_CHARGES, NO_LABELS
from shop_common.api.paging import Page, PageRequest, Position, page_of
from shop_common.batching.coalescers import Sizes
from shop_common.db.sql import Id, Timestamp
from shop_common.timestamps import from_micros, micros

PAGE_LINES_MAX = 10_000
"""The most lines on one page: those of fifty orders of the maximum length, which are about 0.1 s of work. Even a page
of a thousand orders with the longest reasons and references and the largest amounts is smaller than the 4 MiB that gRPC
clients accept. Charges and labels have a limit of their own.
"""

PAGE_DETAILS_BYTES_MAX = 300_000
"""The most bytes of charges and labels on one page, in their stored form, if it has more than one order."""

_orders = tables.orders
_items = tables.order_items
_labels = tables.order_labels


def list_page(tx: Connection, request: PageRequest[OrderFilter]) -> Page[Order]:
    """Return a page of the orders that match. It is shorter than requested if the orders are very long.

    The orders are sorted by creation time and id, the newest first. With a product, they are sorted by the ids of their
    lines, the newest first. With a range of the last change, they are sorted by that time and the id, the oldest first.
    A position has the values by which the orders are sorted.
    """
    rows = tx.execute(_query(request)).all()
    # Lines never change, so the count is still right when they are read.
    prefix = _PAGE_LINES.prefix_within(tx, rows[: min(request.size, _count_within(rows))], PAGE_LINES_MAX)
    page = page_of(rows, len(prefix), lambda row: _position(request.filter, row))
    return Page(orders.with_items(tx, page.rows), page.next_position)


def _query(request: PageRequest[OrderFilter]) -> Any:
    filter_ = request.filter
    if filter_.product_id is not None:
        return _of_product(filter_.tenant, filter_.product_id, request.after).limit(request.size + 1)
    if filter_.is_by_update:
        return _by_update(filter_, request.after).limit(request.size + 1)
    if filter_.label is not None:
        return _of_label(filter_, filter_.label, request.after).limit(request.size + 1)
    of_filter = _newest(filter_, request.after, _orders.c.created_at, _orders.c.id).limit(request.size + 1)
    if filter_.statuses is None:
        return of_filter
    ranges = [of_filter.where(_orders.c.status == status) for status in filter_.statuses]
    if len(ranges) < 2:
        return ranges[0] if ranges else of_filter.where(false())
    # One condition with all statuses would read every order of these statuses, and sort them.
    union = union_all(*(select(each.subquery()) for each in ranges)).subquery()
    return select(union).order_by(union.c.created_at.desc(), union.c.id.desc()).limit(request.size + 1)


def _newest(
    filter_: OrderFilter, after: Position | None, created_at: ColumnElement[datetime], order_id: ColumnElement[str]
) -> Select[Any]:
    """Return the query for the newest orders after the position. It is sorted by the two columns.

    `created_at` and `order_id` are columns of the table whose index serves the query. That table also has a tenant and
    a user.
    """
    table = created_at.table
    query = (
        select(*orders.COLUMNS)
        .where(table.c.tenant == filter_.tenant, *_within(created_at, filter_.created_after, filter_.created_before))
        .order_by(created_at.desc(), order_id.desc())
    )
    if filter_.user_id is not None:
        query = query.where(table.c.user_id == filter_.user_id)
    if filter_.external_reference:
        # The index has only the orders with a reference. The literal text lets the database use it.
        has_reference: ColumnElement[bool] = literal_column("external_reference <> ''")
        query = query.where(_orders.c.external_reference == filter_.external_reference, has_reference)
    return query if after is None else query.where(tuple_(created_at, order_id) < _last(after))


def _of_label(filter_: OrderFilter, label: tuple[str, str], after: Position | None) -> Select[Any]:
    query = _newest(filter_, after, _labels.c.created_at, _labels.c.order_id)
    name, value = label
    return query.where(
        _labels.c.name == name,
        _labels.c.value == value,
        _orders.c.tenant == _labels.c.tenant,
        _orders.c.id == _labels.c.order_id,
    )


def _of_product(tenant: str, product_id: int, after: Position | None) -> Select[Any]:
    earlier = _items.alias("earlier")
    is_repeated = exists().where(
        earlier.c.tenant == _items.c.tenant,
        earlier.c.order_id == _items.c.order_id,
        earlier.c.product_id == _items.c.product_id,
        earlier.c.id < _items.c.id,
    )
    query = (
        select(*orders.COLUMNS, _items.c.id.label("line_id"))
        .where(
            _items.c.tenant == tenant,
            _items.c.product_id == product_id,
            _orders.c.tenant == _items.c.tenant,
            _orders.c.id == _items.c.order_id,
            # An order with several lines of the product is listed once.
            ~is_repeated,
        )
        .order_by(_items.c.id.desc())
    )
    return query if after is None else query.where(_items.c.id < int(after[0]))


def _by_update(filter_: OrderFilter, after: Position | None) -> Select[Any]:
    query = (
        select(*orders.COLUMNS)
        .where(
            _orders.c.tenant == filter_.tenant,
            *_within(_orders.c.updated_at, filter_.updated_after, filter_.updated_before),
        )
        .order_by(_orders.c.updated_at, _orders.c.id)
    )
    return query if after is None else query.where(tuple_(_orders.c.updated_at, _orders.c.id) > _last(after))


def _within(
    time: ColumnElement[datetime], first: datetime | None, end: datetime | None
) -> Iterator[ColumnElement[bool]]:
    if first is not None:
        yield time >= first
    if end is not None:
        yield time < end


def _last(position: Position) -> Any:
    time, order_id = position
    return tuple_(literal(from_micros(int(time)), Timestamp()), literal(order_id, Id()))


def _position(filter_: OrderFilter, row: Row[Any]) -> Position:
    if filter_.product_id is not None:
        return (row.line_id,)
    return (micros(row.updated_at if filter_.is_by_update else row.created_at), row.id)


def _count_within(rows: Sequence[Row[Any]]) -> int:
    """Return how many of the rows, from the first one on, have at most PAGE_DETAILS_BYTES_MAX; at least one."""
    bytes_ = 0
    for count, row in enumerate(rows):
        if row.charges != NO_CHARGES or row.labels != NO_LABELS:  # most orders have no charges and no labels
            bytes_ += len(row.charges.encode()) + len(row.labels.encode())
            if count and bytes_ > PAGE_DETAILS_BYTES_MAX:
                return count
    return len(rows)


_PAGE_LINES = Sizes[Row[Any]](key=lambda row: OrderKey(row.tenant, row.id), read=orders.count_lines, size_max=LINES_MAX)
