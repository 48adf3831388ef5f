"""For a caller without the permission orders.any, the orders of other users do not exist."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.type.money_pb2 import Money

from devstack.servers.issuer import Issuer
from devstack.stack import Stack
from shop_common.identity.rules import ORDERS_ANY
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2 as pb
from shop_protos.order.v1 import order_pb2_grpc
from testkit.calls import refusal

ALICE, BOB = 11, 12
STAFF = "staff-of-the-shop"
PRODUCT = 7


class Users:
    """order-api as different users call it."""

    def __init__(self, stack: Stack, issuer: Issuer) -> None:
        self._issuer = issuer
        self._channel = grpc.insecure_channel(stack.orders_address)
        self._stub = order_pb2_grpc.OrderServiceStub(self._channel)

    def as_user(self, user: object, *scopes: str) -> dict[str, Any]:
        token = self._issuer.token(user, "orders.read", "orders.write", *scopes)
        return {"timeout": 60, "metadata": [("authorization", f"Bearer {token}")]}

    def create(self, user: int) -> pb.Order:
        item = pb.CreateOrderItem(product_id=PRODUCT, quantity=1, price=Money(currency_code="USD", units=1))
        return self._stub.CreateOrder(pb.CreateOrderRequest(user_id=user, items=[item]), **self.as_user(user)).order

    def get(self, order: pb.Order, user: object, *scopes: str) -> pb.Order:
        return self._stub.GetOrder(pb.GetOrderRequest(id=order.id), **self.as_user(user, *scopes)).order

    def update(self, order: pb.Order, status: pb.OrderStatus.ValueType, user: object, *scopes: str) -> pb.Order:
        request = pb.UpdateOrderStatusRequest(id=order.id, status=status, request_id=f"{order.id}-{status}")
        return self._stub.UpdateOrderStatus(request, **self.as_user(user, *scopes)).order

    def listed(self, request: pb.ListOrdersRequest, user: object, *scopes: str) -> set[str]:
        return {order.id for order in self._stub.ListOrders(request, **self.as_user(user, *scopes)).orders}

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def users(shop: Stack, issuer: Issuer) -> Iterator[Users]:
    with grpc.insecure_channel(shop.inventory_address) as channel:
        inventory_pb2_grpc.InventoryServiceStub(channel).CreateInventoryItem(
            inventory_pb2.CreateInventoryItemRequest(product_id=PRODUCT, quantity=100), timeout=60
        )
    opened = Users(shop, issuer)
    yield opened
    opened.close()


def _refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    refused = refusal(call)
    return refused.code, refused.reason


def test_an_order_is_found_by_its_user_and_by_staff_alone(users: Users) -> None:
    order = users.create(ALICE)

    assert users.get(order, ALICE).id == order.id
    assert users.get(order, STAFF, ORDERS_ANY).id == order.id
    assert _refused(lambda: users.get(order, BOB)) == (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND")


@pytest.mark.parametrize("status", [pb.ORDER_STATUS_CONFIRMED, pb.ORDER_STATUS_CANCELLED])
def test_an_order_is_changed_by_its_user_and_by_nobody_else(users: Users, status: pb.OrderStatus.ValueType) -> None:
    order = users.create(ALICE)

    assert _refused(lambda: users.update(order, status, BOB)) == (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND")
    assert users.get(order, ALICE).status == pb.ORDER_STATUS_PENDING
    assert users.update(order, status, ALICE).status == status
    assert _refused(lambda: users.update(order, status, BOB)) == (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND")


def test_a_list_has_the_callers_own_orders_only(users: Users) -> None:
    alices, bobs = users.create(ALICE), users.create(BOB)

    assert alices.id in users.listed(pb.ListOrdersRequest(), ALICE)
    assert bobs.id not in users.listed(pb.ListOrdersRequest(page_size=1000), ALICE)
    assert users.listed(pb.ListOrdersRequest(page_size=1000), ALICE) == users.listed(
        pb.ListOrdersRequest(user_id=ALICE, page_size=1000), STAFF, ORDERS_ANY
    )
    assert {alices.id, bobs.id} <= users.listed(pb.ListOrdersRequest(page_size=1000), STAFF, ORDERS_ANY)


def test_a_page_token_of_one_user_leads_another_nowhere(users: Users) -> None:
    users.create(ALICE), users.create(ALICE)
    first = users._stub.ListOrders(pb.ListOrdersRequest(page_size=1), **users.as_user(ALICE))
    assert first.next_page_token

    assert _refused(lambda: users.listed(pb.ListOrdersRequest(page_size=1, page_token=first.next_page_token), BOB)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    )


def test_a_caller_that_is_no_user_has_no_orders(users: Users) -> None:
    assert _refused(lambda: users.listed(pb.ListOrdersRequest(), "a-batch-job")) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PERMISSION_MISSING",
    )
