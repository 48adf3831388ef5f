"""A client of both APIs, with typed stubs, a deadline for every call, and retries that have no second effect.

    with Shop.connect("localhost:50053", "localhost:50054") as shop:
        shop.call(shop.inventory.CheckStock, CheckStockRequest(product_id=1, required_quantity=5))

The tools, the end-to-end tests and the README use it. It uses only the public APIs.
"""

from collections.abc import Mapping
from typing import Any, Self, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from shop_common.rpc.client import Client, Header
from shop_common.rpc.tls import ReloadedCertificates
from shop_protos.access.v1 import keys_pb2
from shop_protos.access.v1.keys_pb2_grpc import ApiKeyServiceStub
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
_ORDERS = (order_pb2.DESCRIPTOR, order_maintenance_pb2.DESCRIPTOR, keys_pb2.DESCRIPTOR)

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service for file in (*_INVENTORY, *_ORDERS) for service in file.services_by_name.values()
)
"""All services of the two APIs."""

_NOT_REPEATABLE = {"CreateApiKey"}


class Shop:
    """A client of both APIs, safe to share between threads. It connects at the first call."""

    def __init__(self, clients: Mapping[str, Client], headers: tuple[Header, ...] = ()) -> None:
        self._clients = clients
        self._headers = headers
        self.inventory = InventoryServiceStub(clients["shop.inventory.v1.InventoryService"].channel)
        self.inventory_maintenance = InventoryMaintenanceServiceStub(
            clients["shop.inventory.v1.InventoryMaintenanceService"].channel
        )
        self.orders = OrderServiceStub(clients["shop.order.v1.OrderService"].channel)
        self.order_maintenance = OrderMaintenanceServiceStub(clients["shop.order.v1.OrderMaintenanceService"].channel)
        self.api_keys = ApiKeyServiceStub(clients["shop.access.v1.ApiKeyService"].channel)

    @classmethod
    def connect(
        cls,
        inventory_address: str,
        orders_address: str,
        certificates: ReloadedCertificates | None = None,
        *,
        headers: tuple[Header, ...] = (),
    ) -> Self:
        """Return a client of the two APIs. Each address is `host:port`. Without certificates it uses plain text.

        It sends the headers with each call.
        """
        return cls(
            {
                service.full_name: Client(
                    inventory_address if service.file in _INVENTORY else orders_address,
                    service,
                    # The others are repeatable: `call` adds a request_id where a repeat would have a second effect.
                    repeatable=[name for name in service.methods_by_name if name not in _NOT_REPEATABLE],
                    unavailable_reason="UNAVAILABLE",
                    certificates=certificates,
                )
                for service in SERVICES
            },
            headers,
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

        If the request lacks a request_id, it gets a new one, so that retries after UNAVAILABLE and CANCELLED have no
        second effect.

        Raises the ShopError that the API returned, or Unavailable if the API did not respond.
        """
        (service,) = request.DESCRIPTOR.file.services_by_name.values()
        any_method: Any = method
        response: _Response = self._clients[service.full_name].call(
            any_method, _identified(request), timeout_seconds=timeout_seconds, headers=self._headers
        )
        return response


def _identified(request: _Request) -> _Request:
    """Return a copy in which the request, and each part of a batch, has a request_id if its type has that field."""
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
