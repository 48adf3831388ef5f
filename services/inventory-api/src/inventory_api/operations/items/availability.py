"""Reads the stock of many products at one moment, for BatchGetAvailability."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from inventory_api.domain.commands import AvailabilityQuestion
from inventory_api.domain.model import Availability, LocationAvailability, ProductKey, units_available
from inventory_api.store import availability
from shop_common.api.valid import INT64_MAX
from shop_common.errors import InvalidInput, Violation
from shop_common.timestamps import from_micros

ITEMS_MAX = 25_000
"""The most items that one call reads. With 120 bytes per location, the response stays below 4 MB."""


@dataclass(frozen=True, slots=True)
class Availabilities:
    """The stock of products at one moment, in the order of the request."""

    read_at: datetime
    products: Sequence[Availability]


def get_availability(tx: Connection, question: AvailabilityQuestion) -> Availabilities:
    """Return the stock of each product, in order. A product without items has no stock.

    Raises InvalidInput if the products have more than ITEMS_MAX items together.
    """
    keys = [ProductKey(question.tenant, product_id) for product_id in question.product_ids]
    rows = availability.rows(tx, keys, ITEMS_MAX + 1)
    if len(rows) > ITEMS_MAX:
        message = f"must be products with at most {ITEMS_MAX} items together"
        raise InvalidInput([Violation("product_ids", message)])
    by_product: dict[int, list[Row[Any]]] = {}
    for row in rows:
        by_product.setdefault(row[0], []).append(row)
    products = [_of_product(by_product[product_id], question.by_location) for product_id in question.product_ids]
    return Availabilities(from_micros(rows[0].read_at), products)


def _of_product(rows: Sequence[Row[Any]], by_location: bool) -> Availability:
    available = reserved = withheld = 0
    locations = []
    for _, location, quantity, reserved_quantity, withheld_here, is_active, due, _, _ in rows:
        available_here = units_available(quantity, withheld_here, reserved_quantity, is_active, due)
        reserved_here = reserved_quantity - due
        available += available_here
        reserved += reserved_here
        withheld += withheld_here
        if by_location and location is not None:
            locations.append(LocationAvailability(location, available_here, reserved_here, withheld_here))
    return Availability(
        rows[0].product_id,
        min(available, INT64_MAX),
        min(reserved, INT64_MAX),
        min(withheld, INT64_MAX),
        rows[0].next_release_at,
        tuple(sorted(locations, key=lambda each: each.location)),
    )
