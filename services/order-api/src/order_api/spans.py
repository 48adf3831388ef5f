"""What the span of a call says of it: which order it is about, by which a trace is found."""

from google.protobuf.message import Message

from shop.order.v1 import order_pb2 as pb


def describe(message: Message) -> dict[str, str]:
    """The attributes of a request or a response."""
    match message:
        case pb.GetOrderRequest() | pb.UpdateOrderStatusRequest():
            return {"shop.order_id": message.id}
        case pb.OrderResponse():
            return {"shop.order_id": message.order.id}
        case _:
            return {}
