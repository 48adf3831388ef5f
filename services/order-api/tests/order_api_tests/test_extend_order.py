"""ExtendOrder holds the stock of a PENDING order for longer, and `reserved_until` follows."""

from contextlib import closing
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from order_api.domain.commands import CancelAbandoned, ExtendOrder
from order_api.domain.errors import OrderNotPending
from order_api.inventory import Inventory
from order_api.operations import extend_order
from order_api.operations.cancel_orders import AbandonedOrders
from order_api.store import tables
from shop_common.db.database import Database
from shop_common.db.sql import now
from shop_common.timestamps import to_proto
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import CALL_SECONDS, InventoryClient, OrderApiDriver, new_order, new_request, stored

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


# --- crashes: the rows of the table of the operation ---


def extend_stock(stock: InventoryClient, order_id: str) -> None:
    """Extend the reservations of the order, and end there, as a crash does."""
    with closing(Inventory(stock.address, call_seconds=CALL_SECONDS)) as inventory:
        inventory.extend(ExtendOrder(order_id, HOUR_SECONDS), seconds_left=CALL_SECONDS)


def test_without_inventory_api_nothing_is_extended(database: Database) -> None:
    (order,) = stored(database, new_order())
    with OrderApiDriver.serving(database, "localhost:1") as driver:
        present = driver.order(order.id)

        assert refusal(lambda: extend(driver, order.id)).reason == "INVENTORY_UNAVAILABLE"
        assert driver.order(order.id) == present


def test_a_repeat_finishes_after_the_stock_was_extended(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1"), ttl_seconds=60))
    extend_stock(stock, order.id)
    assert driver.order(order.id) == order

    assert extend(driver, order.id).reserved_until.seconds > order.reserved_until.seconds
    assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_EXTENDED"]


def test_without_a_repeat_the_order_is_cancelled_after_its_old_time(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1"), ttl_seconds=60))
    extend_stock(stock, order.id)
    with driver.database.write() as tx:
        long_ago = tables.orders.update().where(tables.orders.c.id == order.id)
        tx.execute(long_ago.values(reserved_until=now(tx) - timedelta(days=1)))

    AbandonedOrders(driver.database).cancel(CancelAbandoned(HOUR_SECONDS, 100))

    assert driver.order(order.id).status == pb.ORDER_STATUS_CANCELLED
    assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_CANCELLED"], "which releases the stock"


def test_a_repeat_after_a_lost_response_extends_once_more(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(3), 2, "1"), ttl_seconds=60))
    first = extend(driver, order.id)

    second = extend(driver, order.id, 2 * HOUR_SECONDS)

    assert second.reserved_until.seconds - first.reserved_until.seconds >= HOUR_SECONDS - 1


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
