"""CreateOrder and BatchCreateOrders: reserve the stock, then store the order.

The reservation comes first, since it can be refused and expires by itself. No order is stored without one. The state
after an interruption:

    before the reservation           nothing happened
    stock reserved, order not stored the reservation expires. A repeat with the same request_id gets the same
                                     reservation and stores the order; after the reservation has ended, a call with this
                                     request_id fails with RESERVATION_EXPIRED
    limit per buyer exceeded, stock  the reservation expires; a repeat is refused again, or stores the order if other
    not released                     orders of the buyer were cancelled
    order stored, no response        a repeat with the same request_id returns the order
"""

from collections.abc import Sequence
from typing import TypeVar

from order_api.domain import buyer_limits as limits
from order_api.domain.commands import CREATE_METHOD, NewOrder, ReservedOrder
from order_api.domain.errors import BuyerLimitExceeded, BuyerOrdersLimit, ReservationExpired
from order_api.domain.model import Order, OrderKey, OrderReservation, quantities
from order_api.inventory import Inventory, InventoryUnavailable
from order_api.store import buyer_limits, orders
from shop_common.batching.coalescer import Coalescer, Limits
from shop_common.batching.coalescers import Audit, Coalescers
from shop_common.db import row_security
from shop_common.db.database import Database
from shop_common.errors import DatabaseUnavailable, ShopError

_Outcome = TypeVar("_Outcome")

CALLS = Limits(max_concurrency=4, patience_seconds=0.1)
"""The limits of calls of inventory-api: one at a time, and a further one if the last one takes more than 0.1 s."""

DEFAULT_RESERVED_SECONDS = 1800.0
"""The duration to store for a reservation that never expires, because it was confirmed before its order was stored."""


