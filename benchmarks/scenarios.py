"""The measured calls, and the stock and orders that they use."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from google.type.money_pb2 import Money

from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2

HOT_PRODUCT = 1
PRODUCTS = range(10_001, 20_001)
USERS = range(1, 201)
ORDERS_PER_USER = 20
LINES = 3
AVAILABILITY_PRODUCTS = 500
PAGE_SIZE = 20

_BODIES = 10_000
_BUYERS = range(1_001, 2_001)


@dataclass(frozen=True)
class Scenario:
    """A call that is repeated. `tail_field` is the number of a text field, which has another value in each call."""

    name: str
    title: str
    service: str
    method: str
    bodies: Callable[[], list[bytes]]
    tail_field: int | None = None
    reservations: int = 0
    """The number of reservations, of one unit each, per call."""
    orders: int = 0
    by_plain: bool = True
    """Whether the plain variant serves the call, too."""


def order_id(number: int) -> str:
    """Return the id of one of the orders that exist before the first call."""
    return str(UUID(int=number + 1, version=4))


def _reserve_hot() -> list[bytes]:
    return [inventory_pb2.ReserveStockRequest(product_id=HOT_PRODUCT, quantity=1).SerializeToString()]


def _reserve_spread() -> list[bytes]:
    products = random.sample(PRODUCTS, len(PRODUCTS))
    return [inventory_pb2.ReserveStockRequest(product_id=each, quantity=1).SerializeToString() for each in products]


def _check_stock() -> list[bytes]:
    products = random.sample(PRODUCTS, len(PRODUCTS))
    return [
        inventory_pb2.CheckStockRequest(product_id=each, required_quantity=1).SerializeToString() for each in products
    ]


def _availability() -> list[bytes]:
    return [
        inventory_pb2.BatchGetAvailabilityRequest(
            product_ids=random.sample(PRODUCTS, AVAILABILITY_PRODUCTS)
        ).SerializeToString()
        for _ in range(200)
    ]


def _create_order() -> list[bytes]:
    price = Money(currency_code="EUR", units=12, nanos=990_000_000)
    return [
        order_pb2.CreateOrderRequest(
            user_id=random.choice(_BUYERS),
            items=[
                order_pb2.CreateOrderItem(product_id=product_id, quantity=1, price=price)
                for product_id in random.sample(PRODUCTS, LINES)
            ],
        ).SerializeToString()
        for _ in range(_BODIES)
    ]


def _get_order() -> list[bytes]:
    numbers = random.choices(range(len(USERS) * ORDERS_PER_USER), k=_BODIES)
    return [order_pb2.GetOrderRequest(id=order_id(number)).SerializeToString() for number in numbers]


def _list_orders() -> list[bytes]:
    users = random.choices(USERS, k=_BODIES)
    return [order_pb2.ListOrdersRequest(user_id=each, page_size=PAGE_SIZE).SerializeToString() for each in users]


INVENTORY, ORDERS = "inventory", "orders"
_INVENTORY_SERVICE, _ORDER_SERVICE = "/shop.inventory.v1.InventoryService", "/shop.order.v1.OrderService"
CHECK_STOCK = f"{_INVENTORY_SERVICE}/CheckStock"
_ORDER_ID = inventory_pb2.ReserveStockRequest.ORDER_ID_FIELD_NUMBER

RESERVE_HOT = Scenario(
    "reserve-hot",
    "ReserveStock, one hot product",
    INVENTORY,
    f"{_INVENTORY_SERVICE}/ReserveStock",
    _reserve_hot,
    _ORDER_ID,
    reservations=1,
)
RESERVE_SPREAD = Scenario(
    "reserve-spread",
    f"ReserveStock, spread over {len(PRODUCTS):,} products",
    INVENTORY,
    f"{_INVENTORY_SERVICE}/ReserveStock",
    _reserve_spread,
    _ORDER_ID,
    reservations=1,
)
CHECK_ONE = Scenario("check-stock", "CheckStock", INVENTORY, CHECK_STOCK, _check_stock, by_plain=False)
AVAILABILITY = Scenario(
    "availability",
    f"BatchGetAvailability of {AVAILABILITY_PRODUCTS} products",
    INVENTORY,
    f"{_INVENTORY_SERVICE}/BatchGetAvailability",
    _availability,
    by_plain=False,
)
CREATE_ORDER = Scenario(
    "create-order",
    f"CreateOrder with {LINES} lines",
    ORDERS,
    f"{_ORDER_SERVICE}/CreateOrder",
    _create_order,
    reservations=LINES,
    orders=1,
)
GET_ORDER = Scenario("get-order", "GetOrder", ORDERS, f"{_ORDER_SERVICE}/GetOrder", _get_order)
LIST_ORDERS = Scenario(
    "list-orders", f"ListOrders, a page of {PAGE_SIZE}", ORDERS, f"{_ORDER_SERVICE}/ListOrders", _list_orders
)

SCENARIOS = (RESERVE_HOT, RESERVE_SPREAD, CHECK_ONE, AVAILABILITY, CREATE_ORDER, GET_ORDER, LIST_ORDERS)
