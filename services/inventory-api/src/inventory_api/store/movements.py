"""All SQL on the table stock_movements, and on the columns of the items that count the movements.

Movements are only inserted. Nothing changes or deletes them.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Subquery,
    TextClause,
    bindparam,
    literal,
    select,
    tuple_,
    update,
)

from inventory_api.domain.commands import MovementFilter
from inventory_api.domain.movements import Booked, Movement, MovementKind
from inventory_api.store import tables
from shop_common.api.paging import Page, PageRequest, Position, page_of
from shop_common.db.sql import Statement, Timestamp, in_rows, insert_into, join_rows
from shop_common.timestamps import from_micros, micros

WINDOW_ROWS = 5_000
"""The most rows that a page reads from the index. It must not be less than the largest page size."""

_items = tables.inventory_items
_movements = tables.stock_movements
_COLUMNS = tuple(_movements.c[name] for name in Movement.__slots__)


def load_booked(tx: Connection, item_ids: Iterable[int]) -> dict[int, Booked]:
    """Return the number of movements of these locked items, and the quantity after the last one, by item id."""
    rows = _load_booked(tx, [{"id": item_id} for item_id in item_ids])
    return {row.id: Booked(row.revision, row.booked_quantity) for row in rows}


def quantities_at(tx: Connection, item_ids: Iterable[int], as_of: datetime) -> dict[int, tuple[int, int]]:
    """Return the quantity and the withheld units of each item at a time, by item id.

    Items without a movement until then are left out.
    """
    rows = [{"id": item_id} for item_id in item_ids]
    found = _quantities_at(tx, rows, as_of=as_of) if rows else ()
    return {row.id: (row.quantity, row.withheld) for row in found if row.quantity is not None}


def append(tx: Connection, written: Sequence[Movement]) -> None:
    """Insert the movements, and update the counters of their items. The items are locked."""
    _insert(tx, written)
    last = {movement.item_id: movement for movement in written}
    _save_booked(
        tx,
        [
            {"id": each.item_id, "revision": each.revision, "booked_quantity": each.quantity_after}
            for each in last.values()
        ],
    )


def list_page(tx: Connection, request: PageRequest[MovementFilter]) -> Page[Movement]:
    """Return a page of a tenant's movements, newest first.

    A page reads at most WINDOW_ROWS rows of one index. The index is chosen by the first of order, product and location
    that the filter has. The times limit the range of that index. The other filters apply to the rows that were read, so
    a page may have fewer rows than requested, or none, even if it is not the last one.
    """
    window = _window(request)
    matching = select(window).where(*_matches(window.c, request.filter))
    newest_first = matching.order_by(window.c.created_at.desc(), window.c.id.desc()).limit(request.size + 1)
    page = page_of(tx.execute(newest_first).all(), request.size, _position)
    if page.next_position is None:
        last_in_window = (
            select(window.c.created_at, window.c.id)
            .order_by(window.c.created_at.desc(), window.c.id.desc())
            .offset(WINDOW_ROWS - 1)
        )
        last = tx.execute(last_in_window).one_or_none()
        page = Page(page.rows, None if last is None else _position(last))
    return Page([_movement(row) for row in page.rows], page.next_position)


def _window(request: PageRequest[MovementFilter]) -> Any:
    wanted = request.filter
    conditions: list[ColumnElement[bool] | TextClause] = [_movements.c.tenant == wanted.tenant]
    if wanted.order_id is not None:
        # The condition of the partial index.
        conditions += [_movements.c.order_id == wanted.order_id, tables.OF_ORDER]
    elif wanted.product_id is not None:
        conditions.append(_movements.c.product_id == wanted.product_id)
    elif wanted.location is not None:
        conditions.append(_movements.c.location == wanted.location)
    if wanted.created_after is not None:
        conditions.append(_movements.c.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(_movements.c.created_at < wanted.created_before)
    if request.after is not None:
        created_at, row_id = request.after
        last = tuple_(literal(from_micros(int(created_at)), Timestamp()), literal(row_id, BigInteger()))
        conditions.append(tuple_(_movements.c.created_at, _movements.c.id) < last)
    return (
        select(*_COLUMNS, _movements.c.id)
        .where(*conditions)
        .order_by(_movements.c.created_at.desc(), _movements.c.id.desc())
        .limit(WINDOW_ROWS)
        .subquery("page_window")
    )


def _matches(row: Any, wanted: MovementFilter) -> list[Any]:
    values = {
        "product_id": wanted.product_id,
        "location": wanted.location,
        "kind": wanted.kind,
        "actor": wanted.actor,
    }
    return [row[name] == value for name, value in values.items() if value is not None]


def _position(row: Row[Any]) -> Position:
    return micros(row.created_at), row.id


def _movement(row: Row[Any]) -> Movement:
    values = row._asdict()
    del values["id"]
    return Movement(**values | {"kind": MovementKind(row.kind)})


_load_booked = Statement(
    lambda given: select(_items.c.id, _items.c.revision, _items.c.booked_quantity).where(
        in_rows(_items.c.id, given.c.id)
    ),
    id=BigInteger(),
)


def _last_until(given: Subquery, value: ColumnElement[int]) -> Any:
    """Return the subquery for a value of the last movement of an item until `as_of`."""
    return (
        select(value)
        .where(_movements.c.item_id == given.c.id, _movements.c.created_at <= bindparam("as_of", type_=Timestamp()))
        .order_by(_movements.c.created_at.desc(), _movements.c.revision.desc())
        .limit(1)
        .correlate(given)
        .scalar_subquery()
    )


_quantities_at = Statement(
    lambda given: select(
        given.c.id,
        _last_until(given, _movements.c.quantity_after).label("quantity"),
        _last_until(given, _movements.c.withheld_after).label("withheld"),
    ),
    id=BigInteger(),
)
_insert = insert_into(_movements, *Movement.__slots__)
_save_booked = Statement(
    lambda given: (
        update(_items)
        .values(revision=given.c.revision, booked_quantity=given.c.booked_quantity)
        .where(*join_rows(_items.c.id, given.c.id))
    ),
    id=BigInteger(),
    revision=BigInteger(),
    booked_quantity=BigInteger(),
)