class OrderCreation:
    """Creates orders in two stages, each with a coalescer: reserve the stock of many orders, then store many orders."""

    def __init__(self, database: Database, stock: Inventory, run: Coalescers) -> None:
        self._database = database
        self._stock = stock
        self._reserve: Coalescer[NewOrder, ReservedOrder | Order] = run.own(
            "hold", self._reserve_all, key=lambda order: order.key, weigh=_weight, limits=CALLS
        )
        self._insert: Coalescer[ReservedOrder, Order] = run.writes(
            "insert",
            orders.insert,
            key=lambda reserved: reserved.key,
            weigh=lambda each: _weight(each.order),
            audit=Audit[ReservedOrder, Order](
                CREATE_METHOD,
                command=lambda reserved: reserved.order,
                fold=ReservedOrder.folded,
                resources=lambda _, order: (order.id,),
            ),
        )

    def create(self, order: NewOrder, *, deadline: float) -> Order:
        """Return the stored order. This call stores it, or an earlier call with the same request_id has stored it.

        Raises the refusals of inventory-api, ReservationExpired, BuyerLimitExceeded, BuyerOrdersLimit and
        RequestIdReused. Emits ORDER_CREATED.
        """
        (outcome,) = self.create_many([order], deadline=deadline)
        if isinstance(outcome, ShopError):
            raise outcome
        return outcome

    def create_many(self, new: Sequence[NewOrder], *, deadline: float) -> list[Order | ShopError]:
        """Return one outcome per order, in order: the order or the error that `create` would raise.

        Orders are decided independently, and may be stored in different transactions. Raises an error only if no order
        is stored or decided. Emits ORDER_CREATED per stored order.
        """
        outcomes = self._reserved(new, deadline)
        reserved = [each for each in outcomes if isinstance(each, ReservedOrder)]
        stored = iter(self._stored(reserved, deadline) if reserved else ())
        return [next(stored) if isinstance(each, ReservedOrder) else each for each in outcomes]

    def _reserved(self, new: Sequence[NewOrder], deadline: float) -> list[ReservedOrder | Order | ShopError]:
        try:
            return [_as_reservation_error(each) for each in self._reserve.submit_many(new, deadline=deadline)]
        except DatabaseUnavailable as error:
            raise _as_reservation_error(error) from error

    def _stored(self, reserved: Sequence[ReservedOrder], deadline: float) -> list[Order | ShopError]:
        try:
            # failpoint: before-order-insert
            outcomes = self._insert.submit_many(reserved, deadline=deadline)
        except ShopError as error:
            outcomes = [error] * len(reserved)
        except Exception:
            # One order caused the error, and its batch was rolled back. Other orders of this call may be stored.
            if len(reserved) == 1:
                self._release(reserved[0])
            raise
        for each, outcome in zip(reserved, outcomes, strict=True):
            if isinstance(outcome, ShopError) and _rolled_back(outcome):
                self._release(each, outcome)
        return outcomes

    def _release(self, reserved: ReservedOrder, outcome: ShopError | None = None) -> None:
        """Release the stock of an order that was not stored, before its reservation expires.

        If the order has a request_id, the reservation is kept, because another call with the same request_id may use
        it. If the order exceeds a limit per buyer, its reservation is always released. Otherwise one buyer with many
        calls at once, of which the limit allows one, would keep the stock from other buyers until the reservations
        expire.
        """
        if reserved.order.request_id is None or isinstance(outcome, BuyerLimitExceeded | BuyerOrdersLimit):
            self._stock.release_soon(reserved)

    def _reserve_all(self, orders_: Sequence[NewOrder]) -> list[ReservedOrder | Order | ShopError]:
        """Return one outcome per order: the reserved order, the order that is already stored, or the refusal."""
        outcomes: dict[OrderKey, ReservedOrder | Order | ShopError] = {}
        outcomes.update(self._earlier([order for order in orders_ if order.request_id is not None]))
        outcomes.update(self._over_limit([order for order in orders_ if order.key not in outcomes]))
        new = [order for order in orders_ if order.key not in outcomes]
        ended = []
        for order, reservation in zip(new, self._call(new), strict=True):
            if isinstance(reservation, ShopError):
                outcomes[order.key] = reservation
            elif reservation.units == quantities(order.items):
                outcomes[order.key] = ReservedOrder(order, _seconds(order, reservation), reservation.reservation_ids)
            else:
                ended.append(order)
        # The reservation of an earlier attempt has ended. That attempt may have stored its order after we read.
        outcomes.update({order.key: ReservationExpired(order.id) for order in ended})
        outcomes.update(self._earlier(ended))
        return [outcomes[order.key] for order in orders_]

    def _call(self, new: Sequence[NewOrder]) -> Sequence[OrderReservation | ShopError]:
        try:
            return self._stock.reserve(new) if new else ()
        except ShopError as error:  # the outcome of these orders, but not of the repeats in the batch
            return [error] * len(new)

    def _over_limit(self, new: Sequence[NewOrder]) -> dict[OrderKey, ShopError]:
        """Return, by key, the refusals of orders that exceed a limit per buyer even if no other one is stored.

        The stock of these orders need not be reserved. `orders.insert` decides the others under a lock.
        """
        purchases = [purchase for order in new if (purchase := limits.of_new(order))]
        if not purchases:
            return {}
        bought = self._database.query(lambda tx: buyer_limits.bought(tx, purchases), row_security.of(new))
        return {each.order: refusal for each in purchases if (refusal := bought.refusal(each))}

    def _earlier(self, orders_: Sequence[NewOrder]) -> dict[OrderKey, Order | ShopError]:
        if not orders_:
            return {}
        return self._database.query(lambda tx: orders.find_earlier(tx, orders_), row_security.of(orders_))


def _as_reservation_error(outcome: _Outcome) -> _Outcome | InventoryUnavailable:
    """Return the outcome of a reservation. A timeout becomes InventoryUnavailable.

    Nothing was written to our database, which this stage only reads, but inventory-api may have reserved the stock.
    """
    if isinstance(outcome, DatabaseUnavailable) and not outcome.rolled_back:
        return InventoryUnavailable("the reservation took too long; the stock may be reserved")
    return outcome


def _weight(order: NewOrder) -> int:
    return len(order.items)


def _seconds(order: NewOrder, reservation: OrderReservation) -> float:
    if reservation.seconds is not None:
        return reservation.seconds
    return order.ttl_seconds or DEFAULT_RESERVED_SECONDS


def _rolled_back(error: ShopError) -> bool:
    """Return whether it is certain that nothing was stored."""
    return not isinstance(error, DatabaseUnavailable) or error.rolled_back
