"""The smoke test: calls every RPC for stock, reservations, orders, an expiring reservation and the reaper's work.

Each run uses new products, users and orders, so it may run on a system that is in use.
"""

import random
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from shop_protos.access.v1 import keys_pb2 as keys
from shop_protos.inventory.v1 import inventory_pb2 as stock
from shop_protos.inventory.v1 import maintenance_pb2 as stock_maintenance
from shop_protos.order.v1 import maintenance_pb2 as order_maintenance
from shop_protos.order.v1 import order_pb2 as orders
from shopctl.smoke.reporter import Reporter

_WEEK = Duration(seconds=7 * 24 * 3600)
_TEN_YEARS = Duration(seconds=3650 * 24 * 3600)
_NEW_ID_MIN, _NEW_ID_MAX = 10**12, 10**15


class SmokeTest:
    """Steps that build on each other. Each raises CommandFailed at the first wrong response."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._inventory = reporter.shop.inventory
        self._orders = reporter.shop.orders
        new_ids = random.sample(range(_NEW_ID_MIN, _NEW_ID_MAX), 4)
        self._product, self._scarce, self._user, self._erased_user = new_ids

    def run(self) -> None:
        """Run all steps, in order."""
        self._an_order_is_abandoned()
        self._stock_is_added()
        self._a_location_is_changed()
        self._stock_is_reserved_and_released()
        self._a_batch_is_reserved()
        self._an_order_ships()
        self._an_order_is_cancelled()
        self._an_order_ships_in_parts()
        self._the_reservation_has_expired()
        self._an_order_is_reinstated()
        self._an_order_is_changed()
        self._a_user_is_erased()
        self._the_caller_is_known()
        self._a_missing_dead_letter_is_not_found()
        self._an_api_key_is_revoked()
        self._maintenance()

    def _an_order_is_abandoned(self) -> None:
        self._reporter.heading("An order that is never confirmed reserves the last 5 units for one second")
        self._add_stock(self._scarce, 5, "WAREHOUSE_A")
        request = self._new_order((self._scarce, 5, 3), ttl=Duration(seconds=1))
        self._abandoned = self._reporter.call(
            self._orders.CreateOrder, request, order__status=orders.ORDER_STATUS_PENDING
        ).order.id

    def _stock_is_added(self) -> None:
        reporter = self._reporter
        reporter.heading("Stock is added at three locations")
        first = self._add_stock(self._product, 20, "WAREHOUSE_A", request_id := str(uuid4()))
        self._add_stock(self._product, 30, "WAREHOUSE_B")
        third = self._add_stock(self._product, 10, "WAREHOUSE_C")
        again = self._add_stock(self._product, 20, "WAREHOUSE_A", request_id)
        reporter.expect("the same request_id adds once", again.id, first.id)
        self._expect_available(60)
        reporter.call(
            self._inventory.GetInventoryItem,
            stock.GetInventoryItemRequest(id=third.id),
            item__product_id=self._product,
            item__available_quantity=10,
        )
        recount = stock.UpdateInventoryItemRequest(id=third.id, quantity=15, version=third.version)
        reporter.call(self._inventory.UpdateInventoryItem, recount, item__quantity=15)
        stale = stock.UpdateInventoryItemRequest(id=third.id, quantity=16, version=third.version)
        reporter.refused(self._inventory.UpdateInventoryItem, stale, "VERSION_MISMATCH")
        changes = stock.BatchChangeStockRequest(
            changes=[
                stock.StockChange(product_id=self._product, location="WAREHOUSE_C", adjusted=-1, reason="damaged"),
                stock.StockChange(product_id=self._product, location="WAREHOUSE_C", counted=15, reference="count 7"),
                stock.StockChange(
                    product_id=self._product,
                    location="WAREHOUSE_C",
                    move=stock.StockMove(to_location="WAREHOUSE_A", quantity=5),
                ),
                stock.StockChange(
                    product_id=self._product,
                    location="WAREHOUSE_A",
                    move=stock.StockMove(to_location="WAREHOUSE_C", quantity=5),
                ),
                self._withheld(2),
                self._withheld(-2),
            ],
            request_id=str(uuid4()),
        )
        for _ in range(2):
            reporter.call(self._inventory.BatchChangeStock, changes, results__count=6)
        reporter.call(
            self._inventory.ListInventoryItems,
            stock.ListInventoryItemsRequest(product_id=self._product),
            items__quantity=[20, 30, 15],
        )
        reporter.call(
            self._inventory.ListMovements,
            stock.ListMovementsRequest(product_id=self._product),
            movements__quantity=[0, 0, 5, -5, 5, -5, 1, -1, 5, 10, 30, 20],
        )
        reporter.call(
            self._inventory.BatchGetAvailability,
            stock.BatchGetAvailabilityRequest(product_ids=[self._product], by_location=True),
            products__available_quantity=[65],
        )

    def _withheld(self, units: int) -> stock.StockChange:
        withholding = stock.StockWithholding(reason="DAMAGED", quantity=units)
        return stock.StockChange(product_id=self._product, location="WAREHOUSE_C", withheld=withholding)

    def _a_location_is_changed(self) -> None:
        reporter = self._reporter
        reporter.heading("A location gets a region")
        # No item is at this location, so the change affects no stock. It can be repeated.
        change = stock.UpdateLocationRequest(location="SMOKE_TEST", region="smoke test")
        reporter.call(self._inventory.UpdateLocation, change, location__region="smoke test")
        reporter.call(self._inventory.ListLocations, stock.ListLocationsRequest(page_size=1), locations__count=1)

    def _stock_is_reserved_and_released(self) -> None:
        reporter = self._reporter
        reporter.heading("Stock is reserved and released")
        held = reporter.call(
            self._inventory.ReserveStock,
            stock.ReserveStockRequest(product_id=self._product, quantity=25, order_id=str(uuid4())),
            reservation__state=stock.RESERVATION_STATE_HELD,
            reservation__allocations__location=["WAREHOUSE_B"],
            reservation__allocations__quantity=[25],
        ).reservation
        self._expect_available(40)
        too_many = stock.ReserveStockRequest(product_id=self._product, quantity=41, order_id=str(uuid4()))
        refusal = reporter.refused(self._inventory.ReserveStock, too_many, "INSUFFICIENT_STOCK")
        reporter.expect("the available units in the refusal", refusal["available"], "40")
        reporter.call(
            self._inventory.GetReservation,
            stock.GetReservationRequest(id=held.id),
            reservation__order_id=held.order_id,
            reservation__state=stock.RESERVATION_STATE_HELD,
        )
        reporter.call(
            self._inventory.ExtendReservations,
            stock.ExtendReservationsRequest(order_id=held.order_id, ttl=Duration(seconds=3600)),
            reservations__id=[held.id],
        )
        for _ in range(2):
            release = stock.ReleaseStockRequest(reservation_id=held.id)
            reporter.call(self._inventory.ReleaseStock, release, released_quantity=25)
        self._expect_available(65)

    def _a_batch_is_reserved(self) -> None:
        reporter = self._reporter
        reporter.heading("One call reserves stock for two orders: one from two locations, one refused")
        order, refused = str(uuid4()), str(uuid4())
        results = reporter.call(
            self._inventory.BatchReserveStock,
            stock.BatchReserveStockRequest(
                orders=[
                    stock.OrderLines(order_id=order, lines=[stock.Line(product_id=self._product, quantity=40)]),
                    stock.OrderLines(order_id=refused, lines=[stock.Line(product_id=self._product, quantity=26)]),
                ]
            ),
            results__count=2,
        ).results
        reporter.expect("the outcomes", [result.WhichOneof("outcome") for result in results], ["reservations", "error"])
        (held,) = results[0].reservations.reservations
        reporter.expect("the sum of the allocations", sum(part.quantity for part in held.allocations), 40)
        reporter.call(
            self._inventory.ConfirmReservations,
            stock.ConfirmReservationsRequest(order_id=order),
            reservations__state=[stock.RESERVATION_STATE_CONFIRMED],
        )
        reporter.call(
            self._inventory.ListReservations, stock.ListReservationsRequest(order_id=order), reservations__id=[held.id]
        )
        reporter.call(
            self._inventory.ListReservations, stock.ListReservationsRequest(order_id=refused), reservations__count=0
        )
        self._batches_confirm_and_release(held)
        self._expect_available(65)

    def _batches_confirm_and_release(self, held: stock.Reservation) -> None:
        """Confirm and release the reservation, each beside a request with an unknown id."""
        reporter, unknown = self._reporter, str(uuid4())
        confirmations = [stock.ConfirmReservationsRequest(order_id=order) for order in (held.order_id, unknown)]
        confirmed, refused = reporter.call(
            self._inventory.BatchConfirmReservations,
            stock.BatchConfirmReservationsRequest(requests=confirmations),
            results__count=2,
        ).results
        reporter.expect("the confirmed reservations", [each.id for each in confirmed.response.reservations], [held.id])
        reporter.expect("the outcome of an unknown order", refused.WhichOneof("outcome"), "error")
        releases = [stock.ReleaseStockRequest(reservation_id=each) for each in (held.id, unknown)]
        released, not_released = reporter.call(
            self._inventory.BatchReleaseStock, stock.BatchReleaseStockRequest(requests=releases), results__count=2
        ).results
        reporter.expect("the released units", released.response.released_quantity, 40)
        reporter.expect("the outcome of an unknown reservation", not_released.WhichOneof("outcome"), "error")

    def _an_order_ships(self) -> None:
        reporter = self._reporter
        reporter.heading("An order with two lines is created, confirmed, processed and shipped: its stock leaves")
        request = self._new_order((self._product, 10, 20), (self._product, 5, 20))
        order = reporter.call(
            self._orders.CreateOrder,
            request,
            order__status=orders.ORDER_STATUS_PENDING,
            order__total_amount=Money(currency_code="USD", units=300),
        ).order
        reporter.call(self._orders.CreateOrder, request, order__id=order.id)
        reporter.call(
            self._orders.ExtendOrder,
            orders.ExtendOrderRequest(id=order.id, ttl=Duration(seconds=3600)),
            order__status=orders.ORDER_STATUS_PENDING,
        )
        self._expect_available(50)
        reporter.call(self._orders.GetOrder, orders.GetOrderRequest(id=order.id), order__items__quantity=[10, 5])
        reporter.call(
            self._orders.ListOrders,
            orders.ListOrdersRequest(user_id=self._user),
            orders__id=[order.id, self._abandoned],
        )
        for status in (
            orders.ORDER_STATUS_CONFIRMED,
            orders.ORDER_STATUS_PROCESSING,
            orders.ORDER_STATUS_SHIPPED,
        ):
            self._change_status(order.id, status)
        reporter.eventually(
            self._inventory.ListReservations,
            stock.ListReservationsRequest(order_id=order.id),
            reservations__state=[stock.RESERVATION_STATE_FULFILLED],
        )
        items = reporter.call(
            self._inventory.ListInventoryItems, stock.ListInventoryItemsRequest(product_id=self._product)
        ).items
        reporter.expect("the sum of the quantities", sum(item.quantity for item in items), 50)
        too_late = orders.UpdateOrderStatusRequest(id=order.id, status=orders.ORDER_STATUS_CANCELLED)
        reporter.refused(self._orders.UpdateOrderStatus, too_late, "ILLEGAL_TRANSITION")
        self._change_status(order.id, orders.ORDER_STATUS_DELIVERED)

    def _an_order_ships_in_parts(self) -> None:
        reporter = self._reporter
        reporter.heading("One unit of an order is shipped, and the other two are cancelled")
        request = self._new_order((self._product, 3, 20))
        order = reporter.call(self._orders.CreateOrder, request, order__status=orders.ORDER_STATUS_PENDING).order
        for status in (orders.ORDER_STATUS_CONFIRMED, orders.ORDER_STATUS_PROCESSING):
            self._change_status(order.id, status)
        (item,) = order.items
        shipment = orders.CreateShipmentRequest(
            id=order.id, items=[orders.ItemUnits(item_id=item.id, quantity=1)], carrier="smoke test"
        )
        reporter.call(
            self._orders.CreateShipment,
            shipment,
            order__status=orders.ORDER_STATUS_PROCESSING,
            order__items__shipped=[1],
        )
        cancellation = orders.CancelOrderItemsRequest(
            id=order.id, items=[orders.ItemUnits(item_id=item.id, quantity=2)]
        )
        reporter.call(
            self._orders.CancelOrderItems,
            cancellation,
            order__status=orders.ORDER_STATUS_SHIPPED,
            order__items__cancelled=[2],
        )
        reporter.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._product, required_quantity=49),
            available=True,
            available_quantity=49,
        )
        reporter.heading("The shipped unit comes back, and is sold again")
        units = orders.ReturnedUnits(
            item_id=item.id, quantity=1, treatment=orders.RETURN_TREATMENT_RESTOCK, location="WAREHOUSE_A"
        )
        back = orders.CreateReturnRequest(id=order.id, items=[units], reason="smoke test")
        reporter.call(
            self._orders.CreateReturn,
            back,
            order__status=orders.ORDER_STATUS_SHIPPED,
            order__items__returned=[1],
        )
        reporter.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._product, required_quantity=50),
            available=True,
            available_quantity=50,
        )

    def _an_order_is_cancelled(self) -> None:
        reporter = self._reporter
        reporter.heading("Another order is confirmed and cancelled: its stock is available again")
        batch = orders.BatchCreateOrdersRequest(orders=[self._new_order((self._product, 30, 1))])
        order = reporter.call(self._orders.BatchCreateOrders, batch, results__count=1).results[0].order
        self._change_status(order.id, orders.ORDER_STATUS_CONFIRMED)
        self._expect_available(20)
        self._change_status(order.id, orders.ORDER_STATUS_CANCELLED)
        reporter.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._product, required_quantity=50),
            available=True,
            available_quantity=50,
        )

    def _the_reservation_has_expired(self) -> None:
        reporter = self._reporter
        reporter.heading("The abandoned order's reservation expires: its stock is available, the order is cancelled")
        reporter.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._scarce, required_quantity=5),
            available=True,
            available_quantity=5,
        )
        reporter.call(
            reporter.shop.inventory_maintenance.ExpireReservations, stock_maintenance.ExpireReservationsRequest()
        )
        reporter.eventually(
            self._orders.GetOrder,
            orders.GetOrderRequest(id=self._abandoned),
            order__status=orders.ORDER_STATUS_CANCELLED,
        )
        reporter.call(
            self._inventory.ListReservations,
            stock.ListReservationsRequest(order_id=self._abandoned),
            reservations__state=[stock.RESERVATION_STATE_EXPIRED],
        )

    def _an_order_is_reinstated(self) -> None:
        reporter = self._reporter
        reporter.heading("The abandoned order is paid after all: it is reinstated, and later cancelled")
        reinstatement = orders.ReinstateOrderRequest(id=self._abandoned, reason="smoke test")
        reporter.call(self._orders.ReinstateOrder, reinstatement, order__status=orders.ORDER_STATUS_CONFIRMED)
        self._change_status(self._abandoned, orders.ORDER_STATUS_CANCELLED)
        reporter.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._scarce, required_quantity=5),
            available=True,
            available_quantity=5,
        )

    def _an_order_is_changed(self) -> None:
        reporter = self._reporter
        reporter.heading("An order gets more units, which are reserved first, and gives some of them up again")
        request = self._new_order((self._scarce, 2, 3))
        order = reporter.call(self._orders.CreateOrder, request).order
        item_id = order.items[0].id
        for version, quantity in ((1, 5), (2, 1)):
            reporter.call(
                self._orders.ChangeOrder,
                orders.ChangeOrderRequest(
                    id=order.id,
                    version=version,
                    items=[orders.ChangedItem(item_id=item_id, quantity=quantity)],
                    request_id=str(uuid4()),
                ),
                order__version=version + 1,
                order__total_amount=Money(currency_code="USD", units=3 * quantity),
            )
        reporter.eventually(
            self._inventory.CheckStock,
            stock.CheckStockRequest(product_id=self._scarce, required_quantity=4),
            available=True,
            available_quantity=4,
        )
        self._change_status(order.id, orders.ORDER_STATUS_CANCELLED)

    def _a_user_is_erased(self) -> None:
        reporter = self._reporter
        reporter.heading("A user is erased from a cancelled order")
        request = self._new_order((self._product, 1, 1))
        request.user_id = self._erased_user
        order = reporter.call(self._orders.CreateOrder, request, order__user_id=self._erased_user).order
        self._change_status(order.id, orders.ORDER_STATUS_CANCELLED)
        reporter.call(
            self._orders.EraseUser,
            orders.EraseUserRequest(user_id=self._erased_user),
            erased_count=1,
            has_more=False,
            has_open_orders=False,
        )
        reporter.call(self._orders.GetOrder, orders.GetOrderRequest(id=order.id), order__user_id=0)

    def _the_caller_is_known(self) -> None:
        self._reporter.heading("order-api knows its caller")
        self._reporter.call(self._orders.GetCaller, orders.GetCallerRequest())

    def _a_missing_dead_letter_is_not_found(self) -> None:
        reporter = self._reporter
        reporter.heading("A dead letter that does not exist is not redriven")
        reporter.call(
            self._inventory.RedriveDeadLetters,
            stock.RedriveDeadLettersRequest(letters=[stock.DeadLetterPosition(offset=2**63 - 1)]),
            letters__outcome=[stock.REDRIVE_OUTCOME_NOT_FOUND],
        )
        reporter.call(
            self._orders.RedriveDeadLetters,
            orders.RedriveDeadLettersRequest(letters=[orders.DeadLetterPosition(offset=2**63 - 1)]),
            letters__outcome=[orders.REDRIVE_OUTCOME_NOT_FOUND],
        )

    def _an_api_key_is_revoked(self) -> None:
        reporter, stub = self._reporter, self._reporter.shop.api_keys
        reporter.heading("An API key that may read items is created for a minute, and revoked")
        request = keys.CreateApiKeyRequest(
            name=f"smoke test {self._user}", permissions=["inventory.read"], expires_in=Duration(seconds=60)
        )
        created = reporter.call(stub.CreateApiKey, request, api_key__permissions=["inventory.read"]).api_key
        reporter.call(stub.ListApiKeys, keys.ListApiKeysRequest(page_size=1), api_keys__id=[created.id])
        reporter.call(stub.FetchApiKeys, keys.FetchApiKeysRequest(page_size=1), digests__count=1)
        revoked = reporter.call(
            stub.RevokeApiKey, keys.RevokeApiKeyRequest(id=created.id), api_key__id=created.id
        ).api_key
        reporter.expect("the revoked key has the time of its revocation", revoked.HasField("revoked_at"), True)

    def _maintenance(self) -> None:
        # These ages are so long that the calls delete and cancel nothing that anybody may still need.
        reporter = self._reporter
        reporter.heading("The calls of the reaper")
        reporter.call(
            reporter.shop.order_maintenance.CancelAbandonedOrders,
            order_maintenance.CancelAbandonedOrdersRequest(grace=_WEEK),
        )
        reporter.call(
            reporter.shop.inventory_maintenance.PurgeHistory,
            stock_maintenance.PurgeHistoryRequest(older_than=_TEN_YEARS),
            purged_keys_count=0,
            purged_reservations_count=0,
        )
        reporter.call(
            reporter.shop.inventory_maintenance.VerifyStock,
            stock_maintenance.VerifyStockRequest(max_count=10),
            mismatches__count=0,
        )
        reporter.call(
            reporter.shop.order_maintenance.ReconcileOrders,
            order_maintenance.ReconcileOrdersRequest(grace=_WEEK, page_size=10),
        )
        reporter.call(
            reporter.shop.inventory_maintenance.ListReservedOrders,
            stock_maintenance.ListReservedOrdersRequest(page_size=10),
        )
        reporter.call(
            reporter.shop.inventory_maintenance.SettleOrders,
            stock_maintenance.SettleOrdersRequest(
                orders=[
                    stock_maintenance.SettledOrder(
                        tenant="default",
                        order_id=self._abandoned,
                        status=stock_maintenance.FINAL_ORDER_STATUS_CANCELLED,
                    )
                ]
            ),
            changed=[False],
        )
        unknown = stock_maintenance.ReserveAdditionsRequest(
            tenant="default",
            order_id=str(uuid4()),
            version=2,
            change_id=str(uuid4()),
            lines=[stock_maintenance.AddedLine(product_id=self._product, quantity=1)],
            ordered=[stock_maintenance.OrderedUnits(product_id=self._product, quantity=1)],
        )
        reporter.refused(reporter.shop.inventory_maintenance.ReserveAdditions, unknown, "RESERVATION_NOT_FOUND")
        reporter.call(
            reporter.shop.order_maintenance.PurgeHistory,
            order_maintenance.PurgeHistoryRequest(older_than=_TEN_YEARS),
            purged_keys_count=0,
        )

    def _add_stock(self, product: int, quantity: int, location: str, request_id: str = "") -> stock.InventoryItem:
        request = stock.CreateInventoryItemRequest(
            product_id=product, quantity=quantity, location=location, request_id=request_id
        )
        return self._reporter.call(self._inventory.CreateInventoryItem, request, item__quantity=quantity).item

    def _expect_available(self, quantity: int) -> None:
        request = stock.CheckStockRequest(product_id=self._product, required_quantity=quantity)
        self._reporter.call(self._inventory.CheckStock, request, available=True, available_quantity=quantity)

    def _new_order(self, *lines: tuple[int, int, int], ttl: Duration | None = None) -> orders.CreateOrderRequest:
        """Return an order; each line is a product, a quantity and a price in whole dollars."""
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

    def _change_status(self, order_id: str, status: orders.OrderStatus.ValueType) -> None:
        request = orders.UpdateOrderStatusRequest(id=order_id, status=status)
        self._reporter.call(self._orders.UpdateOrderStatus, request, order__status=status)
