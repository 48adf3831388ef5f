"""How much a call works on, counted before it is done, so that a batch of calls is bounded in rows."""

from collections.abc import Collection

from sqlalchemy import BigInteger, Connection, Text, func, select

from inventory_api import tables
from inventory_api.domain import LOCATIONS_MAX
from inventory_api.stock import StockQuestion
from inventory_api.transitions import OrderRequest, ReleaseRequest
from shop_common.coalesced import Sizes
from shop_common.sql import Id, Statement, among

_items = tables.inventory_items
_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations


def of_orders(tx: Connection, order_ids: Collection[str]) -> dict[str, int]:
    """The reservations of each order that has some."""
    return {row.order_id: row.size for row in _of_orders(tx, [{"order_id": each} for each in order_ids])}


def of_reservations(tx: Connection, ids: Collection[str]) -> dict[str, int]:
    """The allocations of each reservation."""
    return {row.reservation_id: row.size for row in _of_reservations(tx, [{"id": each} for each in ids])}


def of_products(tx: Connection, product_ids: Collection[int]) -> dict[int, int]:
    """The locations of each product."""
    return {row.product_id: row.size for row in _of_products(tx, [{"product_id": each} for each in product_ids])}


ORDERS = Sizes[OrderRequest](of=lambda request: request.order_id, read=of_orders)
RELEASES = Sizes[ReleaseRequest](of=lambda request: request.reservation_id, read=of_reservations, most=LOCATIONS_MAX)
QUESTIONS = Sizes[StockQuestion](of=lambda question: question.product_id, read=of_products, most=LOCATIONS_MAX)
RESERVATIONS = Sizes[str](of=str, read=of_reservations, most=LOCATIONS_MAX)


# Not joined with the allocations: without statistics PostgreSQL reads all of them for that, once for each order.
_of_orders = Statement(
    lambda given: (
        select(_reservations.c.order_id, func.count().label("size"))
        .where(among(_reservations.c.order_id, given.c.order_id))
        .group_by(_reservations.c.order_id)
    ),
    order_id=Text(),
)
_of_reservations = Statement(
    lambda given: (
        select(_allocations.c.reservation_id, func.count().label("size"))
        .where(among(_allocations.c.reservation_id, given.c.id))
        .group_by(_allocations.c.reservation_id)
    ),
    id=Id(),
)
_of_products = Statement(
    lambda given: (
        select(_items.c.product_id, func.count().label("size"))
        .where(among(_items.c.product_id, given.c.product_id))
        .group_by(_items.c.product_id)
    ),
    product_id=BigInteger(),
)
