"""All SQL on the table order_effects: what the events of orders have done to the stock so far."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import orjson
from sqlalchemy import BigInteger, Connection, Row, Text, select, update

from inventory_api.domain.model import OrderKey
from inventory_api.domain.order_targets import Addition, Place, Totals
from inventory_api.store import tables
from shop_common.db.sql import Statement, Timestamp, insert_into, is_each

_effects = tables.order_effects


@dataclass(frozen=True, slots=True)
class OrderEffects:
    """The highest version of an order that was applied in full, and the totals that were applied, by product.

    `additions` are reserved but not part of the totals yet.
    """

    applied_version: int
    totals: Mapping[int, Totals]
    additions: tuple[Addition, ...] = ()


def applied_versions(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, int]:
    """Return the applied version of each order of order-api that has one. Locks nothing."""
    rows = _rows(orders)
    return {OrderKey(row.tenant, "", row.order_id): row.applied_version for row in _versions(tx, rows)} if rows else {}


def load(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, OrderEffects]:
    """Return the effects of those of these orders of order-api that have any. Locks nothing."""
    rows = _rows(orders)
    return _by_order(_load(tx, rows)) if rows else {}


def lock(tx: Connection, orders: Iterable[OrderKey], now: datetime) -> dict[OrderKey, OrderEffects]:
    """Lock and return the effects of these orders of order-api, sorted by tenant and order. Inserts missing rows.

    Call it before items and reservations are locked.
    """
    rows = _rows(orders)
    # Sorted, so that two transactions that insert the same rows wait for each other and do not deadlock.
    _insert(tx, [{**row, "applied_version": 0, "totals": "{}", "updated_at": now} for row in rows])
    return _by_order(_lock(tx, rows))


def _by_order(rows: Iterable[Row[Any]]) -> dict[OrderKey, OrderEffects]:
    return {
        OrderKey(row.tenant, "", row.order_id): OrderEffects(
            row.applied_version,
            _unpacked(row.totals),
            _additions(row.additions),
        )
        for row in rows
    }


def save(tx: Connection, effects: Mapping[OrderKey, OrderEffects], now: datetime) -> None:
    """Write the effects of locked orders."""
    _save(
        tx,
        [
            {
                "tenant": order.tenant,
                "order_id": order.order_id,
                "applied_version": each.applied_version,
                "totals": _packed(each.totals),
                "additions": orjson.dumps([tuple(addition) for addition in each.additions]).decode(),
                "updated_at": now,
            }
            for order, each in effects.items()
        ],
    )


def _rows(orders: Iterable[OrderKey]) -> list[dict[str, object]]:
    return [{"tenant": order.tenant, "order_id": order.order_id} for order in sorted(set(orders))]


def _packed(totals: Mapping[int, Totals]) -> str:
    # Most orders have no returns.
    return orjson.dumps(
        {
            str(product): [each.kept, each.shipped, *([_packed_places(each.restocked)] if each.restocked else [])]
            for product, each in totals.items()
        }
    ).decode()


def _packed_places(restocked: Iterable[tuple[Place, int]]) -> list[list[object]]:
    # A process that does not know withheld returns can read the totals of an order that has none.
    return [
        [place.location, units, *([place.withholding_reason] if place.withholding_reason else [])]
        for place, units in restocked
    ]


def _unpacked(text: str) -> dict[int, Totals]:
    return {
        int(product): Totals(
            kept, shipped, tuple((Place(location, *reason), units) for location, units, *reason in chain(*restocked))
        )
        for product, (kept, shipped, *restocked) in orjson.loads(text).items()
    }


def _additions(text: str) -> tuple[Addition, ...]:
    if text == _NO_ADDITIONS:
        return ()
    return tuple(Addition(version, change_id, tuple(ids)) for version, change_id, ids in orjson.loads(text))


_NO_ADDITIONS = "[]"
_versions = Statement(
    lambda given: select(_effects.c.tenant, _effects.c.order_id, _effects.c.applied_version).where(
        *is_each(_effects, given, "tenant", "order_id")
    ),
    tenant=Text(),
    order_id=Text(),
)
_load = Statement(
    lambda given: select(_effects).where(*is_each(_effects, given, "tenant", "order_id")),
    tenant=Text(),
    order_id=Text(),
)
_insert = insert_into(_effects, "tenant", "order_id", "applied_version", "totals", "updated_at", or_ignore=True)
_lock = Statement(
    lambda given: (
        select(_effects)
        .where(*is_each(_effects, given, "tenant", "order_id"))
        .order_by(_effects.c.tenant, _effects.c.order_id)
        .with_for_update(of=_effects)
    ),
    tenant=Text(),
    order_id=Text(),
)
_save = Statement(
    lambda given: (
        update(_effects)
        .values({name: given.c[name] for name in ("applied_version", "totals", "additions", "updated_at")})
        .where(*is_each(_effects, given, "tenant", "order_id"))
    ),
    tenant=Text(),
    order_id=Text(),
    applied_version=BigInteger(),
    totals=Text(),
    additions=Text(),
    updated_at=Timestamp(),
)
