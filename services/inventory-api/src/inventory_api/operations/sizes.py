"""How much a call works on, counted before it is done, so that a batch of calls is bounded in rows."""

from inventory_api.domain.commands import OrderRequest, ReleaseRequest
from inventory_api.domain.model import LOCATIONS_MAX
from inventory_api.operations.stock import StockQuestion
from inventory_api.store import by_order, items, tables
from shop_common.batching.coalesced import Sizes
from shop_common.db.sql import counting

# Reservations, not their allocations: without statistics PostgreSQL would read all of those for each order. And only
# the ones that confirming reads: what has expired or was released is kept for a week, in any number.
of_orders = counting(
    tables.stock_reservations.c.order_id, tables.stock_reservations.c.state.in_(by_order.UNRELEASED_STATES)
)
of_reservations = counting(tables.reservation_allocations.c.reservation_id)

ORDERS = Sizes[OrderRequest](of=lambda request: request.order_id, read=of_orders)
RELEASES = Sizes[ReleaseRequest](of=lambda request: request.reservation_id, read=of_reservations, most=LOCATIONS_MAX)
QUESTIONS = Sizes[StockQuestion](
    of=lambda question: question.product_id, read=items.count_locations, most=LOCATIONS_MAX
)
RESERVATIONS = Sizes[str](of=str, read=of_reservations, most=LOCATIONS_MAX)
