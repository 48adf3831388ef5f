"""A client of both APIs: typed stubs, a deadline on every call, and retries that double nothing.

    with Shop.connect("localhost:50053", "localhost:50054") as shop:
        shop.call(shop.inventory.CheckStock, CheckStockRequest(product_id=1, required_quantity=5))

The tools, the end-to-end tests and README use it. It needs nothing that a user of the APIs has not.
"""

from collections.abc import Mapping
from typing import Any, Self, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from shop_common.rpc.client import Client
from shop_protos.inventory.v1 import inventory_pb2, maintenance_pb2
from shop_protos.inventory.v1.inventory_pb2_grpc import InventoryServiceStub
from shop_protos.inventory.v1.maintenance_pb2_grpc import InventoryMaintenanceServiceStub
from shop_protos.order.v1 import maintenance_pb2 as order_maintenance_pb2
from shop_protos.order.v1 import order_pb2
from shop_protos.order.v1.maintenance_pb2_grpc import OrderMaintenanceServiceStub
from shop_protos.order.v1.order_pb2_grpc import OrderServiceStub

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

TIMEOUT_SECONDS = 10.0

_INVENTORY = (inventory_pb2.DESCRIPTOR, maintenance_pb2.DESCRIPTOR)
_ORDERS = (order_pb2.DESCRIPTOR, order_maintenance_pb2.DESCRIPTOR)

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service for file in (*_INVENTORY, *_ORDERS) for service in file.services_by_name.values()
)
"""All that the two APIs offer."""


class Shop:
    """Both APIs. To be shared by all threads; nothing is connected before the first call."""

    def __init__(self, clients: Mapping[str, Client]) -> None:
        self._clients = clients
        self.inventory = InventoryServiceStub(clients["shop.inventory.v1.InventoryService"].channel)
        self.inventory_maintenance = InventoryMaintenanceServiceStub(
            clients["shop.inventory.v1.InventoryMaintenanceService"].channel
        )
        self.orders = OrderServiceStub(clients["shop.order.v1.OrderService"].channel)
        self.order_maintenance = OrderMaintenanceServiceStub(clients["shop.order.v1.OrderMaintenanceService"].channel)

    @classmethod
    def connect(cls, inventory_address: str, orders_address: str) -> Self:
        """To `host:port` each."""
        return cls(
            {
                service.full_name: Client(
                    inventory_address if service.file in _INVENTORY else orders_address,
                    service,
                    # All of them: what neither reads nor repeats by state gets a request_id from `call`.
                    repeatable=service.methods_by_name,
                    unavailable_reason="UNAVAILABLE",
                )
                for service in SERVICES
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> _Response:
        """Call a method of one of the stubs.

        A request without a request_id is sent under a fresh one: a retry, on UNAVAILABLE and CANCELLED, then has
        one effect.

        Raises the ShopError that the API answered with, or an Unavailable when it did not answer.
        """
        (service,) = request.DESCRIPTOR.file.services_by_name.values()
        any_method: Any = method
        answer: _Response = self._clients[service.full_name].call(
            any_method, _identified(request), timeout_seconds=timeout_seconds
        )
        return answer


def _identified(request: _Request) -> _Request:
    """The request, or a copy with an id where it may have one and has none; so are the parts of a batch."""
    copy = type(request)()
    copy.CopyFrom(request)
    _give_id(copy)
    for field, parts in copy.ListFields():
        if field.is_repeated and field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in parts:
                _give_id(part)
    return copy


def _give_id(message: Message) -> None:
    if "request_id" in message.DESCRIPTOR.fields_by_name:
        named: Any = message
        named.request_id = named.request_id or str(uuid4())
