"""One method per RPC: parse, call the operation, render. Nothing is decided here."""

from grpc import ServicerContext

from order_api.api import parse, render
from order_api.operations.coalescing import Operations
from shop_common.api import paging, parts
from shop_common.events import redrive
from shop_common.identity.current import caller
from shop_common.rpc.call import deadline, traceparent
from shop_protos.order.v1 import maintenance_pb2, maintenance_pb2_grpc, order_pb2_grpc
from shop_protos.order.v1 import order_pb2 as pb


class OrderServicer(order_pb2_grpc.OrderServiceServicer):
    """Implements shop.order.v1.OrderService."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def CreateOrder(self, request: pb.CreateOrderRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.new_order(request, caller(), traceparent(context))
        order = self._operations.create_order(command, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def BatchCreateOrders(
        self, request: pb.BatchCreateOrdersRequest, context: ServicerContext
    ) -> pb.BatchCreateOrdersResponse:
        orders = parse.batch(request, caller(), traceparent(context))
        decided = self._operations.create_orders(parts.valid(orders), deadline=deadline(context))
        return render.batch(parts.outcomes(orders, decided))

    def GetOrder(self, request: pb.GetOrderRequest, context: ServicerContext) -> pb.OrderResponse:
        key = parse.order_key(request, caller())
        found = self._operations.get_order(key, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(found.order), history=map(render.status_change, found.changes))

    def UpdateOrderStatus(self, request: pb.UpdateOrderStatusRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.change_status(request, caller(), traceparent(context))
        order = self._operations.update_status(command, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def CreateShipment(self, request: pb.CreateShipmentRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.ship_items(request, caller(), traceparent(context))
        order = self._operations.ship_items(command, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def CancelOrderItems(self, request: pb.CancelOrderItemsRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.cancel_items(request, caller(), traceparent(context))
        order = self._operations.cancel_items(command, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def CreateReturn(self, request: pb.CreateReturnRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.return_items(request, caller(), traceparent(context))
        order = self._operations.return_items(command, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def ChangeOrder(self, request: pb.ChangeOrderRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.change_lines(request, caller(), traceparent(context))
        order = self._operations.change_lines(command, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def ExtendOrder(self, request: pb.ExtendOrderRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.extend(request, caller(), traceparent(context))
        order = self._operations.extend(command, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def ReinstateOrder(self, request: pb.ReinstateOrderRequest, context: ServicerContext) -> pb.OrderResponse:
        command = parse.reinstate(request, caller(), traceparent(context))
        order = self._operations.reinstate(command, owner=caller().owner, deadline=deadline(context))
        return pb.OrderResponse(order=render.order(order))

    def ListOrders(self, request: pb.ListOrdersRequest, context: ServicerContext) -> pb.ListOrdersResponse:
        command = parse.orders_page(request, caller())
        page = self._operations.list_orders(command, deadline=deadline(context))
        return pb.ListOrdersResponse(
            orders=[render.order(row) for row in page.rows],
            next_page_token=paging.next_token(page, command),
        )

    def EraseUser(self, request: pb.EraseUserRequest, context: ServicerContext) -> pb.EraseUserResponse:
        command = parse.erase_user(request, caller(), traceparent(context))
        erased = self._operations.erase_user(command, deadline=deadline(context))
        return pb.EraseUserResponse(
            erased_count=erased.orders, has_more=erased.has_more, has_open_orders=erased.has_open
        )

    def RedriveDeadLetters(
        self, request: pb.RedriveDeadLettersRequest, context: ServicerContext
    ) -> pb.RedriveDeadLettersResponse:
        command = redrive.parse(request.letters, caller())
        return render.redriven(self._operations.redrive(command, deadline=deadline(context)))

    def GetCaller(self, request: pb.GetCallerRequest, context: ServicerContext) -> pb.GetCallerResponse:
        found = caller()
        return pb.GetCallerResponse(name=found.name, tenant=found.tenant, permissions=sorted(found.permissions))


class OrderMaintenanceServicer(maintenance_pb2_grpc.OrderMaintenanceServiceServicer):
    """Implements shop.order.v1.OrderMaintenanceService, which the reaper calls."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def CancelAbandonedOrders(
        self, request: maintenance_pb2.CancelAbandonedOrdersRequest, context: ServicerContext
    ) -> maintenance_pb2.CancelAbandonedOrdersResponse:
        ended = self._operations.cancel_abandoned(parse.abandoned(request, caller()), deadline=deadline(context))
        return maintenance_pb2.CancelAbandonedOrdersResponse(
            cancelled_count=ended.cancelled, ended_changes_count=ended.changes
        )

    def ReconcileOrders(
        self, request: maintenance_pb2.ReconcileOrdersRequest, context: ServicerContext
    ) -> maintenance_pb2.ReconcileOrdersResponse:
        reconciled = self._operations.reconcile(parse.reconcile(request, caller()), deadline=deadline(context))
        return maintenance_pb2.ReconcileOrdersResponse(
            compared_count=reconciled.compared,
            released_count=reconciled.released,
            fulfilled_count=reconciled.fulfilled,
            next_page_token=reconciled.next_page_token,
        )

    def PurgeHistory(
        self, request: maintenance_pb2.PurgeHistoryRequest, context: ServicerContext
    ) -> maintenance_pb2.PurgeHistoryResponse:
        purged = self._operations.purge_keys(parse.purge(request, caller()), deadline=deadline(context))
        return maintenance_pb2.PurgeHistoryResponse(
            purged_keys_count=purged.keys, purged_api_keys_count=purged.api_keys
        )
