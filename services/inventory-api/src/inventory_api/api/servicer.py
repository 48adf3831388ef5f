"""protobuf to domain and back; decides nothing itself. One method per RPC."""

from grpc import ServicerContext

from inventory_api.api import answers, requests
from inventory_api.operations.coalescing import Operations
from shop_common.api import paging
from shop_common.errors import InvalidInput
from shop_common.rpc.server import deadline, traceparent
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1 import inventory_pb2_grpc, maintenance_pb2, maintenance_pb2_grpc


class InventoryServicer(inventory_pb2_grpc.InventoryServiceServicer):
    """shop.inventory.v1.InventoryService."""

    def __init__(self, operations: Operations) -> None:
        self._do = operations

    def CreateInventoryItem(
        self, request: pb.CreateInventoryItemRequest, context: ServicerContext
    ) -> pb.InventoryItemResponse:
        asked = requests.add_stock(request, traceparent(context))
        return pb.InventoryItemResponse(item=answers.item(self._do.add_stock(asked, deadline=deadline(context))))

    def GetInventoryItem(
        self, request: pb.GetInventoryItemRequest, context: ServicerContext
    ) -> pb.InventoryItemResponse:
        asked = requests.item_id(request)
        return pb.InventoryItemResponse(item=answers.item(self._do.item(asked, deadline=deadline(context))))

    def UpdateInventoryItem(
        self, request: pb.UpdateInventoryItemRequest, context: ServicerContext
    ) -> pb.InventoryItemResponse:
        asked = requests.set_quantity(request, traceparent(context))
        return pb.InventoryItemResponse(item=answers.item(self._do.set_quantity(asked, deadline=deadline(context))))

    def ListInventoryItems(
        self, request: pb.ListInventoryItemsRequest, context: ServicerContext
    ) -> pb.ListInventoryItemsResponse:
        asked = requests.items_page(request)
        page = self._do.items_page(asked, deadline=deadline(context))
        return pb.ListInventoryItemsResponse(
            items=[answers.item(found) for found in page.rows],
            next_page_token=paging.next_token(page, asked),
        )

    def CheckStock(self, request: pb.CheckStockRequest, context: ServicerContext) -> pb.CheckStockResponse:
        asked = requests.stock_question(request)
        free = self._do.check_stock(asked, deadline=deadline(context))
        return pb.CheckStockResponse(available=free >= request.required_quantity, available_quantity=free)

    def ReserveStock(self, request: pb.ReserveStockRequest, context: ServicerContext) -> pb.ReserveStockResponse:
        asked = requests.reserve_stock(request, traceparent(context))
        (reservation,) = self._do.reserve(asked, deadline=deadline(context))
        return pb.ReserveStockResponse(reservation=answers.reservation(reservation))

    def BatchReserveStock(
        self, request: pb.BatchReserveStockRequest, context: ServicerContext
    ) -> pb.BatchReserveStockResponse:
        orders = requests.batch(request, traceparent(context))
        valid = [order for order in orders if not isinstance(order, InvalidInput)]
        decided = iter(self._do.reserve.all(valid, deadline=deadline(context)))
        outcomes = [order if isinstance(order, InvalidInput) else next(decided) for order in orders]
        return answers.batch(outcomes)

    def ReleaseStock(self, request: pb.ReleaseStockRequest, context: ServicerContext) -> pb.ReleaseStockResponse:
        asked = requests.release(request, traceparent(context))
        return pb.ReleaseStockResponse(released_quantity=self._do.release(asked, deadline=deadline(context)))

    def ConfirmReservations(
        self, request: pb.ConfirmReservationsRequest, context: ServicerContext
    ) -> pb.ConfirmReservationsResponse:
        asked = requests.confirm(request, traceparent(context))
        confirmed = self._do.confirm(asked, deadline=deadline(context))
        return pb.ConfirmReservationsResponse(reservations=[answers.reservation(each) for each in confirmed])

    def GetReservation(self, request: pb.GetReservationRequest, context: ServicerContext) -> pb.GetReservationResponse:
        asked = requests.reservation_id(request)
        return pb.GetReservationResponse(
            reservation=answers.reservation(self._do.reservation(asked, deadline=deadline(context)))
        )

    def ListReservations(
        self, request: pb.ListReservationsRequest, context: ServicerContext
    ) -> pb.ListReservationsResponse:
        asked = requests.reservations_page(request)
        page = self._do.reservations_page(asked, deadline=deadline(context))
        return pb.ListReservationsResponse(
            reservations=[answers.reservation(found) for found in page.rows],
            next_page_token=paging.next_token(page, asked),
        )


class InventoryMaintenanceServicer(maintenance_pb2_grpc.InventoryMaintenanceServiceServicer):
    """shop.inventory.v1.InventoryMaintenanceService, for the reaper."""

    def __init__(self, operations: Operations) -> None:
        self._do = operations

    def ExpireReservations(
        self, request: maintenance_pb2.ExpireReservationsRequest, context: ServicerContext
    ) -> maintenance_pb2.ExpireReservationsResponse:
        expired = self._do.expire(requests.max_count(request), deadline=deadline(context))
        return maintenance_pb2.ExpireReservationsResponse(expired_count=expired)

    def PurgeHistory(
        self, request: maintenance_pb2.PurgeHistoryRequest, context: ServicerContext
    ) -> maintenance_pb2.PurgeHistoryResponse:
        purged = self._do.purge(requests.purge(request), deadline=deadline(context))
        return maintenance_pb2.PurgeHistoryResponse(
            purged_keys_count=purged.keys, purged_reservations_count=purged.reservations
        )
