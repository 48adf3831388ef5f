"""Reservations past their time that hold what somebody needs: found at the place of need, and expired there."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Select, bindparam, exists, literal, select

from inventory_api.domain.model import Item, Reservation
from inventory_api.operations import transitions
from inventory_api.operations.halves import Halves
from inventory_api.store import reservations, tables
from inventory_api.store.reservations import Locked
from shop_common.db.sql import Statement, clock

DUE_EXPIRED_MAX = 10_000
"""Reservations past their time that one transaction expires to cover its need."""

Place = tuple[int, str | None]
"""A product and a location of it, or all of them."""

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations
_items = tables.inventory_items


def expire_to_cover(
    tx: Connection, need: Mapping[Place, int], stock: dict[int, Item], most: int
) -> tuple[list[Reservation], bool]:
    """Expire the oldest reservations past their time that give back what is needed at each place, `most` at most.

    All items of the products are locked, and `stock`, by id, is brought up to date. Returns what has expired, and
    whether there was more to expire than that. One that can't be expired is set aside and covers nothing.
    """
    expired: list[Reservation] = []
    while found := _find(tx, need, stock, most + 1):
        locked = reservations.lock(tx, found[:most])
        chosen = _oldest_that_cover(dict(need), [locked.reservations[each] for each in found[:most]])
        halves = Halves(
            partial(_expire, tx, locked, expired),
            id_of=lambda hold: hold.id,
            set_aside=partial(reservations.set_aside, tx),
        )
        halves.do(chosen)
        stock.update(locked.items)
        if expired or not halves.bad:
            return expired, len(found) > most
    return [], False


def _find(tx: Connection, need: Mapping[Place, int], stock: Mapping[int, Item], limit: int) -> list[str]:
    """The ids of those that may help, the oldest first. Locks nothing."""
    item_ids = {(item.product_id, item.location): item.id for item in stock.values()}
    products = [{"product_id": product_id} for product_id in dict.fromkeys(product_id for product_id, _ in need)]
    has_due = {row.product_id for row in _products_with_due(tx, products)} if products else set()
    found: dict[str, datetime] = {}
    for (product_id, location), units in need.items():
        if product_id not in has_due:
            continue
        # Each gives back one unit at least.
        given = {"product_id": product_id, "row_limit": min(units, limit)}
        if location is None:
            due = _rows(tx, _due_of_product, given)
        else:
            at = given | {"item_id": item_ids.get((product_id, location), 0)}
            due = [*_rows(tx, _due_of_item, at), *_rows(tx, _split_due_of_item, at)] if at["item_id"] else []
        found |= {row.id: row.expires_at for row in due}
    return sorted(found, key=found.__getitem__)[:limit]


def _rows(tx: Connection, query: Select[Any], given: Mapping[str, int]) -> Sequence[Row[Any]]:
    return tx.execute(query, given).all()


def _oldest_that_cover(need: dict[Place, int], due: Sequence[Reservation]) -> list[Reservation]:
    """Those of them, the oldest first, that give back something of what is needed."""
    chosen = []
    for reservation in due:
        helps = False
        for part in reservation.allocations:
            units = part.quantity
            for place in ((reservation.product_id, part.location), (reservation.product_id, None)):
                covered = min(units, need.get(place, 0))
                if covered:
                    need[place] -= covered
                    units -= covered
                    helps = True
        if helps:
            chosen.append(reservation)
    return chosen


def _expire(tx: Connection, locked: Locked, expired: list[Reservation], chosen: Sequence[Reservation]) -> int:
    """Expire all of these locked ones that still are due, and add them to `expired`; or fail and have done nothing."""
    part = Locked(locked.now, {each.id: each for each in chosen}, dict(locked.items))
    with tx.begin_nested():
        done = transitions.expire(tx, part)
    locked.items.update(part.items)
    expired += done
    return len(done)


_IS_DUE = (
    tables.HELD,
    _reservations.c.set_aside_at.is_(None),
    _reservations.c.expires_at <= clock(),
)
_OF_PRODUCT = _reservations.c.product_id == bindparam("product_id", type_=BigInteger())
_OLDEST = (
    select(_reservations.c.id, _reservations.c.expires_at)
    .where(*_IS_DUE, _OF_PRODUCT)
    .order_by(_reservations.c.expires_at)
    .limit(bindparam("row_limit", type_=BigInteger()))
)
_item_id = bindparam("item_id", type_=BigInteger())

# One place a statement: for several, PostgreSQL would read and sort all that is due at any of them.
_due_of_product = _OLDEST
_due_of_item = _OLDEST.where(_reservations.c.sole_item_id == _item_id)
_split_due_of_item = _OLDEST.where(
    _reservations.c.sole_item_id == literal(0, literal_execute=True),
    exists().where(_allocations.c.reservation_id == _reservations.c.id, _allocations.c.item_id == _item_id),
)
_products_with_due = Statement(
    lambda given: select(given.c.product_id).where(
        exists().where(*_IS_DUE, _reservations.c.product_id == given.c.product_id).correlate(given)
    ),
    product_id=BigInteger(),
)
