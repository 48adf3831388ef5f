"""Creates empty items for the stock keys that have none."""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from inventory_api.domain.model import LOCATIONS_MAX, StockKey
from inventory_api.store import items
from shop_common.db.sql import now


def create_missing(tx: Connection, keys: Collection[StockKey]) -> list[StockKey]:
    """Create an empty item for each stock key that has none, unless its product is at LOCATIONS_MAX locations already.

    Returns the keys that had no item before. Call this before the transaction locks an item. A transaction that inserts
    an item waits for another one that has inserted the same item, so the two could deadlock if they also had locks on
    other items.
    """
    present = {item.stock_key for item in items.load_at(tx, keys)} if keys else set()
    absent = _within_limit(tx, [key for key in keys if key not in present])
    if absent:
        # Another transaction may have created some of these items after this transaction read. They keep their units.
        items.insert_empty(tx, absent, now(tx))
    return absent


def _within_limit(tx: Connection, absent: Sequence[StockKey]) -> list[StockKey]:
    """Return the keys, in order, whose product may still get another location.

    The limit is not exact: two transactions that add locations to one product at the same time do not see each
    other's items. So the product may get a few more locations than LOCATIONS_MAX.
    """
    if not absent:
        return []
    locations = items.count_locations(tx, {key.product for key in absent})
    allowed = []
    for key in absent:
        if locations.get(key.product, 0) < LOCATIONS_MAX:
            locations[key.product] = locations.get(key.product, 0) + 1
            allowed.append(key)
    return allowed
