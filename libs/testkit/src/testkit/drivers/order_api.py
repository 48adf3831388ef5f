"""Calls order-api and inventory-api for tests, and checks the stored events of order-api."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, TypeVar

import grpc
import orjson
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money
from sqlalchemy import event, select

from order_api.api.keys.servicer import ApiKeyServicer
from order_api.api.servicer import OrderMaintenanceServicer, OrderServicer
from order_api.domain import commands
from order_api.domain.commands import NewOrder, ReservedOrder
from order_api.domain.model import NO_DETAILS, NewDetails, NewItem, Order
from order_api.inventory import Inventory
from order_api.operations.api_keys import ApiKeyOperations, StoredApiKeys
from order_api.operations.coalescing import Operations
from order_api.settings import OrderSettings
from order_api.store import orders, tables
from shop_common.api import money
from shop_common.db.database import Database
from shop_common.identity.caller import ANYONE, Caller
from shop_common.rpc.server import Server
from shop_common.timestamps import rfc3339
from shop_protos.access.v1 import keys_pb2, keys_pb2_grpc
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import maintenance_pb2, maintenance_pb2_grpc, order_pb2_grpc
from shop_protos.order.v1 import order_pb2 as pb
from testkit import contract

CALL_SECONDS = 20
INVENTORY_CALL_SECONDS = 2.0
UNKNOWN = -1

_Result = TypeVar("_Result")
_products = itertools.count(1)


class InventoryClient:
    """A client of inventory-api."""

    def __init__(self, address: str, channel: grpc.Channel) -> None:
        self.address = address
        self.stub = inventory_pb2_grpc.InventoryServiceStub(channel)

    @classmethod
    @contextmanager
    def at(cls, address: str) -> Iterator["InventoryClient"]:
        with grpc.insecure_channel(address) as channel:
            yield cls(address, channel)

    def product(self, units: int) -> int:
        """Create a product with this many units and return its id."""
        product_id = next(_products)
        self.stub.CreateInventoryItem(
            inventory_pb2.CreateInventoryItemRequest(product_id=product_id, quantity=units), timeout=CALL_SECONDS
        )
        return product_id

    def available(self, product_id: int) -> int:
        answer = self.stub.CheckStock(
            inventory_pb2.CheckStockRequest(product_id=product_id, required_quantity=1), timeout=CALL_SECONDS
        )
        return answer.available_quantity

    def reservations(self, order_id: str) -> list[inventory_pb2.Reservation]:
        answer = self.stub.ListReservations(
            inventory_pb2.ListReservationsRequest(order_id=order_id), timeout=CALL_SECONDS
        )
        return list(answer.reservations)

    def states(self, order_id: str) -> list[str]:
        """Return the states of the order's reservations, sorted, without the enum prefix."""
        name = inventory_pb2.ReservationState.Name
        return sorted(name(each.state).removeprefix("RESERVATION_STATE_") for each in self.reservations(order_id))

    def release(self, reservation_id: str) -> None:
        self.stub.ReleaseStock(inventory_pb2.ReleaseStockRequest(reservation_id=reservation_id), timeout=CALL_SECONDS)

    def confirm(self, order_id: str) -> None:
        self.stub.ConfirmReservations(inventory_pb2.ConfirmReservationsRequest(order_id=order_id), timeout=CALL_SECONDS)


class OrderApiDriver:
    """A client of all services of order-api, with access to the database of the server."""

    def __init__(self, database: Database, channel: grpc.Channel) -> None:
        self.database = database
        self.stub = order_pb2_grpc.OrderServiceStub(channel)
        self.api_keys = keys_pb2_grpc.ApiKeyServiceStub(channel)
        self.maintenance = maintenance_pb2_grpc.OrderMaintenanceServiceStub(channel)

    @classmethod
    @contextmanager
    def serving(cls, database: Database, inventory_address: str) -> Iterator["OrderApiDriver"]:
        inventory = Inventory(inventory_address, call_seconds=INVENTORY_CALL_SECONDS)
        operations = Operations(database, inventory, on_fatal=_fail)
        key_operations = ApiKeyOperations(database, StoredApiKeys(database), on_fatal=_fail)
        server = Server(OrderSettings.model_validate({"grpc_port": 0, "grpc_threads": 256}))
        server.add(
            pb.DESCRIPTOR.services_by_name["OrderService"],
            order_pb2_grpc.add_OrderServiceServicer_to_server,
            OrderServicer(operations),
        )
        server.add(
            maintenance_pb2.DESCRIPTOR.services_by_name["OrderMaintenanceService"],
            maintenance_pb2_grpc.add_OrderMaintenanceServiceServicer_to_server,
            OrderMaintenanceServicer(operations),
        )
        server.add(
            keys_pb2.DESCRIPTOR.services_by_name["ApiKeyService"],
            keys_pb2_grpc.add_ApiKeyServiceServicer_to_server,
            ApiKeyServicer(key_operations),
        )
        server.start()
        try:
            with grpc.insecure_channel(f"localhost:{server.port}") as channel:
                yield cls(database, channel)
        finally:
            server.stop(5)
            operations.close()
            key_operations.close()
            inventory.close()

    def create_order(self, request: pb.CreateOrderRequest) -> pb.Order:
        return self.stub.CreateOrder(request, timeout=CALL_SECONDS).order

    def order(self, order_id: str) -> pb.Order:
        return self.stub.GetOrder(pb.GetOrderRequest(id=order_id), timeout=CALL_SECONDS).order

    def change_status(
        self, order_id: str, status: pb.OrderStatus.ValueType, *, reason: str = "", request_id: str = ""
    ) -> pb.Order:
        request = pb.UpdateOrderStatusRequest(id=order_id, status=status, reason=reason, request_id=request_id)
        return self.stub.UpdateOrderStatus(request, timeout=CALL_SECONDS).order

    def list_orders(self, **filters: Any) -> list[pb.Order]:
        """Return all orders that match, reading page by page."""
        found: list[pb.Order] = []
        token = ""
        while True:
            page = self.stub.ListOrders(pb.ListOrdersRequest(page_token=token, **filters), timeout=CALL_SECONDS)
            found += page.orders
            token = page.next_page_token
            if not token:
                return found

    def events(self, order_id: str | None = None) -> list[dict[str, Any]]:
        return events(self.database, order_id)


