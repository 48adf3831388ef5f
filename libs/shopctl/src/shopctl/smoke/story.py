"""The story that calls every RPC: stock, reservations, orders, a hold that runs out, and what the reaper does.

Products, users and orders are fresh each time, so it may be told to a system that is in use.
"""

import random
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from shop_protos.inventory.v1 import inventory_pb2 as stock
from shop_protos.inventory.v1 import maintenance_pb2 as stock_maintenance
from shop_protos.order.v1 import maintenance_pb2 as order_maintenance
from shop_protos.order.v1 import order_pb2 as orders
from shopctl.smoke.narrator import Narrator

_WEEK = Duration(seconds=7 * 24 * 3600)
_TEN_YEARS = Duration(seconds=3650 * 24 * 3600)
_LOWEST_FRESH, _HIGHEST_FRESH = 10**12, 10**15


class Story:
    """Chapters, each resting on those before it. They raise CommandFailed at the first wrong answer."""

    def __init__(self, tell: Narrator) -> None:
        self._tell = tell
        self._inventory = tell.shop.inventory
        self._orders = tell.shop.orders
        self._product, self._scarce, self._user = random.sample(range(_LOWEST_FRESH, _HIGHEST_FRESH), 3)

    def tell(self) -> None:
        """All of it."""
        self._a_hold_begins_to_run_out()
        self._stock_comes_in()
        self._stock_is_held_and_given_back()
        self._many_orders_are_held_for_at_once()
        self._an_order_ships()
        self._an_order_is_cancelled()
        self._the_hold_has_run_out()
        self._the_reaper_looks_after_history()

    def _a_hold_begins_to_run_out(self) -> None:
        self._tell.chapter("An order that nobody confirms holds the last 5 units for one second")
        self._put(self._scarce, 5, "WAREHOUSE_A")
        request = self._order((self._scarce, 5, 3), ttl=Duration(seconds=1))
        self._forgotten = self._tell.call(
            self._orders.CreateOrder, request, order__status=orders.ORDER_STATUS_PENDING
        ).order.id

    def _stock_comes_in(self) -> None:
        tell = self._tell
        tell.chapter("Stock comes in at three locations")
        first = self._put(self._product, 20, "WAREHOUSE_A", request_id := str(uuid4()))
        self._put(self._product, 30, "WAREHOUSE_B")
        third = self._put(self._product, 10, "WAREHOUSE_C")
        again = self._put(self._product, 20, "WAREHOUSE_A", request_id)
        tell.expect("the same request_id adds once", again.id, first.id)
        self._available(60)
        tell.call(
            self._inventory.GetInventoryItem,
            stock.GetInventoryItemRequest(id=third.id),
            item__product_id=self._product,
            item__available_quantity=10,
        )
        recount = stock.UpdateInventoryItemRequest(id=third.id, quantity=15, version=third.version)
        tell.call(self._inventory.UpdateInventoryItem, recount, item__quantity=15)
        stale = stock.UpdateInventoryItemRequest(id=third.id, quantity=16, version=third.version)
        tell.refused(self._inventory.UpdateInventoryItem, stale, "VERSION_MISMATCH")
        tell.call(
            self._inventory.ListInventoryItems,
            stock.ListInventoryItemsRequest(product_id=self._product),
            items__quantity=[20, 30, 15],
        )

    def _stock_is_held_and_given_back(self) -> None:
        tell = self._tell
        tell.chapter("Stock is held, and given back")
        held = tell.call(
            self._inventory.ReserveStock,
            stock.ReserveStockRequest(product_id=self._product, quantity=25, order_id=str(uuid4())),
            reservation__state=stock.RESERVATION_STATE_HELD,
            reservation__allocations__location=["WAREHOUSE_B"],
            reservation__allocations__quantity=[25],
        ).reservation
        self._available(40)
        too_many = stock.ReserveStockRequest(product_id=self._product, quantity=41, order_id=str(uuid4()))
        refusal = tell.refused(self._inventory.ReserveStock, too_many, "INSUFFICIENT_STOCK")
        tell.expect("what is available, as the refusal says", refusal["available"], "40")
        tell.call(
            self._inventory.GetReservation,
            stock.GetReservationRequest(id=held.id),
            reservation__order_id=held.order_id,
            reservation__state=stock.RESERVATION_STATE_HELD,
        )
        for _ in range(2):
            release = stock.ReleaseStockRequest(reservation_id=held.id)
            tell.call(self._inventory.ReleaseStock, release, released_quantity=25)
        self._available(65)

    def _many_orders_are_held_for_at_once(self) -> None:
        tell = self._tell
        tell.chapter("Two orders are held for in one call: one over two locations, one refused")
        order, refused = str(uuid4()), str(uuid4())
        results = tell.call(
            self._inventory.BatchReserveStock,
            stock.BatchReserveStockRequest(
                orders=[
                    stock.OrderLines(order_id=order, lines=[stock.Line(product_id=self._product, quantity=40)]),
                    stock.OrderLines(order_id=refused, lines=[stock.Line(product_id=self._product, quantity=26)]),
                ]
            ),
            results__count=2,
        ).results
        tell.expect("the outcomes", [result.WhichOneof("outcome") for result in results], ["reservations", "error"])
        (held,) = results[0].reservations.reservations
        tell.expect("the sum of the allocations", sum(part.quantity for part in held.allocations), 40)
        tell.call(
            self._inventory.ConfirmReservations,
            stock.ConfirmReservationsRequest(order_id=order),
            reservations__state=[stock.RESERVATION_STATE_CONFIRMED],
        )
        tell.call(
            self._inventory.ListReservations, stock.ListReservationsRequest(order_id=order), reservations__id=[held.id]
        )
        tell.call(
            self._inventory.ListReservations, stock.ListReservationsRequest(order_id=refused), reservations__count=0
        )
        release = stock.ReleaseStockRequest(reservation_id=held.id)
        tell.call(self._inventory.ReleaseStock, release, released_quantity=40)
        self._available(65)

    def _an_order_ships(self) -> None:
        tell = self._tell
        tell.chapter("An order of two lines is placed, confirmed, packed and shipped: its stock leaves")
        request = self._order((self._product, 10, 20), (self._product, 5, 20))
        order = tell.call(
            self._orders.CreateOrder,
            request,
            order__status=orders.ORDER_STATUS_PENDING,
            order__total_amount=Money(currency_code="USD", units=300),
        ).order
        tell.call(self._orders.CreateOrder, request, order__id=order.id)
        self._available(50)
        tell.call(self._orders.GetOrder, orders.GetOrderRequest(id=order.id), order__items__quantity=[10, 5])
        tell.call(
            self._orders.ListOrders,
            orders.ListOrdersRequest(user_id=self._user),
            orders__id=[order.id, self._forgotten],
        )
        for status in (
            orders.ORDER_STATUS_CONFIRMED,
            orders.ORDER_STATUS_PROCESSING,
            orders.ORDER_STATUS_SHIPPED,
        ):
            self._move(order.id, status)
        tell.eventually(
            self._inventory.ListReservations,
            stock.ListReservationsRequest(order_id=order.id),
            reservations__state=[stock.RESERVATION_STATE_FULFILLED],
        )
        items = tell.call(
            self._inventory.ListInventoryItems, stock.ListInventoryItemsRequest(product_id=self._product)
        ).items
        tell.expect("units left on the shelves", sum(item.quantity for item in items), 50)
        too_late = orders.UpdateOrderStatusRequest(id=order.id, status=orders.ORDER_STATUS_CANCELLED)
        tell.refused(self._orders.UpdateOrderStatus, too_late, "ILLEGAL_TRANSITION")
        self._move(order.id, orders.ORDER_STATUS_DELIVERED)

    def _an_order_is_cancelled(self) -> None:
        tell = self._tell
        tell.chapter("Another one is confirmed, and cancelled: its stock comes back")
        order = tell.call(self._orders.CreateOrder, self._order((self._product, 30, 1))).order
        self._move(order.id, orders.ORDER_STATUS_CONFIRMED)
        self._available(20)
        self._move(order.id, orders.ORDER_STATUS_CANCELLED)
        tell.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._product, required_quantity=50),
            available=True,
            available_quantity=50,
        )

    def _the_hold_has_run_out(self) -> None:
        tell = self._tell
        tell.chapter("The forgotten order's second is over: its stock is free, and it is cancelled")
        tell.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._scarce, required_quantity=5),
            available=True,
            available_quantity=5,
        )
        tell.call(tell.shop.inventory_maintenance.ExpireReservations, stock_maintenance.ExpireReservationsRequest())
        tell.eventually(
            self._orders.GetOrder,
            orders.GetOrderRequest(id=self._forgotten),
            order__status=orders.ORDER_STATUS_CANCELLED,
        )
        tell.call(
            self._inventory.ListReservations,
            stock.ListReservationsRequest(order_id=self._forgotten),
            reservations__state=[stock.RESERVATION_STATE_EXPIRED],
        )

    def _the_reaper_looks_after_history(self) -> None:
        # Ages at which nothing is lost that somebody may still want to look at.
        tell = self._tell
        tell.chapter("What the reaper asks for")
        tell.call(
            tell.shop.order_maintenance.CancelAbandonedOrders,
            order_maintenance.CancelAbandonedOrdersRequest(grace=_WEEK),
        )
        tell.call(
            tell.shop.inventory_maintenance.PurgeHistory,
            stock_maintenance.PurgeHistoryRequest(older_than=_TEN_YEARS),
            purged_keys_count=0,
            purged_reservations_count=0,
        )
        tell.call(
            tell.shop.order_maintenance.PurgeHistory,
            order_maintenance.PurgeHistoryRequest(older_than=_TEN_YEARS),
            purged_keys_count=0,
        )

    def _put(self, product: int, quantity: int, location: str, request_id: str = "") -> stock.InventoryItem:
        request = stock.CreateInventoryItemRequest(
            product_id=product, quantity=quantity, location=location, request_id=request_id
        )
        return self._tell.call(self._inventory.CreateInventoryItem, request, item__quantity=quantity).item

    def _available(self, quantity: int) -> None:
        request = stock.CheckStockRequest(product_id=self._product, required_quantity=quantity)
        self._tell.call(self._inventory.CheckStock, request, available=True, available_quantity=quantity)

    def _order(self, *lines: tuple[int, int, int], ttl: Duration | None = None) -> orders.CreateOrderRequest:
        """An order of lines of product, quantity and price in whole dollars."""
        return orders.CreateOrderRequest(
            user_id=self._user,
            items=[
                orders.CreateOrderItem(
                    product_id=product, quantity=quantity, price=Money(currency_code="USD", units=dollars)
                )
                for product, quantity, dollars in lines
            ],
            ttl=ttl,
            request_id=str(uuid4()),
        )

    def _move(self, order_id: str, status: orders.OrderStatus.ValueType) -> None:
        request = orders.UpdateOrderStatusRequest(id=order_id, status=status)
        self._tell.call(self._orders.UpdateOrderStatus, request, order__status=status)
