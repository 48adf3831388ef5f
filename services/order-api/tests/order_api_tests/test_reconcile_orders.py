"""ReconcileOrders repairs the effect of lost events. The inventory-api of these tests gets no events at all."""

from collections.abc import Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from order_api_tests.reconciling import age, reconcile
from shop_protos.order.v1 import maintenance_pb2
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import CALL_SECONDS, InventoryClient, OrderApiDriver, new_request

CANCELLED, CONFIRMED = pb.ORDER_STATUS_CANCELLED, pb.ORDER_STATUS_CONFIRMED
SHIPPING = (CONFIRMED, pb.ORDER_STATUS_PROCESSING, pb.ORDER_STATUS_SHIPPED)
NewOrder = Callable[..., pb.Order]


@pytest.fixture
def new_order(driver: OrderApiDriver, stock: InventoryClient) -> NewOrder:
    """Creates an order of two units of a new product, and changes its status in these steps."""

    def create(*statuses: pb.OrderStatus.ValueType) -> pb.Order:
        order = driver.create_order(new_request((stock.product(5), 2, "1.5")))
        for status in statuses:
            driver.change_status(order.id, status)
        return order

    return create


def test_an_order_cancelled_without_its_event_is_released(
    driver: OrderApiDriver, stock: InventoryClient, new_order: NewOrder
) -> None:
    confirmed, pending = new_order(CONFIRMED, CANCELLED), new_order(CANCELLED)
    age(driver, confirmed.id, pending.id)
    assert (stock.states(confirmed.id), stock.states(pending.id)) == (["CONFIRMED"], ["HELD"])

    assert reconcile(driver, page_size=1).released_count == 2

    assert (stock.states(confirmed.id), stock.states(pending.id)) == (["RELEASED"], ["RELEASED"])
    assert reconcile(driver).released_count == 0


@pytest.mark.parametrize("is_delivered", [False, True])
def test_an_order_shipped_without_its_event_is_fulfilled(
    driver: OrderApiDriver, stock: InventoryClient, new_order: NewOrder, is_delivered: bool
) -> None:
    order = new_order(*SHIPPING, *[pb.ORDER_STATUS_DELIVERED] * is_delivered)
    age(driver, order.id)

    assert reconcile(driver).fulfilled_count == 1

    assert stock.states(order.id) == ["FULFILLED"]
    assert stock.available(order.items[0].product_id) == 3
    assert reconcile(driver).fulfilled_count == 0


def test_open_orders_and_recent_changes_are_left_alone(
    driver: OrderApiDriver, stock: InventoryClient, new_order: NewOrder
) -> None:
    pending, confirmed, processing = new_order(), new_order(CONFIRMED), new_order(*SHIPPING[:2])
    recent = new_order(CONFIRMED, CANCELLED)
    age(driver, pending.id, confirmed.id, processing.id)

    totals = reconcile(driver)

    assert (totals.released_count, totals.fulfilled_count) == (0, 0)
    assert totals.compared_count >= 4
    states = [stock.states(order.id) for order in (pending, confirmed, processing, recent)]
    assert states == [["HELD"], ["CONFIRMED"], ["CONFIRMED"], ["CONFIRMED"]]


def test_a_wrong_token_is_refused(driver: OrderApiDriver) -> None:
    request = maintenance_pb2.ReconcileOrdersRequest(grace=Duration(seconds=60), page_token="nonsense")

    refused = refusal(lambda: driver.maintenance.ReconcileOrders(request, timeout=CALL_SECONDS))

    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


def test_a_short_grace_is_refused(driver: OrderApiDriver) -> None:
    request = maintenance_pb2.ReconcileOrdersRequest(grace=Duration(seconds=59))

    refused = refusal(lambda: driver.maintenance.ReconcileOrders(request, timeout=CALL_SECONDS))

    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["grace"])


def test_a_shipped_order_with_cancelled_units_is_left_to_an_operator(
    driver: OrderApiDriver, stock: InventoryClient, new_order: NewOrder
) -> None:
    order = new_order(*SHIPPING[:2])
    one = [pb.ItemUnits(item_id=order.items[0].id, quantity=1)]
    driver.stub.CreateShipment(pb.CreateShipmentRequest(id=order.id, items=one), timeout=CALL_SECONDS)
    driver.stub.CancelOrderItems(pb.CancelOrderItemsRequest(id=order.id, items=one), timeout=CALL_SECONDS)
    age(driver, order.id)

    assert reconcile(driver).fulfilled_count == 0

    assert driver.order(order.id).status == pb.ORDER_STATUS_SHIPPED
    assert stock.states(order.id) == ["CONFIRMED"]