def events(database: Database, order_id: str | None = None) -> list[dict[str, Any]]:
    """Return the event values of an order, or of all orders, in order. Checks each event against the contract."""
    outbox = tables.outbox.table
    rows = database.query(lambda tx: tx.execute(select(outbox).order_by(outbox.c.id)).all())
    for row in rows:
        headers = {
            "ce_id": row.event_id,
            "ce_type": row.type,
            "ce_source": "/shop/order-api",
            "ce_time": rfc3339(row.created_at),
            "ce_specversion": "1.0",
            "ce_subject": row.key,
            "ce_sequence": f"{row.id:019d}",
            **orjson.loads(row.headers or "{}"),
        }
        contract.validator().check(row.topic, row.key, headers, row.payload.encode())
    return [orjson.loads(row.payload) for row in rows if order_id in (None, row.key)]


def new_request(
    *lines: tuple[int, int, str], user_id: int = 0, request_id: str = "", ttl_seconds: float | None = None
) -> pb.CreateOrderRequest:
    """Return a request with lines of (product, quantity, price in dollars).

    The default user id is the id of the first product, so each test has its own users. Tests share one inventory-api,
    and the id of an order is derived from its user id and request_id. So two tests must not use the same user id with
    the same request_id.
    """
    ttl = None
    if ttl_seconds is not None:
        ttl = Duration()
        ttl.FromNanoseconds(int(ttl_seconds * 1e9))
    items = [
        pb.CreateOrderItem(product_id=product_id, quantity=quantity, price=dollars(price))
        for product_id, quantity, price in lines
    ]
    return pb.CreateOrderRequest(user_id=user_id or lines[0][0], items=items, request_id=request_id, ttl=ttl)


def dollars(amount: str) -> Money:
    return money.to_proto(Decimal(amount), "USD")


def new_order(
    *,
    user_id: int = 1,
    items: tuple[NewItem, ...] = (NewItem(1, 2, Decimal("1.5")),),
    details: NewDetails = NO_DETAILS,
    caller: Caller = ANYONE,
) -> NewOrder:
    """Return an order to store, without reservations."""
    return commands.new_order(user_id, items, "USD", details=details, caller=caller)


def stored(database: Database, *new_orders: NewOrder, reserved_seconds: float = 60) -> list[Order]:
    """Store the orders in one transaction and return them."""
    outcomes = database.transact(
        lambda tx: orders.insert(tx, [ReservedOrder(each, reserved_seconds) for each in new_orders])
    )
    return [each for each in outcomes if isinstance(each, Order)]


@contextmanager
def lines_read(database: Database) -> Iterator[list[int]]:
    """Yield a list. Each statement that reads order lines appends their number to it, or UNKNOWN on SQLite."""
    counts: list[int] = []

    def count(_connection: object, cursor: Any, statement: str, *_: object) -> None:
        if "order_items.price" in statement:
            counts.append(cursor.rowcount)

    event.listen(database.engine, "after_cursor_execute", count)
    try:
        yield counts
    finally:
        event.remove(database.engine, "after_cursor_execute", count)


def at_once(count: int, call: Callable[[int], _Result]) -> list[_Result]:
    """Run this many calls at the same time and return their results."""
    begin = threading.Barrier(count)

    def run(number: int) -> _Result:
        begin.wait()
        return call(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def _fail(reason: str, error: BaseException) -> None:
    raise AssertionError(reason) from error
