"""ExtendOrder holds the stock of a PENDING order for longer, and `reserved_until` follows."""

from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from order_api.domain.commands import ExtendOrder
from order_api.domain.errors import OrderNotPending
from order_api.operations import extend_order
from shop_common.timestamps import to_proto
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import CALL_SECONDS, InventoryClient, OrderApiDriver, new_order, new_request

HOUR_SECONDS = 3600


def extend(driver: OrderApiDriver, order_id: str, seconds: int = HOUR_SECONDS) -> pb.Order:
    request = pb.ExtendOrderRequest(id=order_id, ttl=Duration(seconds=seconds))
    return driver.stub.ExtendOrder(request, timeout=CALL_SECONDS).order


def types(driver: OrderApiDriver, order_id: str) -> list[str]:
    return [event["event_type"] for event in driver.events(order_id)]


def test_the_reservations_and_the_order_are_held_for_longer(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1"), ttl_seconds=60))
    (held,) = stock.reservations(order.id)

    extended = extend(driver, order.id)

    assert (extended.version, extended.status) == (2, pb.ORDER_STATUS_PENDING)
    assert driver.order(order.id) == extended
    later = extended.reserved_until.ToDatetime() - order.reserved_until.ToDatetime()
    assert later >= timedelta(seconds=HOUR_SECONDS - 60)
    (reservation,) = stock.reservations(order.id)
    assert reservation.expires_at.seconds - held.expires_at.seconds >= HOUR_SECONDS - 60
    created, changed = driver.events(order.id)
    assert (created["event_type"], changed["event_type"]) == ("ORDER_CREATED", "ORDER_EXTENDED")
    assert changed["data"]["reserved_until"] > created["data"]["reserved_until"]
    assert driver.change_status(order.id, pb.ORDER_STATUS_CONFIRMED).version == 3


def test_an_order_is_never_held_for_a_shorter_time(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1")))

    assert extend(driver, order.id, 1) == order
    assert types(driver, order.id) == ["ORDER_CREATED"]


def test_stock_is_held_for_at_most_seven_days(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1")))

    refused = refusal(lambda: extend(driver, order.id, 7 * 24 * HOUR_SECONDS))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EXTENSION_LIMIT")
    assert refused.metadata["order_id"] == order.id
    assert driver.order(order.id) == order


def test_only_pending_orders_are_extended(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1")))
    for status, name in ((pb.ORDER_STATUS_CONFIRMED, "CONFIRMED"), (pb.ORDER_STATUS_CANCELLED, "CANCELLED")):
        driver.change_status(order.id, status)
        refused = refusal(lambda: extend(driver, order.id))
        assert (refused.reason, refused.metadata) == ("ORDER_NOT_PENDING", {"id": order.id, "status": name})
    unknown = new_order().id
    assert refusal(lambda: extend(driver, unknown)).reason == "ORDER_NOT_FOUND"


def test_an_order_whose_stock_was_released_is_not_extended(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1")))
    stock.release(stock.reservations(order.id)[0].id)

    assert refusal(lambda: extend(driver, order.id)).reason == "RESERVATION_RELEASED"
    assert driver.order(order.id) == order


@pytest.mark.parametrize("status", [pb.ORDER_STATUS_CONFIRMED, pb.ORDER_STATUS_CANCELLED])
def test_an_order_that_changes_during_the_call_is_refused(
    driver: OrderApiDriver, stock: InventoryClient, status: pb.OrderStatus.ValueType
) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1")))
    driver.change_status(order.id, status)

    (outcome,) = driver.database.transact(lambda tx: extend_order.finish(tx, [ExtendOrder(order.id, HOUR_SECONDS)]))

    assert isinstance(outcome, OrderNotPending)
    assert driver.order(order.id).reserved_until == order.reserved_until


def test_two_extensions_of_one_order_in_a_batch_keep_the_later_time(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1")))
    commands = [ExtendOrder(order.id, seconds) for seconds in (2 * HOUR_SECONDS, HOUR_SECONDS)]

    first, second = driver.database.transact(lambda tx: extend_order.finish(tx, commands))

    assert first == second
    assert not isinstance(first, Exception)
    assert driver.order(order.id).reserved_until == to_proto(first.reserved_until)
    assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_EXTENDED"]
