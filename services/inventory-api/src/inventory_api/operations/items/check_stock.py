"""Counts available units, for CheckStock."""

from collections.abc import Sequence

from sqlalchemy import Connection

from inventory_api.domain.commands import StockQuestion
from inventory_api.domain.model import StockKey, units_available
from inventory_api.store import items
from inventory_api.store.reservations import due
from shop_common.api.valid import INT64_MAX


def check_stock(tx: Connection, questions: Sequence[StockQuestion]) -> list[int]:
    """Return the number of available units for each question, in order. Units of due reservations are available.

    The number is 0 for an unknown product. The sum over very many locations could exceed an int64, so a larger sum is
    returned as INT64_MAX.
    """
    products = {question.product for question in questions}
    due_units = due.units_by_item(tx, products)
    available: dict[StockKey, int] = {}
    for item in items.load_products(tx, products):
        due_here = due_units.get(item.id, 0)
        units = units_available(item.quantity, item.withheld_quantity, item.reserved_quantity, item.is_active, due_here)
        available[item.stock_key] = units
        everywhere = StockKey(item.tenant, item.product_id, None)
        available[everywhere] = available.get(everywhere, 0) + units
    return [min(available.get(question.key, 0), INT64_MAX) for question in questions]
