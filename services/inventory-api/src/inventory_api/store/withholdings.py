"""All SQL on the table stock_withholdings. Its rows are changed only under the lock of their item."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import BigInteger, Connection, Double, cast, delete, func, literal, select

from inventory_api.domain.model import Item
from inventory_api.store import tables
from shop_common.db.sql import Statement, in_rows, insert_into

COUNTED_MAX = 100_000

_withholdings = tables.stock_withholdings


def with_withholdings(tx: Connection, items: Sequence[Item]) -> list[Item]:
    """Return the items with their withholdings, in order. Reads nothing if no unit of them is withheld."""
    by_item: dict[int, list[tuple[str, int]]] = {item.id: [] for item in items if item.withheld_quantity}
    if by_item:
        for item_id, reason, quantity in _load(tx, [{"item_id": item_id} for item_id in by_item]):
            by_item[item_id].append((reason, quantity))
    return [
        replace(item, withholdings=tuple(sorted(by_item[item.id]))) if item.id in by_item else item for item in items
    ]


def count_units(tx: Connection) -> float:
    """Return how many units are withheld, for all reasons together. Reads at most COUNTED_MAX withholdings.

    Run this with FORCE_INDEX_PLANS. Otherwise PostgreSQL would read the whole table if it has no statistics.
    """
    limit = literal(COUNTED_MAX, literal_execute=True)
    # ORDER BY and LIMIT make the database stop after COUNTED_MAX entries of the primary key.
    counted = select(_withholdings.c.quantity).order_by(_withholdings.c.item_id).limit(limit).subquery()
    # As floats, because the sum of so many integers may overflow in SQLite.
    units = tx.execute(select(func.sum(cast(counted.c.quantity, Double)))).scalar_one()
    return float(units or 0)


def save(tx: Connection, items: Sequence[Item]) -> None:
    """Replace the withholdings of these locked items by those that they have now. No item may be there twice."""
    if not items:
        return
    _delete(tx, [{"item_id": item.id} for item in items])
    rows = [
        {"tenant": item.tenant, "item_id": item.id, "reason": reason, "quantity": units}
        for item in items
        for reason, units in item.withholdings
    ]
    if rows:
        _insert(tx, rows)


_load = Statement(
    lambda given: select(_withholdings.c.item_id, _withholdings.c.reason, _withholdings.c.quantity).where(
        in_rows(_withholdings.c.item_id, given.c.item_id)
    ),
    item_id=BigInteger(),
)
_delete = Statement(
    lambda given: delete(_withholdings).where(in_rows(_withholdings.c.item_id, given.c.item_id)), item_id=BigInteger()
)
_insert = insert_into(_withholdings, "tenant", "item_id", "reason", "quantity")
