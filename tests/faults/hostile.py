"""Attacks for `test_hostile`: peers, idle connections, and calls with any bytes."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc

from tests.faults.peer import Peer
from tests.faults.system import System

CREATE_ORDER = "/shop.order.v1.OrderService/CreateOrder"
GET_ORDER = "/shop.order.v1.OrderService/GetOrder"
UPDATE_STATUS = "/shop.order.v1.OrderService/UpdateOrderStatus"
LIST_ORDERS = "/shop.order.v1.OrderService/ListOrders"
RESERVE_STOCK = "/shop.inventory.v1.InventoryService/ReserveStock"
BATCH_RESERVE = "/shop.inventory.v1.InventoryService/BatchReserveStock"
LIST_RESERVATIONS = "/shop.inventory.v1.InventoryService/ListReservations"
MESSAGE_BYTES_MAX = 4 * 2**20
CALL_SECONDS = 60


@contextmanager
def peers(system: System, **options: Any) -> Iterator[list[Peer]]:
    """One peer connected to each process."""
    ports = system.stacks[0].ports
    with ExitStack() as connections:
        yield [
            connections.enter_context(Peer(port, **options))
            for port in (ports.inventory, ports.orders, ports.reaper, ports.relay)
        ]


@contextmanager
def to_apis(system: System, **options: Any) -> Iterator[tuple[Peer, Peer]]:
    """One peer connected to inventory-api and one to order-api."""
    ports = system.stacks[0].ports
    with Peer(ports.inventory, **options) as inventory_api, Peer(ports.orders, **options) as order_api:
        yield inventory_api, order_api


@contextmanager
def idle_connections(ports: Sequence[int], count: int) -> Iterator[None]:
    """Opens `count` connections to each port. The server may refuse or close them."""
    with ExitStack() as connections:
        for port in ports:
            for _ in range(count):
                connection = connections.enter_context(socket.socket())
                connection.setblocking(False)
                # Does not wait for a connection that the server is too busy to accept.
                connection.connect_ex(("127.0.0.1", port))
        yield


@contextmanager
def raw_calls(system: System, receive_bytes_max: int = -1) -> Iterator[Callable[[str, bytes], grpc.StatusCode]]:
    """Yields a function that calls a method by its path with any bytes, and returns the status code."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", receive_bytes_max),
    ]
    stack = system.stacks[0]
    with (
        grpc.insecure_channel(stack.inventory_address, options) as inventory_api,
        grpc.insecure_channel(stack.orders_address, options) as order_api,
    ):

        def call(path: str, request: bytes) -> grpc.StatusCode:
            channel = inventory_api if path.startswith("/shop.inventory") else order_api
            method: Any = channel.unary_unary(path, bytes, bytes)
            try:
                method(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                return code_of(error)
            return grpc.StatusCode.OK

        yield call


def code_of(error: object) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call), "grpcio's RpcError of a call is also its grpc.Call"
    return error.code()
