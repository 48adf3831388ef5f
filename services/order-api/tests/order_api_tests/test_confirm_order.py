"""UpdateOrderStatus to CONFIRMED, with the real inventory-api."""

import time
from collections.abc import Callable
from functools import partial

import grpc
import pytest

from order_api.domain.commands import ChangeStatus
from order_api.domain.model import Status
from order_api.inventory import Inventory
from order_api.operations.coalescing import Operations
from shop_common.db.database import Database
from shop_common.errors import QueueFull
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import InventoryClient, OrderApiDriver, at_once, new_order, new_request, stored
from testkit.eventually import eventually

CONFIRMED = pb.ORDER_STATUS_CONFIRMED
CANCELLED = pb.ORDER_STATUS_CANCELLED


def types(driver: OrderApiDriver, order_id: str) -> list[str]:
    return [event["event_type"] for event in driver.events(order_id)]


def test_the_reservations_of_a_confirmed_order_are_confirmed(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1"), (stock.product(units=3), 2, "1")))

    confirmed = driver.change_status(order.id, CONFIRMED, reason="paid")

    assert (confirmed.status, confirmed.status_reason, confirmed.version) == (CONFIRMED, "paid", 2)
    assert driver.order(order.id) == confirmed
    assert stock.states(order.id) == ["CONFIRMED", "CONFIRMED"]
    assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_CONFIRMED"]


def test_confirming_again_changes_nothing(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1")))
    confirmed = driver.change_status(order.id, CONFIRMED)

    assert driver.change_status(order.id, CONFIRMED, reason="again") == confirmed
    assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_CONFIRMED"]


def test_16_concurrent_confirmations_take_effect_once(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1")))

    confirmed = at_once(16, lambda _: driver.change_status(order.id, CONFIRMED))

    assert {each.version for each in confirmed} == {2}
    assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_CONFIRMED"]


def test_concurrent_confirmations_and_cancellations_end_cancelled(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1")))

    def change(number: int) -> str:
        try:
            driver.change_status(order.id, CONFIRMED if number % 2 else CANCELLED)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    assert set(at_once(8, change)) <= {"OK", "FAILED_PRECONDITION"}
    # A cancellation is legal both before and after a confirmation.
    assert driver.order(order.id).status == CANCELLED
    emitted = types(driver, order.id)
    assert emitted in (["ORDER_CREATED", "ORDER_CANCELLED"], ["ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_CANCELLED"])
    assert [event["data"]["version"] for event in driver.events(order.id)] == list(range(1, len(emitted) + 1))


def test_confirming_an_order_whose_reservation_has_expired_cancels_it(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1"), ttl_seconds=1))
    eventually(lambda: stock.states(order.id) == ["EXPIRED"])

    refused = refusal(lambda: driver.change_status(order.id, CONFIRMED))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_EXPIRED")
    assert refused.metadata == {"order_id": order.id}
    assert driver.order(order.id).status == CANCELLED
    assert "expired" in driver.order(order.id).status_reason
    assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_CANCELLED"]


def test_confirming_an_order_whose_stock_was_released_cancels_it(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    whole = driver.create_order(new_request((stock.product(units=3), 1, "1")))
    part = driver.create_order(new_request((stock.product(units=3), 1, "1"), (stock.product(units=3), 2, "1")))
    for order in (whole, part):
        stock.release(stock.reservations(order.id)[0].id)

        refused = refusal(partial(driver.change_status, order.id, CONFIRMED))

        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_RELEASED")
        assert refused.metadata == {"order_id": order.id}
        assert types(driver, order.id) == ["ORDER_CREATED", "ORDER_CANCELLED"]


def test_confirming_an_order_without_reservations_cancels_it(driver: OrderApiDriver) -> None:
    (order,) = stored(driver.database, new_order())

    refused = refusal(lambda: driver.change_status(order.id, CONFIRMED))

    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "RESERVATION_NOT_FOUND")
    assert driver.order(order.id).status == CANCELLED


def test_a_repeat_completes_an_interrupted_confirmation(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1"), ttl_seconds=1))
    stock.confirm(order.id)  # as if order-api had died after its call to inventory-api

    assert driver.change_status(order.id, CONFIRMED).status == CONFIRMED


def test_without_inventory_api_a_confirmation_changes_nothing(database: Database) -> None:
    (order,) = stored(database, new_order())
    with OrderApiDriver.serving(database, "localhost:1") as driver:
        refused = refusal(lambda: driver.change_status(order.id, CONFIRMED, request_id="r"))

        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "INVENTORY_UNAVAILABLE")
        assert driver.order(order.id).status == pb.ORDER_STATUS_PENDING
        assert types(driver, order.id) == ["ORDER_CREATED"]
        # A cancellation needs no call to inventory-api.
        assert driver.change_status(order.id, CANCELLED).status == CANCELLED


def test_a_repeated_request_id_returns_the_order_as_it_is_now(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1")))
    driver.change_status(order.id, CONFIRMED, request_id="confirm")
    processing = driver.change_status(order.id, pb.ORDER_STATUS_PROCESSING, request_id="process")

    assert driver.change_status(order.id, CONFIRMED, request_id="confirm") == processing
    assert driver.change_status(order.id, pb.ORDER_STATUS_PROCESSING, request_id="process") == processing


def test_a_request_id_of_another_change_is_refused(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=3)
    order, other = (driver.create_order(new_request((product, 1, "1"))) for _ in range(2))
    driver.change_status(order.id, CONFIRMED, request_id="r")

    for again in (
        lambda: driver.change_status(other.id, CONFIRMED, request_id="r"),
        lambda: driver.change_status(order.id, CANCELLED, request_id="r"),
        lambda: driver.change_status(order.id, CONFIRMED, reason="other", request_id="r"),
    ):
        assert refusal(again).reason == "REQUEST_ID_REUSED"
    assert driver.order(other.id).status == pb.ORDER_STATUS_PENDING


def test_a_change_of_an_unknown_order_is_refused(driver: OrderApiDriver) -> None:
    order_id = new_order().id

    for status in (CONFIRMED, CANCELLED):
        refused = refusal(partial(driver.change_status, order_id, status))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND")
        assert refused.metadata == {"id": order_id}


def test_confirming_an_unknown_order_does_not_confirm_reservations_with_its_id(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=3)
    order_id = driver.create_order(new_request((product, 1, "1"))).id
    driver.database.transact(lambda tx: [tx.exec_driver_sql(f"DELETE FROM {t}") for t in ("order_items", "orders")])

    assert refusal(lambda: driver.change_status(order_id, CONFIRMED)).reason == "ORDER_NOT_FOUND"
    assert stock.states(order_id) == ["HELD"]


class StoppingInventory(Inventory):
    """Confirms the stock, and then stops the operations, before they can store that the order is confirmed."""

    stop: Callable[[], None]

    def confirm(self, command: ChangeStatus, *, seconds_left: float) -> dict[int, int]:
        units = super().confirm(command, seconds_left=seconds_left)
        self.stop()
        return units


def test_a_confirmation_that_ends_after_the_call_reports_that_the_stock_may_be_confirmed(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    order = driver.create_order(new_request((stock.product(units=1), 1, "1")))
    inventory = StoppingInventory(stock.address, call_seconds=60)
    operations = Operations(driver.database, inventory, on_fatal=lambda reason, error: None)
    inventory.stop = operations.close

    with pytest.raises(QueueFull, match="its stock may be confirmed; a repeat finishes"):
        operations.update_status(ChangeStatus(order.id, Status.CONFIRMED), owner=None, deadline=time.monotonic() + 60)
    inventory.close()

    assert stock.states(order.id) == ["CONFIRMED"]
    assert driver.order(order.id).status == pb.ORDER_STATUS_PENDING
    assert driver.change_status(order.id, CONFIRMED).status == CONFIRMED
