"""Clients of both APIs that call with tokens, one by one or many at the same time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.type.money_pb2 import Money

from devstack.stack import Stack
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2, order_pb2_grpc
from testkit.calls import Outcome, outcome

CALL_SECONDS = 60
UNITS = 100
"""The units of each product to which `add_stock` adds."""


class Clients:
    """A client of each API. The connection has a workload's certificate, and each call has a user's token."""

    def __init__(self, stack: Stack, credentials: grpc.ChannelCredentials) -> None:
        self._channels = [
            grpc.secure_channel(address, credentials) for address in (stack.inventory_address, stack.orders_address)
        ]
        inventory, orders = self._channels
        self.inventory = inventory_pb2_grpc.InventoryServiceStub(inventory)
        self.orders = order_pb2_grpc.OrderServiceStub(orders)

    def list_items(self, token: str) -> Outcome:
        """The outcome of a call to inventory-api that needs `inventory.read`."""
        request = inventory_pb2.ListInventoryItemsRequest(page_size=1)
        return outcome(lambda: self.inventory.ListInventoryItems(request, **_with(token)))

    def add_stock(self, product_id: int, token: str) -> Outcome:
        """The outcome of a call to inventory-api that needs `inventory.write`."""
        request = inventory_pb2.CreateInventoryItemRequest(product_id=product_id, quantity=UNITS)
        return outcome(lambda: self.inventory.CreateInventoryItem(request, **_with(token)))

    def available(self, product_id: int, token: str) -> int:
        """The units of the product that are available to the tenant of the token's user."""
        request = inventory_pb2.CheckStockRequest(product_id=product_id, required_quantity=1)
        return self.inventory.CheckStock(request, **_with(token)).available_quantity

    def list_orders(self, token: str) -> Outcome:
        """The outcome of a call to order-api that needs `orders.read`."""
        request = order_pb2.ListOrdersRequest(page_size=1)
        return outcome(lambda: self.orders.ListOrders(request, **_with(token)))

    def both(self, token: str) -> list[Outcome]:
        """The outcomes of one call to each API."""
        return [self.list_items(token), self.list_orders(token)]

    def create_order(self, product_id: int, user_id: int, token: str) -> order_pb2.Order:
        price = Money(currency_code="USD", units=1)
        item = order_pb2.CreateOrderItem(product_id=product_id, quantity=1, price=price)
        request = order_pb2.CreateOrderRequest(user_id=user_id, items=[item])
        return self.orders.CreateOrder(request, **_with(token)).order

    def orders_of(self, token: str) -> set[str]:
        """The ids of the orders that the token's user sees."""
        return {order.id for order in self.orders.ListOrders(order_pb2.ListOrdersRequest(), **_with(token)).orders}

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class Load:
    """Calls of both APIs with one token, in a thread, until `stop`."""

    def __init__(self, clients: Clients, token: str) -> None:
        self.calls = 0
        self.failures: list[Outcome] = []
        self._clients = clients
        self._token = token
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopped = True
        self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped:
            self.failures += [each for each in self._clients.both(self._token) if each.code is not grpc.StatusCode.OK]
            self.calls += 2


@contextmanager
def load(clients: Clients, token: str) -> Iterator[Load]:
    """Run the load for the block."""
    running = Load(clients, token)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def more_calls(running: Load, count: int) -> Callable[[], bool]:
    """Return a condition that is true after the load has made `count` more calls."""
    before = running.calls
    return lambda: running.calls >= before + count


def _with(token: str) -> dict[str, Any]:
    return {"timeout": CALL_SECONDS, "metadata": [("authorization", f"Bearer {token}")]}
