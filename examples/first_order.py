"""Add stock, create an order and confirm it, against a running system (`./task dev`). Safe to run repeatedly.

It needs only the generated code of this repository: `pip install ./proto` installs it, with grpcio.
"""

import json
import random
import sys
import time
from uuid import uuid4

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from google.type.money_pb2 import Money

from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2, order_pb2_grpc

PAUSE_SECONDS_MAX = 5
# The call had no effect, or its outcome is unknown. A request_id takes effect at most once, so a retry is safe.
RETRYABLE = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")


def connect(address, service):
    """Return a channel that balances calls over all healthy processes behind the address."""
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": service}}
    return grpc.insecure_channel(address, [("grpc.service_config", json.dumps(config))])


def call(method, request):
    """Return the response. Retry with backoff and jitter; a retry sends the same request with the same request_id."""
    pause = 0.2
    while True:
        try:
            return method(request, timeout=5, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code().name not in RETRYABLE or pause > PAUSE_SECONDS_MAX:
                raise
        time.sleep(random.uniform(pause / 2, pause))
        pause *= 2


def reason_of(error):
    """Return the reason of an error, such as INSUFFICIENT_STOCK, and its metadata, which has the numbers."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = ErrorInfo()
                if detail.Unpack(info):
                    return info.reason, dict(info.metadata)
    return error.code().name, {}


inventory = inventory_pb2_grpc.InventoryServiceStub(connect("localhost:50053", "shop.inventory.v1.InventoryService"))
orders = order_pb2_grpc.OrderServiceStub(connect("localhost:50054", "shop.order.v1.OrderService"))

stock = inventory_pb2.CreateInventoryItemRequest(
    product_id=1, quantity=10, location="WAREHOUSE_A", request_id=str(uuid4())
)
call(inventory.CreateInventoryItem, stock)

price = Money(currency_code="EUR", units=19, nanos=990_000_000)
line = order_pb2.CreateOrderItem(product_id=1, quantity=2, price=price)
try:
    order = call(
        orders.CreateOrder, order_pb2.CreateOrderRequest(user_id=7, items=[line], request_id=str(uuid4()))
    ).order
except grpc.RpcError as error:
    reason, numbers = reason_of(error)
    if reason != "INSUFFICIENT_STOCK":
        raise
    sys.exit(f"only {numbers['available']} left")
order = call(
    orders.UpdateOrderStatus,
    order_pb2.UpdateOrderStatusRequest(id=order.id, status=order_pb2.ORDER_STATUS_CONFIRMED),
).order
print(order.id, order_pb2.OrderStatus.Name(order.status), order.total_amount.units)
