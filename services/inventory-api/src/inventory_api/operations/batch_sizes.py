"""Counts the rows that each request works on. The counts limit the rows of a batch."""

from inventory_api.domain.commands import ExtendRequest, OrderRequest, ReleaseRequest, StockQuestion
from inventory_api.domain.model import LOCATIONS_MAX, ReservationKey
from inventory_api.store import items
from inventory_api.store.reservations import by_order, rows
from shop_common.batching.coalescers import Sizes

ORDERS = Sizes[OrderRequest](key=lambda request: request.order_key, read=by_order.count_unreleased)
EXTENSIONS = Sizes[ExtendRequest](key=lambda request: request.order_key, read=by_order.count_unreleased)
RELEASES = Sizes[ReleaseRequest](
    key=lambda request: request.reservation_key, read=rows.count_allocations, size_max=LOCATIONS_MAX
)
QUESTIONS = Sizes[StockQuestion](
    key=lambda question: question.product, read=items.count_locations, size_max=LOCATIONS_MAX
)
RESERVATIONS = Sizes[ReservationKey](key=lambda key: key, read=rows.count_allocations, size_max=LOCATIONS_MAX)
