"""One method per RPC: it parses the request, calls one operation and renders the result. It decides nothing itself."""

from grpc import ServicerContext

from inventory_api.api import parse, render
from inventory_api.operations.coalescing import Operations
from shop_common.api import paging, parts
from shop_common.events import redrive
from shop_common.identity.current import caller
from shop_common.rpc.call import deadline, traceparent
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1 import inventory_pb2_grpc, maintenance_pb2, maintenance_pb2_grpc


class InventoryServicer(inventory_pb2_grpc.InventoryServiceServicer):
    """Implements shop.inventory.v1.InventoryService."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def CreateInventoryItem(
        self, request: pb.CreateInventoryItemRequest, context: ServicerContext
    ) -> pb.InventoryItemResponse:
        command = parse.add_stock(request, caller(), traceparent(context))
        item = self._operations.add_stock(command, deadline=deadline(context))
        return pb.InventoryItemResponse(item=render.item(item))

    def GetInventoryItem(
        self, request: pb.GetInventoryItemRequest, context: ServicerContext
    ) -> pb.InventoryItemResponse:
        if request.HasField("as_of"):
            question = parse.past_item(request, caller())
            past = self._operations.get_past_item(question, deadline=deadline(context))
            return pb.InventoryItemResponse(item=render.past_item(past))
        command = parse.item_key(request, caller())
        item = self._operations.get_item(command, deadline=deadline(context))
        return pb.InventoryItemResponse(item=render.item(item))

    def UpdateInventoryItem(
        self, request: pb.UpdateInventoryItemRequest, context: ServicerContext
    ) -> pb.InventoryItemResponse:
        command = parse.set_quantity(request, caller(), traceparent(context))
        item = self._operations.set_quantity(command, deadline=deadline(context))
        return pb.InventoryItemResponse(item=render.item(item))

    def BatchChangeStock(
        self, request: pb.BatchChangeStockRequest, context: ServicerContext
    ) -> pb.BatchChangeStockResponse:
        command, changes = parse.change_stock(request, caller(), traceparent(context))
        decided = self._operations.change_stock(command, deadline=deadline(context))
        return render.changed_stock(parts.outcomes(changes, decided))

    def ListInventoryItems(
        self, request: pb.ListInventoryItemsRequest, context: ServicerContext
    ) -> pb.ListInventoryItemsResponse:
        command = parse.items_page(request, caller())
        if request.HasField("as_of"):
            past = self._operations.list_past_items(command, deadline=deadline(context))
            return pb.ListInventoryItemsResponse(
                items=[render.past_item(found) for found in past.rows],
                next_page_token=paging.next_token(past, command),
            )
        page = self._operations.list_items(command, deadline=deadline(context))
        return pb.ListInventoryItemsResponse(
            items=[render.item(found) for found in page.rows],
            next_page_token=paging.next_token(page, command),
        )

    def ListMovements(self, request: pb.ListMovementsRequest, context: ServicerContext) -> pb.ListMovementsResponse:
        command = parse.movements_page(request, caller())
        page = self._operations.list_movements(command, deadline=deadline(context))
        return pb.ListMovementsResponse(
            movements=[render.movement(found) for found in page.rows],
            next_page_token=paging.next_token(page, command),
        )

    def CheckStock(self, request: pb.CheckStockRequest, context: ServicerContext) -> pb.CheckStockResponse:
        command = parse.stock_question(request, caller())
        free = self._operations.check_stock(command, deadline=deadline(context))
        return pb.CheckStockResponse(available=free >= request.required_quantity, available_quantity=free)

    def BatchGetAvailability(
        self, request: pb.BatchGetAvailabilityRequest, context: ServicerContext
    ) -> pb.BatchGetAvailabilityResponse:
        command = parse.availability(request, caller())
        return render.availability(self._operations.get_availability(command, deadline=deadline(context)))

    def UpdateLocation(self, request: pb.UpdateLocationRequest, context: ServicerContext) -> pb.UpdateLocationResponse:
        command = parse.update_location(request, caller(), traceparent(context))
        location = self._operations.update_location(command, deadline=deadline(context))
        return pb.UpdateLocationResponse(location=render.location(location))

    def ListLocations(self, request: pb.ListLocationsRequest, context: ServicerContext) -> pb.ListLocationsResponse:
        command = parse.locations_page(request, caller())
        page = self._operations.list_locations(command, deadline=deadline(context))
        return pb.ListLocationsResponse(
            locations=[render.location(found) for found in page.rows],
            next_page_token=paging.next_token(page, command),
        )

    def ReserveStock(self, request: pb.ReserveStockRequest, context: ServicerContext) -> pb.ReserveStockResponse:
        command = parse.reserve_stock(request, caller(), traceparent(context))
        reservations = self._operations.reserve(command, deadline=deadline(context))
        return render.reserved(command, reservations)

    def BatchReserveStock(
        self, request: pb.BatchReserveStockRequest, context: ServicerContext
    ) -> pb.BatchReserveStockResponse:
        orders = parse.batch(request, caller(), traceparent(context))
        decided = self._operations.reserve_many(parts.valid(orders), deadline=deadline(context))
        return render.batch(orders, parts.outcomes(orders, decided))

    def ReleaseStock(self, request: pb.ReleaseStockRequest, context: ServicerContext) -> pb.ReleaseStockResponse:
        command = parse.release(request, caller(), traceparent(context))
        return pb.ReleaseStockResponse(released_quantity=self._operations.release(command, deadline=deadline(context)))

    def BatchReleaseStock(
        self, request: pb.BatchReleaseStockRequest, context: ServicerContext
    ) -> pb.BatchReleaseStockResponse:
        commands = parse.batch_release(request, caller(), traceparent(context))
        decided = self._operations.release_many(parts.valid(commands), deadline=deadline(context))
        return render.batch_release(parts.outcomes(commands, decided))

    def ConfirmReservations(
        self, request: pb.ConfirmReservationsRequest, context: ServicerContext
    ) -> pb.ConfirmReservationsResponse:
        command = parse.confirm(request, caller(), traceparent(context))
        confirmed = self._operations.confirm(command, deadline=deadline(context))
        return pb.ConfirmReservationsResponse(reservations=[render.reservation(each) for each in confirmed])

    def ExtendReservations(
        self, request: pb.ExtendReservationsRequest, context: ServicerContext
    ) -> pb.ExtendReservationsResponse:
        command = parse.extend(request, caller(), traceparent(context))
        reservations = self._operations.extend(command, deadline=deadline(context))
        return pb.ExtendReservationsResponse(reservations=[render.reservation(each) for each in reservations])

    def BatchConfirmReservations(
        self, request: pb.BatchConfirmReservationsRequest, context: ServicerContext
    ) -> pb.BatchConfirmReservationsResponse:
        commands = parse.batch_confirm(request, caller(), traceparent(context))
        decided = self._operations.confirm_many(parts.valid(commands), deadline=deadline(context))
        return render.batch_confirm(parts.outcomes(commands, decided))

    def GetReservation(self, request: pb.GetReservationRequest, context: ServicerContext) -> pb.GetReservationResponse:
        command = parse.reservation_key(request, caller())
        return pb.GetReservationResponse(
            reservation=render.reservation(self._operations.get_reservation(command, deadline=deadline(context)))
        )

    def ListReservations(
        self, request: pb.ListReservationsRequest, context: ServicerContext
    ) -> pb.ListReservationsResponse:
        command = parse.reservations_page(request, caller())
        page = self._operations.list_reservations(command, deadline=deadline(context))
        return pb.ListReservationsResponse(
            reservations=[render.reservation(found) for found in page.rows],
            next_page_token=paging.next_token(page, command),
        )

    def RedriveDeadLetters(
        self, request: pb.RedriveDeadLettersRequest, context: ServicerContext
    ) -> pb.RedriveDeadLettersResponse:
        command = redrive.parse(request.letters, caller())
        return render.redriven(self._operations.redrive(command, deadline=deadline(context)))


class InventoryMaintenanceServicer(maintenance_pb2_grpc.InventoryMaintenanceServiceServicer):
    """Implements shop.inventory.v1.InventoryMaintenanceService, which the reaper calls."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def ExpireReservations(
        self, request: maintenance_pb2.ExpireReservationsRequest, context: ServicerContext
    ) -> maintenance_pb2.ExpireReservationsResponse:
        expired = self._operations.expire(parse.expire(request, caller()), deadline=deadline(context))
        return maintenance_pb2.ExpireReservationsResponse(expired_count=expired)

    def PurgeHistory(
        self, request: maintenance_pb2.PurgeHistoryRequest, context: ServicerContext
    ) -> maintenance_pb2.PurgeHistoryResponse:
        purged = self._operations.purge(parse.purge(request, caller()), deadline=deadline(context))
        return maintenance_pb2.PurgeHistoryResponse(
            purged_keys_count=purged.keys, purged_reservations_count=purged.reservations
        )

    def VerifyStock(
        self, request: maintenance_pb2.VerifyStockRequest, context: ServicerContext
    ) -> maintenance_pb2.VerifyStockResponse:
        verified = self._operations.verify_stock(parse.verify(request, caller()), deadline=deadline(context))
        return maintenance_pb2.VerifyStockResponse(
            verified_count=verified.count,
            next_after_item_id=verified.next_after_id,
            mismatches=map(render.mismatch, verified.mismatches),
        )

    def ListReservedOrders(
        self, request: maintenance_pb2.ListReservedOrdersRequest, context: ServicerContext
    ) -> maintenance_pb2.ListReservedOrdersResponse:
        command = parse.reserved_orders(request)
        page = self._operations.list_reserved_orders(command, deadline=deadline(context))
        return maintenance_pb2.ListReservedOrdersResponse(
            orders=[maintenance_pb2.ReservedOrder(tenant=key.tenant, order_id=key.order_id) for key in page.rows],
            next_page_token=paging.next_token(page, command),
        )

    def SettleOrders(
        self, request: maintenance_pb2.SettleOrdersRequest, context: ServicerContext
    ) -> maintenance_pb2.SettleOrdersResponse:
        command = parse.settle(request, caller(), traceparent(context))
        changed = self._operations.settle_orders(command, deadline=deadline(context))
        return render.settled(request, changed)

    def ReserveAdditions(
        self, request: maintenance_pb2.ReserveAdditionsRequest, context: ServicerContext
    ) -> maintenance_pb2.ReserveAdditionsResponse:
        command = parse.additions(request, caller(), traceparent(context))
        added = self._operations.add(command, deadline=deadline(context))
        return maintenance_pb2.ReserveAdditionsResponse(reservation_ids=(each.id for each in added))
