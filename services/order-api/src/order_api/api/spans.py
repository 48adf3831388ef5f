"""Returns the span attributes of a call or an event: the order id, by which a trace can be found."""

from google.protobuf.message import Message

from shop_common.events.consumer import Event
from shop_protos.order.v1 import order_pb2 as pb


def describe(message: Message) -> dict[str, str | list[str]]:
    """Return the attributes of a request or a response."""
    match message:
        case (
            pb.GetOrderRequest()
            | pb.UpdateOrderStatusRequest()
            | pb.CreateShipmentRequest()
            | pb.CancelOrderItemsRequest()
            | pb.CreateReturnRequest()
            | pb.ChangeOrderRequest()
            | pb.ReinstateOrderRequest()
            | pb.ExtendOrderRequest()
        ):
            return {"shop.order_id": message.id}
        case pb.OrderResponse():
            return {"shop.order_id": message.order.id}
        case pb.BatchCreateOrdersResponse():
            return {"shop.order_ids": [result.order.id for result in message.results if result.HasField("order")]}
        case _:
            return {}


def describe_event(event: Event) -> dict[str, str]:
    """Return the attributes of an inventory event."""
    return {"shop.order_id": str(event.data.get("order_id", ""))}
