"""BatchCreateOrders, with the real inventory-api."""

from collections import Counter
from dataclasses import replace

import pytest
from google.rpc.status_pb2 import Status
from sqlalchemy import text

from order_api.api import parse
from order_api.domain.commands import NewOrder
from shop_common.errors import InvalidInput, ShopError
from shop_common.identity.caller import ANYONE
from shop_common.identity.errors import PermissionMissing
from shop_common.identity.rules import ORDERS_ANY
from shop_common.rpc.status import from_status
from shop_protos.order.v1 import order_pb2 as pb
from testkit.drivers.order_api import CALL_SECONDS, InventoryClient, OrderApiDriver, new_request
from testkit.eventually import eventually

USER = replace(ANYONE, name="user:7", subject="7", permissions=ANYONE.permissions - {ORDERS_ANY})


def create(driver: OrderApiDriver, *requests: pb.CreateOrderRequest) -> list[pb.Order | ShopError]:
    response = driver.stub.BatchCreateOrders(pb.BatchCreateOrdersRequest(orders=requests), timeout=CALL_SECONDS)
    assert len(response.results) == len(requests)
    return [each.order if each.HasField("order") else error(each.error) for each in response.results]


def error(status: Status) -> ShopError:
    return from_status(status, unavailable_reason="UNAVAILABLE")


def reasons(outcomes: list[pb.Order | ShopError]) -> list[str]:
    return [each.reason if isinstance(each, ShopError) else "" for each in outcomes]


# --- parsing ---


def parsed(*requests: pb.CreateOrderRequest) -> list[NewOrder | ShopError]:
    return parse.batch(pb.BatchCreateOrdersRequest(orders=requests), USER, None)


def test_an_invalid_order_and_one_of_another_user_are_refused_alone() -> None:
    good, other = new_request((1, 1, "1"), user_id=7), new_request((1, 1, "1"), user_id=8)
    nobody, bad = new_request((1, 1, "1")), new_request((0, 1, "1"), user_id=7)
    nobody.user_id = 0

    first, second, third, fourth = parsed(good, other, nobody, bad)

    assert isinstance(first, NewOrder)
    assert isinstance(second, PermissionMissing)
    assert isinstance(third, InvalidInput)
    assert [each.field for each in third.violations] == ["user_id"]
    assert isinstance(fourth, InvalidInput)
    assert [each.field for each in fourth.violations] == ["items[0].product_id"]


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [new_request((1, 1, "1"), user_id=7)] * 501,
        [*[new_request(*[(1, 1, "1")] * 200, user_id=7)] * 25, new_request((1, 1, "1"), user_id=7)],
    ],
    ids=["none", "too many", "too many lines"],
)
def test_a_batch_of_a_wrong_size_is_refused(requests: list[pb.CreateOrderRequest]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parsed(*requests)

    assert [each.field for each in caught.value.violations] == ["orders"]


def test_the_largest_batches_are_accepted() -> None:
    assert len(parsed(*[new_request((1, 1, "1"), user_id=7)] * 500)) == 500
    assert len(parsed(*[new_request(*[(1, 1, "1")] * 200, user_id=7)] * 25)) == 25


def test_each_order_may_have_a_trace_of_its_own() -> None:
    of_call, of_order = (f"00-{digit * 32}-{digit * 16}-01" for digit in "12")
    one, other, bad = (new_request((1, 1, "1"), user_id=7) for _ in range(3))
    other.traceparent, bad.traceparent = of_order, "nonsense"

    first, second, third = parse.batch(pb.BatchCreateOrdersRequest(orders=[one, other, bad]), USER, of_call)

    assert isinstance(first, NewOrder)
    assert isinstance(second, NewOrder)
    assert (first.traceparent, second.traceparent) == (of_call, of_order)
    assert isinstance(third, InvalidInput)


# --- orders ---


def test_each_order_of_a_batch_is_decided_for_itself(driver: OrderApiDriver, stock: InventoryClient) -> None:
    book, pen = stock.product(units=3), stock.product(units=100)

    outcomes = create(
        driver,
        new_request((book, 2, "10"), (pen, 1, "2")),
        new_request((book, 2, "10")),
        new_request((book, 1, "10"), ttl_seconds=0),
        new_request((book, 1, "10"), (pen, 1, "2"), request_id="r"),
    )

    assert reasons(outcomes) == ["", "INSUFFICIENT_STOCK", "INVALID_FIELD", ""]
    orders = [each for each in outcomes if isinstance(each, pb.Order)]
    assert [driver.order(order.id) for order in orders] == orders
    assert [order.total_amount.units for order in orders] == [22, 12]
    assert (stock.available(book), stock.available(pen)) == (0, 98)
    assert Counter(event["event_type"] for event in driver.events()) == {"ORDER_CREATED": 2}
    assert isinstance(outcomes[1], ShopError)
    assert outcomes[1].metadata() == {"product_id": str(book), "requested": "2", "available": "1"}


def test_a_repeated_batch_returns_the_same_orders(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=100)
    requests = [new_request((product, 1, "1"), request_id=f"r{number}") for number in range(50)]
    single = driver.create_order(requests[7])

    first, second = create(driver, *requests), create(driver, *requests)

    assert first == second
    assert first[7] == single
    assert len({order.id for order in first if isinstance(order, pb.Order)}) == 50
    assert stock.available(product) == 50


def test_a_request_id_that_occurs_twice_in_a_batch_creates_one_order(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=9)
    request, other = (new_request((product, units, "1"), request_id="twice") for units in (1, 2))

    first, second, third = create(driver, request, request, other)

    assert first == second
    assert reasons([first, third]) == ["", "REQUEST_ID_REUSED"]
    assert stock.available(product) == 8


def test_a_batch_of_the_most_lines_is_created(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10**6)
    lines = [(product, 1, "1")] * 10

    outcomes = create(driver, *(new_request(*lines) for _ in range(500)))

    assert reasons(outcomes) == [""] * 500
    assert stock.available(product) == 10**6 - 5000


def test_without_inventory_api_the_whole_batch_is_refused(driver: OrderApiDriver, stock: InventoryClient) -> None:
    request = pb.BatchCreateOrdersRequest(orders=[new_request((1, 1, "1"))])

    with OrderApiDriver.serving(driver.database, "localhost:1") as alone:
        response = alone.stub.BatchCreateOrders(request, timeout=CALL_SECONDS)

    assert [error(each.error).reason for each in response.results] == ["INVENTORY_UNAVAILABLE"]


def test_stock_is_released_at_once_when_an_order_cannot_be_stored(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=3)
    database = driver.database
    database.transact(lambda tx: tx.execute(text("ALTER TABLE order_items RENAME TO renamed")))
    try:
        (outcome,) = create(driver, new_request((product, 2, "1")))
    finally:
        database.transact(lambda tx: tx.execute(text("ALTER TABLE renamed RENAME TO order_items")))

    assert isinstance(outcome, ShopError)
    eventually(lambda: stock.available(product) == 3)
