"""A first order against a running system (`./task dev`): stock, order, confirmation. Run it as often as you like."""

import grpc
from google.type.money_pb2 import Money

from shop.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop.order.v1 import order_pb2, order_pb2_grpc

inventory = inventory_pb2_grpc.InventoryServiceStub(grpc.insecure_channel("localhost:50053"))
orders = order_pb2_grpc.OrderServiceStub(grpc.insecure_channel("localhost:50054"))

inventory.CreateInventoryItem(
    inventory_pb2.CreateInventoryItemRequest(product_id=1, quantity=10, location="WAREHOUSE_A"), timeout=5
)
order = orders.CreateOrder(
    order_pb2.CreateOrderRequest(
        user_id=7,
        items=[
            order_pb2.CreateOrderItem(
                product_id=1, quantity=2, price=Money(currency_code="EUR", units=19, nanos=990_000_000)
            )
        ],
    ),
    timeout=5,
).order
order = orders.UpdateOrderStatus(
    order_pb2.UpdateOrderStatusRequest(id=order.id, status=order_pb2.ORDER_STATUS_CONFIRMED), timeout=5
).order
print(order.id, order_pb2.OrderStatus.Name(order.status), order.total_amount.units)
