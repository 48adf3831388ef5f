"""Returns the order and the product of a call or an event as span attributes, by which traces can be found."""

from google.protobuf.message import Message

from shop_common.api.valid import IDENTIFIER_LENGTH_MAX
from shop_common.events.consumer import Event
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1 import maintenance_pb2


def describe(message: Message) -> dict[str, str | int | list[str]]:
    """Return the attributes of a request or a response."""
    match message:
        case pb.ReserveStockRequest():
            return {"shop.order_id": message.order_id, "shop.product_id": message.product_id}
        case (
            pb.ConfirmReservationsRequest() | pb.ExtendReservationsRequest() | maintenance_pb2.ReserveAdditionsRequest()
        ):
            return {"shop.order_id": message.order_id}
        case pb.BatchReserveStockRequest():
            # The batch may contain orders with invalid fields. Their ids may be too long.
            return {"shop.order_ids": [order.order_id[:IDENTIFIER_LENGTH_MAX] for order in message.orders]}
        case pb.BatchConfirmReservationsRequest():
            return {"shop.order_ids": [each.order_id[:IDENTIFIER_LENGTH_MAX] for each in message.requests]}
        case pb.CreateInventoryItemRequest() | pb.CheckStockRequest():
            return {"shop.product_id": message.product_id}
        case pb.InventoryItemResponse():
            return {"shop.product_id": message.item.product_id}
        case pb.ReserveStockResponse() | pb.GetReservationResponse():
            return {"shop.order_id": message.reservation.order_id, "shop.product_id": message.reservation.product_id}
        case _:
            return {}


def describe_event(event: Event) -> dict[str, str]:
    """Return the attributes of an order event."""
    return {"shop.order_id": event.key}
