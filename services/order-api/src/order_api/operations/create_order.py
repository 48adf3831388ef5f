"""CreateOrder: reserve the stock, then store the order.

The reservation comes first, since it can be refused and expires by itself; no order is stored without it. What may
interrupt this, and what is true then:

    before the reservation           nothing happened
    stock reserved, order not stored the reservation expires. A repeat with the same request_id gets the same
                                     reservation and goes on; once that has ended, the request_id is spent
    order stored, not answered       a repeat with the same request_id is answered with the order
"""

from collections.abc import Sequence

from order_api.domain.commands import NewOrder, ReservedOrder
from order_api.domain.errors import ReservationExpired
from order_api.domain.model import Order, OrderReservation, quantities
from order_api.inventory import Inventory, InventoryUnavailable
from order_api.store import orders
from shop_common.batching.coalescer import Coalescer, Limits
from shop_common.batching.coalescers import Coalescers
from shop_common.db.database import Database
from shop_common.errors import DatabaseUnavailable, ShopError

CALLS = Limits(max_concurrency=4, patience_seconds=0.1)
"""Calls of inventory-api: one at a time, and another one beside it only if it takes long."""

DEFAULT_RESERVED_SECONDS = 1800.0
"""For a reservation that never expires, because somebody confirmed it before its order was stored."""


class OrderCreation:
    """Creates orders in two coalesced stages: few calls of inventory-api, few transactions."""

    def __init__(self, database: Database, stock: Inventory, run: Coalescers) -> None:
        self._database = database
        self._stock = stock
        self._reserve: Coalescer[NewOrder, ReservedOrder | Order] = run.own(
            "hold", self._reserve_all, key=lambda order: order.id, weigh=_weight, limits=CALLS
        )
        self._insert: Coalescer[ReservedOrder, Order] = run.writes(
            "insert", orders.insert, key=lambda reserved: reserved.order.id, weigh=lambda each: _weight(each.order)
        )

    def create(self, order: NewOrder, *, deadline: float) -> Order:
        """Return the order as it is stored, by this call or by an earlier one with the same request_id.

        Raises the refusals of inventory-api, ReservationExpired and RequestIdReused. Emits ORDER_CREATED.
        """
        try:
            reserved = self._reserve.submit(order, deadline=deadline)
        except DatabaseUnavailable as error:
            if error.rolled_back:
                raise
            # The reservation call timed out. Nothing was written to our database, which this stage only reads, but
            # inventory-api may have reserved the stock.
            raise InventoryUnavailable("the stock was not reserved in time; it may have been") from error
        if isinstance(reserved, Order):
            return reserved
        try:
            # failpoint: before-order-insert
            return self._insert.submit(reserved, deadline=deadline)
        except Exception as error:
            # A courtesy: the reservation would expire anyway. Not if another call may share the reservation, and not if
            # the order may have been stored after all.
            if order.request_id is None and _rolled_back(error):
                self._stock.release_soon(reserved.reservation_ids, order.traceparent)
            raise

    def _reserve_all(self, orders_: Sequence[NewOrder]) -> list[ReservedOrder | Order | ShopError]:
        """One outcome per order: its stock is reserved, or it is stored already, or it is refused."""
        outcomes: dict[str, ReservedOrder | Order | ShopError] = {}
        outcomes.update(self._earlier([order for order in orders_ if order.request_id is not None]))
        new = [order for order in orders_ if order.id not in outcomes]
        ended = []
        for order, reservation in zip(new, self._call(new), strict=True):
            if isinstance(reservation, ShopError):
                outcomes[order.id] = reservation
            elif reservation.units == quantities(order.items):
                outcomes[order.id] = ReservedOrder(order, _seconds(order, reservation), reservation.reservation_ids)
            else:
                ended.append(order)
        # An earlier attempt made a reservation that has ended. It may have stored its order since we looked.
        outcomes.update({order.id: ReservationExpired(order.id) for order in ended})
        outcomes.update(self._earlier(ended))
        return [outcomes[order.id] for order in orders_]

    def _call(self, new: Sequence[NewOrder]) -> Sequence[OrderReservation | ShopError]:
        try:
            return self._stock.reserve(new) if new else ()
        except ShopError as error:  # refuses all of these, but not the repeats in the batch
            return [error] * len(new)

    def _earlier(self, orders_: Sequence[NewOrder]) -> dict[str, Order | ShopError]:
        return self._database.query(lambda tx: orders.find_earlier(tx, orders_)) if orders_ else {}


def _weight(order: NewOrder) -> int:
    return len(order.items)


def _seconds(order: NewOrder, reservation: OrderReservation) -> float:
    if reservation.seconds is not None:
        return reservation.seconds
    return order.ttl_seconds or DEFAULT_RESERVED_SECONDS


def _rolled_back(error: Exception) -> bool:
    """Return whether it is certain that nothing was stored."""
    return not isinstance(error, DatabaseUnavailable) or error.rolled_back
