"""Domain to protobuf."""

from order_api.api.requests import STATUS_NUMBERS
from order_api.domain.model import Order
from shop_common.api import money
from shop_common.moments import to_proto
from shop_protos.order.v1 import order_pb2 as pb


def order(found: Order) -> pb.Order:
    currency = found.currency
    return pb.Order(
        id=found.id,
        user_id=found.user_id,
        items=[
            pb.OrderItem(
                id=item.id,
                product_id=item.product_id,
                quantity=item.quantity,
                price=money.to_proto(item.price, currency),
            )
            for item in found.items
        ],
        total_amount=money.to_proto(found.total_amount, currency),
        status=STATUS_NUMBERS[found.status],
        status_reason=found.status_reason,
        reserved_until=to_proto(found.reserved_until),
        version=found.version,
        created_at=to_proto(found.created_at),
        updated_at=to_proto(found.updated_at),
    )
