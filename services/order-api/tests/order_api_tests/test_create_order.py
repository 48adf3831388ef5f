"""CreateOrder, with the real inventory-api."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial

import grpc
import orjson
from sqlalchemy import func, select, text

from order_api.api import parse
from order_api.domain.commands import PurgeKeys
from order_api.inventory import Inventory
from order_api.operations.purge import KeyPurge
from order_api.store import tables
from shop_common.db.database import Database
from shop_common.identity.caller import ANYONE
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import INVENTORY_CALL_SECONDS, InventoryClient, OrderApiDriver, at_once, new_request
from testkit.eventually import eventually


@contextmanager
def renamed(database: Database, table: str) -> Iterator[None]:
    """Renames the table until the block ends, so that no order can be stored."""
    database.transact(lambda tx: tx.execute(text(f"ALTER TABLE {table} RENAME TO renamed")))
    try:
        yield
    finally:
        database.transact(lambda tx: tx.execute(text(f"ALTER TABLE renamed RENAME TO {table}")))


def count(database: Database) -> int:
    return database.query(lambda tx: tx.execute(select(func.count()).select_from(tables.orders)).scalar_one())


def purge_request_ids(database: Database) -> None:
    # The age is negative, so that all keys are older than the limit, which is a minute from now.
    assert KeyPurge(database).purge(PurgeKeys(-60, 1000)).keys > 0


def test_a_new_order_is_pending_and_its_stock_is_held(driver: OrderApiDriver, stock: InventoryClient) -> None:
    book, pen = stock.product(units=5), stock.product(units=5)

    order = driver.create_order(new_request((book, 1, "149.99"), (pen, 2, "25"), user_id=7, ttl_seconds=90))

    assert (order.user_id, order.status, order.version) == (7, pb.ORDER_STATUS_PENDING, 1)
    assert [(item.product_id, item.quantity) for item in order.items] == [(book, 1), (pen, 2)]
    assert (order.total_amount.units, order.total_amount.nanos) == (199, 990_000_000)
    assert order.reserved_until.ToNanoseconds() - order.created_at.ToNanoseconds() == 90 * 10**9
    assert stock.states(order.id) == ["HELD", "HELD"]
    assert (stock.available(book), stock.available(pen)) == (4, 3)
    assert driver.order(order.id) == order


def test_a_new_order_has_one_event_with_exact_amounts(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=5)

    order = driver.create_order(new_request((product, 3, "0.1")))

    (event,) = driver.events()
    assert event["event_type"] == "ORDER_CREATED"
    data = event["data"]
    assert (data["id"], data["status"], data["currency"]) == (order.id, "PENDING", "USD")
    payload = driver.database.query(lambda tx: tx.execute(select(tables.outbox.table.c.payload)).scalar_one())
    assert '"total_amount":0.3,' in payload
    assert orjson.loads(payload)["data"]["items"] == [{"product_id": product, "quantity": 3, "price": 0.1}]


def test_lines_of_one_product_are_summed(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=5)

    refused = refusal(lambda: driver.create_order(new_request((product, 3, "1"), (product, 3, "1"))))
    order = driver.create_order(new_request((product, 3, "1"), (product, 2, "1")))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_STOCK")
    assert refused.metadata == {"product_id": str(product), "requested": "6", "available": "5"}
    assert [each.quantity for each in stock.reservations(order.id)] == [5]


def test_a_refused_order_stores_nothing_and_a_repeat_is_decided_again(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=1)
    taken = driver.create_order(new_request((product, 1, "1")))
    request = new_request((product, 1, "1"), request_id="again")

    assert refusal(lambda: driver.create_order(request)).reason == "INSUFFICIENT_STOCK"
    assert count(driver.database) == 1
    stock.release(stock.reservations(taken.id)[0].id)

    assert driver.create_order(request).status == pb.ORDER_STATUS_PENDING


def test_the_last_unit_goes_to_one_of_16_buyers(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=1)

    def buy(user: int) -> str:
        request = new_request((product, 1, "1"), user_id=user + 1)
        try:
            return driver.create_order(request).id
        except grpc.RpcError:
            return ""

    bought = [order_id for order_id in at_once(16, buy) if order_id]

    assert len(bought) == count(driver.database) == 1
    assert stock.states(bought[0]) == ["HELD"]


def test_16_concurrent_calls_with_one_request_id_create_one_order(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=100)
    request = new_request((product, 2, "1"), (product, 1, "2"), request_id="once")

    orders = at_once(16, lambda _: driver.create_order(request))

    assert all(order == orders[0] for order in orders)
    assert count(driver.database) == 1
    assert stock.available(product) == 97
    assert len(driver.events()) == 1


def test_a_repeat_returns_the_order_as_it_is_now(driver: OrderApiDriver, stock: InventoryClient) -> None:
    request = new_request((stock.product(units=3), 1, "1"), request_id="r")
    order = driver.create_order(request)
    cancelled = driver.change_status(order.id, pb.ORDER_STATUS_CANCELLED, reason="changed my mind")

    assert driver.create_order(request) == cancelled


def test_two_users_may_use_the_same_request_id(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=3)
    request_id = f"r{product}"

    one = driver.create_order(new_request((product, 1, "1"), user_id=1, request_id=request_id))
    other = driver.create_order(new_request((product, 1, "1"), user_id=2, request_id=request_id))

    assert one.id != other.id


def test_a_request_id_with_other_content_is_refused(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=30)
    driver.create_order(new_request((product, 2, "1.5"), request_id="r", ttl_seconds=60))

    for other in (
        new_request((product, 3, "1.5"), request_id="r", ttl_seconds=60),
        new_request((product, 2, "1.51"), request_id="r", ttl_seconds=60),
        new_request((product, 1, "1.5"), (product, 1, "1.5"), request_id="r", ttl_seconds=60),
        new_request((product, 2, "1.5"), request_id="r", ttl_seconds=61),
        new_request((product, 2, "1.5"), request_id="r"),
    ):
        refused = refusal(partial(driver.create_order, other))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
        assert refused.metadata == {"request_id": "r"}
    assert stock.available(product) == 28


def test_a_repeat_finds_its_order_after_the_key_was_purged(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=30)
    request = new_request((product, 2, "1.5"), request_id="r")
    order = driver.create_order(request)
    purge_request_ids(driver.database)

    assert driver.create_order(request) == order
    assert (
        refusal(lambda: driver.create_order(new_request((product, 3, "1.5"), request_id="r"))).reason
        == "REQUEST_ID_REUSED"
    )
    assert stock.available(product) == 28


def reserve_only(stock: InventoryClient, request: pb.CreateOrderRequest) -> str:
    """Reserve the stock like a call that is interrupted before it stores the order. Returns the order's id."""
    order = parse.new_order(request, ANYONE, None)
    inventory = Inventory(stock.address, call_seconds=INVENTORY_CALL_SECONDS)
    inventory.reserve([order])
    inventory.close()
    return order.id


