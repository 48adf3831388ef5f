"""How many rows each request works on, so that a batch of requests is bounded in rows."""

from inventory_api.domain.commands import OrderRequest, ReleaseRequest, StockQuestion
from inventory_api.domain.model import LOCATIONS_MAX
from inventory_api.store import items
from inventory_api.store.reservations import by_order, rows
from shop_common.batching.coalesced import Sizes

ORDERS = Sizes[OrderRequest](of=lambda request: request.order_id, read=by_order.count_unreleased)
RELEASES = Sizes[ReleaseRequest](
    of=lambda request: request.reservation_id, read=rows.count_allocations, most=LOCATIONS_MAX
)
QUESTIONS = Sizes[StockQuestion](
    of=lambda question: question.product_id, read=items.count_locations, most=LOCATIONS_MAX
)
RESERVATIONS = Sizes[str](of=str, read=rows.count_allocations, most=LOCATIONS_MAX)
