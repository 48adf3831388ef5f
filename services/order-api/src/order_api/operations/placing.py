"""CreateOrder: hold the stock, then store the order.

The hold comes first, since it can be refused and runs out by itself; an order is never stored without one. What may
cut this short, and what is then true:

    before the hold                  nothing happened
    hold made, order not stored      the hold runs out. A repeat with the same request_id gets the same hold and goes
                                     on; once it has ended, that request_id is spent
    order stored, not answered       a repeat with the same request_id is answered with the order
"""

from collections.abc import Sequence

from order_api import inventory
from order_api.domain.commands import HeldOrder, NewOrder
from order_api.domain.model import Order, ReservationExpired, quantities
from order_api.inventory import Inventory, InventoryUnavailable
from order_api.store import orders
from shop_common.batching.coalesced import Coalesced
from shop_common.batching.coalescer import Coalescer, Limits
from shop_common.db.database import Database
from shop_common.errors import DatabaseUnavailable, ShopError
from shop_protos.inventory.v1 import inventory_pb2

CALLS = Limits(flights_max=4, patience_seconds=0.1)
"""Of inventory-api: one at a time, and more only beside one that takes long."""
DEFAULT_HOLD_SECONDS = 1800.0
"""Taken for a hold without an end, which someone confirmed before its order was stored."""


class OrderCreation:
    """Creates orders in two coalesced stages: few calls of inventory-api, few transactions."""

    def __init__(self, database: Database, stock: Inventory, run: Coalesced) -> None:
        self._database = database
        self._stock = stock
        self._hold: Coalescer[NewOrder, HeldOrder | Order] = run.own(
            "hold", self._hold_all, key=lambda order: order.id, weigh=_weight, limits=CALLS
        )
        self._insert: Coalescer[HeldOrder, Order] = run.writes(
            "insert", orders.insert, key=lambda held: held.order.id, weigh=lambda held: _weight(held.order)
        )

    def create(self, order: NewOrder, *, deadline: float) -> Order:
        """The order as it is stored, by this call or by an earlier one with the same request_id.

        Raises what inventory-api refuses, ReservationExpired and RequestIdReused. Emits ORDER_CREATED.
        """
        try:
            held = self._hold.submit(order, deadline=deadline)
        except DatabaseUnavailable as error:
            if error.rolled_back:
                raise
            # Time ran out while the stock was being held; our database is only read there, and commits nothing.
            raise InventoryUnavailable("the stock was not held in time; it may be") from error
        if isinstance(held, Order):
            return held
        try:
            # failpoint: before-order-insert
            return self._insert.submit(held, deadline=deadline)
        except Exception as error:
            # A courtesy: the hold would run out anyway. Not where another call may own the same hold, or where the
            # order may have been stored after all.
            if order.request_id is None and _rolled_back(error):
                self._stock.release_soon(held.reservation_ids, order.traceparent)
            raise

    def _hold_all(self, wanted: Sequence[NewOrder]) -> list[HeldOrder | Order | ShopError]:
        """One outcome per order: held, or stored already, or refused."""
        outcomes: dict[str, HeldOrder | Order | ShopError] = {}
        repeatable = [order for order in wanted if order.request_id is not None]
        outcomes.update(self._earlier(repeatable))
        new = [order for order in wanted if order.id not in outcomes]
        ended = []
        for order, held in zip(new, self._reserve(new), strict=True):
            if isinstance(held, ShopError):
                outcomes[order.id] = held
            elif inventory.units_held(held) == quantities(order.items):
                outcomes[order.id] = HeldOrder(order, _hold_seconds(order, held), tuple(each.id for each in held))
            else:
                ended.append(order)
        # An earlier try took a hold that has ended. It may have stored its order since we looked.
        outcomes.update({order.id: ReservationExpired(order.id) for order in ended})
        outcomes.update(self._earlier(ended))
        return [outcomes[order.id] for order in wanted]

    def _reserve(self, new: Sequence[NewOrder]) -> Sequence[Sequence[inventory_pb2.Reservation] | ShopError]:
        try:
            return self._stock.reserve(new) if new else ()
        except ShopError as error:  # for all of these, but not for the repeats in the batch
            return [error] * len(new)

    def _earlier(self, wanted: Sequence[NewOrder]) -> dict[str, Order | ShopError]:
        return self._database.query(lambda tx: orders.find_earlier(tx, wanted)) if wanted else {}


def _weight(order: NewOrder) -> int:
    return len(order.items)


def _hold_seconds(order: NewOrder, held: Sequence[inventory_pb2.Reservation]) -> float:
    """How long the shortest of the holds lasts from the moment it was made: clocks of two databases don't compare."""
    lengths = [
        each.expires_at.seconds - each.created_at.seconds + (each.expires_at.nanos - each.created_at.nanos) / 1e9
        for each in held
        if each.HasField("expires_at")
    ]
    return min(lengths, default=order.ttl_seconds or DEFAULT_HOLD_SECONDS)


def _rolled_back(error: Exception) -> bool:
    """Whether it is known that nothing was stored."""
    return not isinstance(error, DatabaseUnavailable) or error.rolled_back