def test_a_repeat_continues_with_the_reservation_of_an_interrupted_call(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=3)
    request = new_request((product, 2, "1"), request_id="r")
    order_id = reserve_only(stock, request)

    order = driver.create_order(request)

    assert order.id == order_id
    assert stock.available(product) == 1


def test_a_repeat_is_refused_when_the_reservation_of_an_interrupted_call_has_expired(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=3)
    request = new_request((product, 2, "1"), request_id="r", ttl_seconds=1)
    order_id = reserve_only(stock, request)
    eventually(lambda: stock.states(order_id) == ["EXPIRED"])

    refused = refusal(lambda: driver.create_order(request))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_EXPIRED")
    assert refused.metadata == {"order_id": order_id}
    assert count(driver.database) == 0


def test_other_content_than_that_of_an_interrupted_call_is_refused(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=9)
    reserve_only(stock, new_request((product, 2, "1"), request_id="r"))

    refused = refusal(lambda: driver.create_order(new_request((product, 3, "1"), request_id="r")))

    assert (refused.reason, refused.metadata) == ("REQUEST_ID_REUSED", {"request_id": "r"})


def test_stock_is_released_at_once_when_the_order_cannot_be_stored(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=3)

    with renamed(driver.database, "order_items"):
        refusal(lambda: driver.create_order(new_request((product, 2, "1"))))

    eventually(lambda: stock.available(product) == 3)


def test_a_reservation_that_a_repeat_may_need_is_not_released(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=3)
    request = new_request((product, 2, "1"), request_id="r")
    with renamed(driver.database, "order_items"):
        refusal(lambda: driver.create_order(request))

    order = driver.create_order(request)

    assert stock.states(order.id) == ["HELD"]
    assert stock.available(product) == 1


def test_without_inventory_api_nothing_is_stored(database: Database) -> None:
    with OrderApiDriver.serving(database, "localhost:1") as driver:
        refused = refusal(lambda: driver.create_order(new_request((1, 1, "1"))))

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "INVENTORY_UNAVAILABLE")
    assert count(database) == 0


def test_a_call_fails_before_its_deadline_when_inventory_api_hangs(database: Database) -> None:
    silent = socket.create_server(("localhost", 0))  # accepts connections and sends nothing
    with silent, OrderApiDriver.serving(database, f"localhost:{silent.getsockname()[1]}") as driver:
        # With a long deadline, enough time remains for the response on a busy machine.
        refused = refusal(lambda: driver.stub.CreateOrder(new_request((1, 1, "1")), timeout=5))

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "INVENTORY_UNAVAILABLE")


def test_the_total_is_exact_where_floats_are_not(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10**9)

    order = driver.create_order(new_request((product, 3, "0.100000001"), (product, 10**8, "9999999.99")))

    total = order.total_amount
    assert Decimal(total.units) + Decimal(total.nanos).scaleb(-9) == Decimal("999999999000000.300000003")
    assert driver.order(order.id).total_amount == total
