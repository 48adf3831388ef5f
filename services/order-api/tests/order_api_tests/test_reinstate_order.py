"""ReinstateOrder: an order whose reservation expired is confirmed after all. The rows of its table of crashes are here.

The row about limits per buyer is in test_buyer_limits.py. The last three rows are about inventory-api: see
test_retake.py and test_settle_orders.py there. The inventory-api of
these tests gets no events, so the event of each cancellation is late.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import grpc
import pytest
from sqlalchemy import Connection, update

from order_api.domain import transitions
from order_api.domain.commands import Reinstate
from order_api.domain.errors import NotReinstatable, ReservationReleased
from order_api.domain.model import Order, OrderItem, Status
from order_api.domain.transitions import ReinstatementResult, Transition
from order_api.operations import reinstate_order
from order_api.store import tables
from order_api_tests.reconciling import age, reconcile
from shop_common.db.database import Database
from shop_common.errors import Contention, ShopError
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import (
    CALL_SECONDS,
    InventoryClient,
    OrderApiDriver,
    at_once,
    new_order,
    new_request,
    stored,
)
from testkit.eventually import eventually

CONFIRMED, CANCELLED = pb.ORDER_STATUS_CONFIRMED, pb.ORDER_STATUS_CANCELLED
NOW = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)

NewOrder = Callable[[int], pb.Order]


def reinstate(driver: OrderApiDriver, order_id: str, *, reason: str = "", request_id: str = "") -> pb.Order:
    request = pb.ReinstateOrderRequest(id=order_id, reason=reason, request_id=request_id)
    return driver.stub.ReinstateOrder(request, timeout=CALL_SECONDS).order


@pytest.fixture
def expired(driver: OrderApiDriver, stock: InventoryClient) -> NewOrder:
    """Creates an order of two units and lets its reservation expire. The attempt to confirm it cancels it."""

    def create(product: int) -> pb.Order:
        order = driver.create_order(new_request((product, 2, "1"), ttl_seconds=1))
        eventually(lambda: stock.states(order.id) == ["EXPIRED"])
        assert refusal(lambda: driver.change_status(order.id, CONFIRMED)).reason == "RESERVATION_EXPIRED"
        cancelled = driver.order(order.id)
        assert (cancelled.status, cancelled.version) == (CANCELLED, 2)
        return cancelled

    return create


# --- decisions ---


def decide(
    reason: str, version: int | None, answer: dict[int, int] | ShopError | None, status: Status = Status.CANCELLED
) -> Transition:
    items = (OrderItem(1, 7, 3, Decimal(1), cancelled=1), OrderItem(2, 8, 1, Decimal(1)))
    order = Order("default", "o", 1, Decimal(4), "EUR", status, reason, NOW, 3, NOW, NOW, items)
    command = Reinstate("o", Status.CONFIRMED, "paid late")
    return transitions.reinstate(order, ReinstatementResult(command, answer, version))


@pytest.mark.parametrize("reason", sorted(transitions._EXPIRY_REASONS))
def test_an_order_that_expired_is_confirmed_if_the_units_that_it_keeps_are_reserved(reason: str) -> None:
    assert decide(reason, 3, {7: 2, 8: 1}) == Transition(Status.CONFIRMED, "paid late")


def test_an_order_with_released_units_is_cancelled_once_more() -> None:
    transition = decide("its reservation expired", 3, {7: 2})

    assert transition.status is Status.CANCELLED
    assert isinstance(transition.refusal, ReservationReleased)
    assert decide(transition.reason, 4, None).status is None, "it cannot be reinstated any more"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("the buyer changed her mind", Status.CANCELLED), ("its stock was released", Status.CANCELLED)]
    + [("", status) for status in Status if status not in (Status.CANCELLED, Status.CONFIRMED)],
)
def test_other_orders_are_not_reinstated(reason: str, status: Status) -> None:
    transition = decide(reason, None, None, status)

    assert transition.status is None
    assert isinstance(transition.refusal, NotReinstatable)


def test_the_answer_to_an_earlier_version_is_not_used() -> None:
    for version, answer in ((2, {7: 2, 8: 1}), (None, None)):
        assert isinstance(decide("its reservation expired", version, answer).refusal, Contention)


# --- with inventory-api ---


def test_an_order_is_confirmed_ten_minutes_late(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    order = expired(stock.product(units=3))
    age(driver, order.id)

    reinstated = reinstate(driver, order.id, reason="paid late", request_id=f"late-{order.id}")

    assert (reinstated.status, reinstated.status_reason, reinstated.version) == (CONFIRMED, "paid late", 4)
    assert [(item.quantity, item.cancelled) for item in reinstated.items] == [(2, 0)]
    assert stock.states(order.id) == ["CONFIRMED", "REPLACED"]
    assert stock.available(order.items[0].product_id) == 1
    events = driver.events(order.id)
    assert [event["event_type"] for event in events] == ["ORDER_CREATED", "ORDER_CANCELLED", "ORDER_CONFIRMED"]
    assert (events[-1]["data"]["version"], events[-1]["data"]["targets"][0]["kept"]) == (4, 2)
    # A repeat, for example because there was no response.
    for request_id in (f"late-{order.id}", ""):
        assert reinstate(driver, order.id, reason="paid late", request_id=request_id) == reinstated
    assert len(driver.events(order.id)) == 3
    history = driver.stub.GetOrder(pb.GetOrderRequest(id=order.id), timeout=CALL_SECONDS).history
    assert [change.status for change in history] == [pb.ORDER_STATUS_PENDING, CANCELLED, CONFIRMED]


def test_without_free_stock_the_order_stays_cancelled(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    product = stock.product(units=2)
    order = expired(product)
    other = driver.create_order(new_request((product, 1, "1")))

    refused = refusal(lambda: reinstate(driver, order.id, request_id=f"late-{order.id}"))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_STOCK")
    assert refused.metadata == {"product_id": str(product), "requested": "2", "available": "1"}
    assert driver.order(order.id).status == CANCELLED
    assert len(driver.events(order.id)) == 2
    stock.release(stock.reservations(other.id)[0].id)
    assert reinstate(driver, order.id, request_id=f"late-{order.id}").status == CONFIRMED


def test_orders_that_did_not_expire_are_refused(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(units=3), 1, "1")))
    for status in ("PENDING", "CANCELLED"):
        refused = refusal(lambda: reinstate(driver, order.id))

        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_REINSTATABLE")
        assert refused.metadata == {"id": order.id, "status": status}
        driver.change_status(order.id, CANCELLED)
    assert stock.states(order.id) == ["HELD"]
    unknown = new_order().id
    assert refusal(lambda: reinstate(driver, unknown)).reason == "ORDER_NOT_FOUND"


def test_concurrent_calls_reinstate_an_order_once(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    order = expired(stock.product(units=3))

    def call(_: int) -> str:
        try:
            return pb.OrderStatus.Name(reinstate(driver, order.id).status)
        except grpc.RpcError as error:
            return str(error.code().name)

    outcomes = at_once(8, call)

    assert set(outcomes) <= {"ORDER_STATUS_CONFIRMED", "ABORTED"}
    assert reinstate(driver, order.id).status == CONFIRMED
    assert [event["event_type"] for event in driver.events(order.id)][2:] == ["ORDER_CONFIRMED"]
    assert stock.available(order.items[0].product_id) == 1


# --- crashes ---


def begin(driver: OrderApiDriver, order_id: str) -> int:
    """Raise the version of the order, and end there, as a crash does."""
    (version,) = driver.database.transact(lambda tx: reinstate_order.begin(tx, [Reinstate(order_id, Status.CONFIRMED)]))
    assert isinstance(version, int)
    return version


def confirm_stock(stock: InventoryClient, order_id: str, version: int) -> None:
    request = inventory_pb2.ConfirmReservationsRequest(order_id=order_id, retake=True, order_version=version)
    stock.stub.ConfirmReservations(request, timeout=CALL_SECONDS)


def test_before_the_version_is_raised_nothing_has_happened(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    order = expired(stock.product(units=3))

    def crash(tx: Connection) -> None:
        reinstate_order.begin(tx, [Reinstate(order.id, Status.CONFIRMED)])
        raise InterruptedError

    with pytest.raises(InterruptedError):
        driver.database.transact(crash)

    assert (driver.order(order.id), stock.states(order.id)) == (order, ["EXPIRED"])
    assert reinstate(driver, order.id).version == order.version + 2


def test_a_repeat_of_a_finished_call_returns_the_order(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    order = expired(stock.product(units=3))
    reinstated = reinstate(driver, order.id, request_id="the same")

    assert reinstate(driver, order.id, request_id="the same") == reinstated
    assert stock.states(order.id) == ["CONFIRMED", "REPLACED"]


def test_a_repeat_begins_again_after_the_version_was_raised(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    order = expired(stock.product(units=3))

    version = begin(driver, order.id)

    assert (version, driver.order(order.id).status, stock.states(order.id)) == (3, CANCELLED, ["EXPIRED"])
    assert reinstate(driver, order.id).status == CONFIRMED


def test_a_repeat_finishes_after_the_stock_was_confirmed(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    order = expired(stock.product(units=2))
    confirm_stock(stock, order.id, begin(driver, order.id))
    assert driver.order(order.id).status == CANCELLED

    assert reinstate(driver, order.id).status == CONFIRMED
    assert stock.states(order.id) == ["CONFIRMED", "REPLACED"]


def test_without_a_repeat_the_confirmed_stock_is_released(
    driver: OrderApiDriver, stock: InventoryClient, expired: NewOrder
) -> None:
    order = expired(stock.product(units=2))
    confirm_stock(stock, order.id, begin(driver, order.id))
    reconcile(driver)
    assert stock.states(order.id) == ["CONFIRMED", "REPLACED"], "the reinstatement may still be running"
    age(driver, order.id)

    reconcile(driver)

    assert stock.states(order.id) == ["RELEASED", "REPLACED"]
    assert refusal(lambda: reinstate(driver, order.id)).reason == "RESERVATION_RELEASED"
    assert driver.order(order.id).status == CANCELLED


def test_without_inventory_api_the_order_stays_cancelled(database: Database) -> None:
    (order,) = stored(database, new_order())
    table = tables.orders
    with database.write() as tx:
        expired = {"status": "CANCELLED", "status_reason": "its reservation expired"}
        tx.execute(update(table).where(table.c.id == order.id).values(expired))
    with OrderApiDriver.serving(database, "localhost:1") as driver:
        refused = refusal(lambda: reinstate(driver, order.id))

        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "INVENTORY_UNAVAILABLE")
        assert driver.order(order.id).status == CANCELLED
