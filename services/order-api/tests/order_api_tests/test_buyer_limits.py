"""Limits per buyer: a buyer never has more units of a product than the limit of an order allows."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from typing import TypeAlias

import grpc
import pytest
from sqlalchemy import event, func, select, text, update

from order_api.api import parse
from order_api.domain.buyer_limits import Bought, Buyer, Counted, Purchase, of_new
from order_api.domain.commands import ChangeLines, EraseUser, NewOrder, Reinstate
from order_api.domain.errors import BuyerLimitExceeded, BuyerOrdersLimit, VersionMismatch
from order_api.domain.model import COUNTED_ORDERS_MAX, NewItem, OrderKey, Status
from order_api.domain.transitions import ReinstatementResult
from order_api.operations import change_order, reinstate_order
from order_api.operations.erase_user import UserErasure
from order_api.store import buyer_limits, tables
from order_api_tests import test_change_order as changing
from order_api_tests.test_create_order import reserve_only
from order_api_tests.test_reinstate_order import begin, confirm_stock, reinstate
from shop_common.db.database import Database
from shop_common.errors import Contention, InvalidInput
from shop_common.identity.caller import ANYONE
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import outcome, refusal
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

PENDING, CONFIRMED, PROCESSING = pb.ORDER_STATUS_PENDING, pb.ORDER_STATUS_CONFIRMED, pb.ORDER_STATUS_PROCESSING
SHIPPED, DELIVERED, CANCELLED = pb.ORDER_STATUS_SHIPPED, pb.ORDER_STATUS_DELIVERED, pb.ORDER_STATUS_CANCELLED

Change: TypeAlias = Callable[[OrderApiDriver, pb.Order], object]


def limited_request(
    product: int, quantity: int, limit: int, *, user_id: int = 0, request_id: str = "", ttl_seconds: float | None = None
) -> pb.CreateOrderRequest:
    request = new_request((product, quantity, "1"), user_id=user_id, request_id=request_id, ttl_seconds=ttl_seconds)
    request.items[0].buyer_limit = limit
    return request


def limited_order(quantity: int = 1, limit: int = 2, *, user_id: int = 1, product: int = 1) -> NewOrder:
    return new_order(user_id=user_id, items=(NewItem(product, quantity, Decimal(1), "", limit),))


def units(database: Database, product: int) -> int:
    """The units of the product in all orders that are not cancelled."""
    orders, items = tables.orders, tables.order_items
    query = (
        select(func.coalesce(func.sum(items.c.quantity - items.c.cancelled), 0))
        .join_from(items, orders, orders.c.id == items.c.order_id)
        .where(items.c.product_id == product, orders.c.status != "CANCELLED")
    )
    return int(database.query(lambda tx: tx.execute(query).scalar_one()))


# --- decisions ---

ORDER = OrderKey("default", "o")
BUYER = Buyer("default", 1)


def purchase(wanted: dict[int, int], limits: dict[int, int], buyer: Buyer = BUYER) -> Purchase:
    return Purchase(ORDER, buyer, wanted, limits)


def bought(counts: dict[int, int], open_orders: int = 0) -> Bought:
    return Bought({(ORDER, product): Counted(count, open_orders) for product, count in counts.items()})


def test_the_refusal_names_the_first_product_above_its_limit_with_the_numbers() -> None:
    refused = bought({8: 1, 9: 3}).refusal(purchase({7: 50, 8: 1, 9: 2}, {9: 4, 8: 2}))

    assert isinstance(refused, BuyerLimitExceeded)
    assert refused.metadata() == {"product_id": "9", "limit": "4", "bought": "3", "requested": "2"}


def test_an_order_up_to_the_limit_is_allowed() -> None:
    assert bought({8: 1}).refusal(purchase({8: 1}, {8: 2})) is None


def test_purchases_that_are_taken_count_for_the_next_ones_of_the_same_buyer() -> None:
    counted = bought({8: 0})
    one = purchase({8: 1}, {8: 2})
    other_buyer = purchase({8: 2}, {8: 2}, Buyer("default", 2))

    assert [counted.take(one), counted.take(one), counted.take(other_buyer)] == [None, None, None]
    refused = counted.take(one)
    assert isinstance(refused, BuyerLimitExceeded)
    assert refused.metadata()["bought"] == "2"


def test_a_buyer_with_too_many_open_orders_is_refused() -> None:
    assert bought({8: 0}, COUNTED_ORDERS_MAX).refusal(purchase({8: 1}, {8: 1})) is None
    refused = bought({8: 0}, COUNTED_ORDERS_MAX + 1).refusal(purchase({8: 1}, {8: 1}))
    assert isinstance(refused, BuyerOrdersLimit)


def test_the_lowest_limit_of_the_lines_of_a_product_counts() -> None:
    lines = [(7, 1, 3), (7, 2, 2), (7, 1, 0), (8, 1, 0)]
    order = new_order(items=tuple(NewItem(product, n, Decimal(1), "", limit) for product, n, limit in lines))

    found = of_new(order)

    assert found is not None
    assert (found.units, found.limits) == ({7: 4, 8: 1}, {7: 2})
    assert of_new(new_order()) is None


@pytest.mark.parametrize("limit", [-1, 10**9 + 1])
def test_a_limit_out_of_range_is_named(limit: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse.new_order(limited_request(1, 1, limit), ANYONE, None)

    assert [violation.field for violation in refused.value.violations] == ["items[0].buyer_limit"]


# --- with both databases ---


def test_an_order_above_the_limit_is_refused_and_its_stock_stays_free(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=10)
    driver.create_order(new_request((product, 1, "1")))  # an order without a limit counts too

    refused = refusal(lambda: driver.create_order(limited_request(product, 2, 2)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUYER_LIMIT_EXCEEDED")
    assert refused.metadata == {"product_id": str(product), "limit": "2", "bought": "1", "requested": "2"}
    assert stock.available(product) == 9
    assert driver.create_order(limited_request(product, 1, 2)).status == PENDING
    assert driver.create_order(limited_request(product, 2, 2, user_id=product + 1)).status == PENDING
    assert driver.create_order(new_request((product, 5, "1"))).status == PENDING, "it has no limit"


def test_lines_of_one_product_are_summed(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10)
    request = new_request((product, 1, "1"), (product, 2, "1"))
    request.items[1].buyer_limit = 2

    refused = refusal(lambda: driver.create_order(request))

    assert (refused.reason, refused.metadata["requested"]) == ("BUYER_LIMIT_EXCEEDED", "3")


def test_a_repeat_returns_the_order_and_is_not_counted_again(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10)
    request = limited_request(product, 2, 2, request_id="once")

    order = driver.create_order(request)

    assert driver.create_order(request) == order
    changed = limited_request(product, 2, 3, request_id="once")
    assert refusal(lambda: driver.create_order(changed)).reason == "REQUEST_ID_REUSED"
    driver.database.transact(lambda tx: tx.execute(tables.idempotency_keys.table.delete()))
    assert driver.create_order(request) == order
    assert units(driver.database, product) == 2


def test_each_order_of_a_batch_is_decided_for_itself(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10)
    quantities = (1, 2, 1, 1)
    batch = pb.BatchCreateOrdersRequest(orders=[limited_request(product, quantity, 2) for quantity in quantities])

    results = driver.stub.BatchCreateOrders(batch, timeout=CALL_SECONDS).results

    assert [result.WhichOneof("outcome") for result in results] == ["order", "error", "order", "error"]
    assert units(driver.database, product) == 2
    eventually(lambda: stock.available(product) == 8)


def advance(*statuses: pb.OrderStatus.ValueType) -> Change:
    def change(driver: OrderApiDriver, order: pb.Order) -> None:
        for status in statuses:
            driver.change_status(order.id, status)

    return change


def cancel_one(driver: OrderApiDriver, order: pb.Order) -> None:
    one = [pb.ItemUnits(item_id=order.items[0].id, quantity=1)]
    driver.stub.CancelOrderItems(pb.CancelOrderItemsRequest(id=order.id, items=one), timeout=CALL_SECONDS)


def ship_one(driver: OrderApiDriver, order: pb.Order) -> None:
    advance(CONFIRMED, PROCESSING)(driver, order)
    one = [pb.ItemUnits(item_id=order.items[0].id, quantity=1)]
    driver.stub.CreateShipment(pb.CreateShipmentRequest(id=order.id, items=one), timeout=CALL_SECONDS)


def return_one(driver: OrderApiDriver, order: pb.Order) -> None:
    advance(CONFIRMED, PROCESSING, SHIPPED)(driver, order)
    one = pb.ReturnedUnits(item_id=order.items[0].id, quantity=1, treatment=pb.RETURN_TREATMENT_DISCARD)
    driver.stub.CreateReturn(pb.CreateReturnRequest(id=order.id, items=[one]), timeout=CALL_SECONDS)


def erase(driver: OrderApiDriver, order: pb.Order) -> None:
    driver.change_status(order.id, CANCELLED)
    UserErasure(driver.database).erase(EraseUser(order.user_id))


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        (advance(), 2),
        (advance(CONFIRMED), 2),
        (advance(CONFIRMED, PROCESSING), 2),
        (ship_one, 2),
        (advance(CONFIRMED, PROCESSING, SHIPPED), 2),
        (advance(CONFIRMED, PROCESSING, SHIPPED, DELIVERED), 2),
        (cancel_one, 1),
        (return_one, 1),
        (advance(CANCELLED), 0),
        (advance(CONFIRMED, CANCELLED), 0),
        (erase, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_units_count_until_they_are_cancelled_or_returned(
    driver: OrderApiDriver, stock: InventoryClient, change: Change, counted: int
) -> None:
    product = stock.product(units=10)
    change(driver, driver.create_order(limited_request(product, 2, 2)))

    if counted < 2:
        assert driver.create_order(limited_request(product, 2 - counted, 2)).status == PENDING
    refused = refusal(lambda: driver.create_order(limited_request(product, 1, 2)))

    assert refused.metadata == {"product_id": str(product), "limit": "2", "bought": "2", "requested": "1"}


@pytest.mark.parametrize("request_ids", [True, False])
def test_50_calls_at_once_get_two_units_and_no_stock_stays_reserved_for_the_others(
    driver: OrderApiDriver, stock: InventoryClient, *, request_ids: bool
) -> None:
    product = stock.product(units=100)

    def buy(number: int) -> str:
        try:
            request_id = f"{product}-{number}" if request_ids else ""
            return driver.create_order(limited_request(product, 1, 2, request_id=request_id)).id
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return ""

    created = [order_id for order_id in at_once(50, buy) if order_id]

    assert len(created) == units(driver.database, product) == 2
    eventually(lambda: stock.available(product) == 98)


def above_the_limit_with_stock(
    driver: OrderApiDriver, stock: InventoryClient, product: int, ttl_seconds: float | None = None
) -> tuple[pb.CreateOrderRequest, pb.Order]:
    """A call that crashed after it was refused, before its stock was released, and the order that has used the limit.

    Another order of the buyer was stored while its stock was reserved.
    """
    request = limited_request(product, 1, 1, request_id=f"{product}", ttl_seconds=ttl_seconds)
    order_id = reserve_only(stock, request)
    other = driver.create_order(limited_request(product, 1, 1))
    assert stock.states(order_id) == ["HELD"]
    return request, other


def test_stock_of_a_refused_order_that_was_not_released_expires(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10)
    above_the_limit_with_stock(driver, stock, product, ttl_seconds=2)

    eventually(lambda: stock.available(product) == 9)


def test_a_repeat_of_a_refused_order_is_refused_until_the_limit_permits_it(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=10)
    request, other = above_the_limit_with_stock(driver, stock, product)

    assert refusal(lambda: driver.create_order(request)).reason == "BUYER_LIMIT_EXCEEDED"
    driver.change_status(other.id, CANCELLED)

    order = driver.create_order(request)
    assert (order.status, stock.states(order.id)) == (PENDING, ["HELD"])
    assert stock.available(product) == 8, "the events of the cancelled order do not reach this inventory-api"


def test_several_processes_with_one_database_share_the_limit(
    database: Database, driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=100)
    with (
        closing(Database(database.engine.url)) as other_database,
        OrderApiDriver.serving(other_database, stock.address) as other,
    ):

        def buy(number: int) -> bool:
            try:
                (driver, other)[number % 2].create_order(limited_request(product, 1, 2))
                return True
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                return False

        assert sum(at_once(32, buy)) == 2

    assert units(database, product) == 2


def test_a_transaction_waits_for_another_one_of_the_same_buyer(database: Database) -> None:
    """Without the lock, both transactions would count before either order is visible."""
    if database.is_sqlite:
        pytest.skip("SQLite has one writing transaction at a time")
    waiting = threading.Event()

    def insert_second() -> int:
        return len(stored(database, limited_order(2)))

    def notice(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "advisory" in statement:
            waiting.set()

    with ThreadPoolExecutor(1) as threads:
        with database.write() as tx:
            first = of_new(limited_order(2))
            assert first is not None
            buyer_limits.lock(tx, [first])
            event.listen(database.engine, "before_cursor_execute", notice)
            try:
                second = threads.submit(insert_second)
                assert waiting.wait(CALL_SECONDS)
            finally:
                event.remove(database.engine, "before_cursor_execute", notice)
            with database.read() as other:
                waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
                eventually(lambda: other.execute(waits).scalar_one() == 1)
            tx.execute(update(tables.orders).values(version=1))
        assert second.result() == 1


def test_open_orders_beyond_the_bound_are_refused_and_older_ended_ones_are_not_counted(database: Database) -> None:
    table = tables.orders
    stored(database, *(new_order(user_id=1) for _ in range(COUNTED_ORDERS_MAX)))
    assert len(stored(database, limited_order(product=2))) == 1
    assert stored(database, limited_order(product=2)) == [], "there is one open order too many"
    with database.write() as tx:
        tx.execute(update(table).values(status="DELIVERED"))
    assert len(stored(database, limited_order(2, 3, product=2))) == 1
    with database.write() as tx:
        tx.execute(update(table).values(status="DELIVERED"))

    # The newest two orders have no unit of product 1, and the others have two each.
    counted = 2 * (COUNTED_ORDERS_MAX - 2)
    assert stored(database, limited_order(1, counted)) == []
    assert len(stored(database, limited_order(1, counted + 1))) == 1


# --- reinstatement ---


def expired_order(driver: OrderApiDriver, stock: InventoryClient, product: int) -> pb.Order:
    order = driver.create_order(limited_request(product, 2, 2, ttl_seconds=1))
    eventually(lambda: stock.states(order.id) == ["EXPIRED"])
    assert refusal(lambda: driver.change_status(order.id, CONFIRMED)).reason == "RESERVATION_EXPIRED"
    return order


def test_an_order_is_not_reinstated_above_its_limit(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10)
    order = expired_order(driver, stock, product)
    other = driver.create_order(limited_request(product, 1, 2))

    refused = refusal(lambda: reinstate(driver, order.id, request_id=f"late-{order.id}"))

    assert refused.reason == "BUYER_LIMIT_EXCEEDED"
    assert refused.metadata == {"product_id": str(product), "limit": "2", "bought": "1", "requested": "2"}
    assert (driver.order(order.id).version, stock.available(product)) == (2, 9)
    driver.change_status(other.id, CANCELLED)
    assert reinstate(driver, order.id, request_id=f"late-{order.id}").status == CONFIRMED
    assert refusal(lambda: driver.create_order(limited_request(product, 1, 2))).reason == "BUYER_LIMIT_EXCEEDED"


def test_an_order_whose_limit_is_reached_during_the_call_is_cancelled_once_more(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=10)
    order = expired_order(driver, stock, product)
    version = begin(driver, order.id)
    confirm_stock(stock, order.id, version)
    other = driver.create_order(limited_request(product, 1, 2))
    result = ReinstatementResult(Reinstate(order.id, Status.CONFIRMED, "paid late"), {product: 2}, version)

    (refused,) = driver.database.transact(lambda tx: reinstate_order.finish(tx, [result]))

    assert isinstance(refused, BuyerLimitExceeded)
    cancelled = driver.order(order.id)
    assert (cancelled.status, cancelled.version) == (CANCELLED, version + 1)
    last = driver.events(order.id)[-1]
    assert (last["event_type"], last["data"]["version"]) == ("ORDER_CANCELLED", version + 1), "it releases the stock"
    driver.change_status(other.id, CANCELLED)
    assert reinstate(driver, order.id).status == CONFIRMED, "it can still be reinstated"


def test_of_a_reinstatement_and_a_new_order_at_once_one_wins(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=10)
    order = expired_order(driver, stock, product)

    def call(number: int) -> bool:
        try:
            if number % 2:
                reinstate(driver, order.id)
            else:
                driver.create_order(limited_request(product, 2, 2))
            return True
        except grpc.RpcError:
            return False

    outcomes = at_once(8, call)

    assert any(outcomes)
    assert units(driver.database, product) == 2


# --- changes ---


def first_line(order: pb.Order, quantity: int) -> pb.ChangeOrderRequest:
    return changing.request_of(order, {0: quantity})


def limited_item(product: int, quantity: int, limit: int) -> pb.CreateOrderItem:
    item = changing.new_item(product, quantity)
    item.buyer_limit = limit
    return item


def numbers(product: int, limit: int, bought: int, requested: int) -> dict[str, str]:
    return {
        "product_id": str(product), "limit": str(limit), "bought": str(bought), "requested": str(requested),
    }  # fmt: skip


def test_a_change_up_to_the_limit_passes_and_one_above_it_is_refused(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=20)
    driver.create_order(limited_request(product, 1, 5))
    order = driver.create_order(limited_request(product, 2, 5))

    order = changing.call(driver, first_line(order, 4))

    for request in (first_line(order, 6), changing.request_of(order, None, changing.new_item(product, 2))):
        refused = refusal(lambda request=request: changing.call(driver, request))  # type: ignore[misc]
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUYER_LIMIT_EXCEEDED")
        assert refused.metadata == numbers(product, 5, 5, 2)
    assert (driver.order(order.id), stock.available(product)) == (order, 15)
    # Fewer units are always allowed, and make room.
    order = changing.call(driver, first_line(order, 3))
    order = changing.call(driver, changing.request_of(order, None, changing.new_item(product, 1)))
    assert units(driver.database, product) == 5


def test_a_new_line_of_a_change_may_have_a_limit_which_the_order_keeps(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product, other = stock.product(units=20), stock.product(units=20)
    order = driver.create_order(new_request((other, 1, "1"), user_id=product))
    driver.create_order(new_request((product, 1, "1"), user_id=product))

    refused = refusal(lambda: changing.call(driver, changing.request_of(order, None, limited_item(product, 3, 3))))
    assert refused.metadata == numbers(product, 3, 1, 3)
    order = changing.call(driver, changing.request_of(order, None, limited_item(product, 1, 3)))
    # The limit of the order is the lowest one that it was given.
    order = changing.call(driver, changing.request_of(order, {0: 9}, limited_item(product, 1, 9)))
    refused = refusal(lambda: changing.call(driver, changing.request_of(order, {1: 2})))

    assert refused.metadata == numbers(product, 3, 3, 1)
    assert (stock.available(product), stock.available(other)) == (17, 11)


def test_returned_units_of_the_order_itself_do_not_count(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=20)
    order = driver.create_order(limited_request(product, 3, 3))
    ship_one(driver, order)
    one = pb.ReturnedUnits(item_id=order.items[0].id, quantity=1, treatment=pb.RETURN_TREATMENT_DISCARD)
    order = driver.stub.CreateReturn(pb.CreateReturnRequest(id=order.id, items=[one]), timeout=CALL_SECONDS).order

    order = changing.call(driver, first_line(order, 4))

    assert refusal(lambda: changing.call(driver, first_line(order, 5))).metadata == numbers(product, 3, 3, 1)


def test_a_limit_of_a_new_line_is_part_of_the_content_of_a_change() -> None:
    changes = [
        ChangeLines("o", version=1, new_items=(NewItem(1, 1, Decimal(1), "", limit),), request_id="r")
        for limit in (0, 2, 3)
    ]
    assert len({each.content() for each in changes}) == 3


@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_change_whose_limit_is_reached_during_the_call_releases_its_units(
    driver: OrderApiDriver, stock: InventoryClient, *, is_repeated: bool
) -> None:
    product = stock.product(units=10)
    order = driver.create_order(limited_request(product, 1, 3))
    begun = changing.begin(driver, order, 3)
    changing.reserve(stock, order, 3, begun)
    assert stock.available(product) == 7
    driver.create_order(limited_request(product, 1, 3))

    if is_repeated:
        # The repeat continues the change, because its units may be reserved, and only then gives it up.
        refused = refusal(lambda: changing.call(driver, first_line(order, 3)))
        assert (refused.reason, refused.metadata) == ("BUYER_LIMIT_EXCEEDED", numbers(product, 3, 2, 2))
    else:
        error = changing.finish(driver, order, 3, begun)
        assert isinstance(error, BuyerLimitExceeded)
        assert error.metadata() == numbers(product, 3, 2, 2)

    after = driver.order(order.id)
    assert (after.version, after.items[0].quantity, changing.intents(driver, order.id)) == (2, 1, 0)
    last = driver.events(order.id)[-1]
    assert (last["event_type"], last["data"]["version"]) == ("ORDER_CHANGED", 2), "it releases the stock"
    assert last["data"]["targets"] == [{"product_id": product, "kept": 1, "shipped": 0}]
    assert units(driver.database, product) == 2


def test_changes_and_new_orders_at_once_never_exceed_the_limit(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=100)
    orders = [driver.create_order(limited_request(product, 1, 6)) for _ in range(4)]

    def call(number: int) -> str:
        if number % 2:
            return outcome(lambda: driver.create_order(limited_request(product, 1, 6))).reason
        return outcome(lambda: changing.call(driver, first_line(orders[number % 4 + number // 8], 2))).reason

    reasons = at_once(16, call)

    assert units(driver.database, product) <= 6
    assert set(reasons) <= {"", "BUYER_LIMIT_EXCEEDED", "CONTENTION", "VERSION_MISMATCH"}
    assert "BUYER_LIMIT_EXCEEDED" in reasons


def test_a_change_of_the_version_that_the_end_of_a_stale_intent_makes_is_refused(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    order = driver.create_order(limited_request(stock.product(units=10), 1, 3))
    changing.begin(driver, order, 2)
    changing.age_intent(driver, order.id)
    line = order.items[0].id
    commands = [ChangeLines(order.id, version=1, quantities=((line, 3),))]
    commands.append(ChangeLines(order.id, version=2, quantities=((line, 2),)))

    ended, guessed = driver.database.transact(lambda tx: change_order.begin(tx, commands))

    assert isinstance(ended, VersionMismatch)
    assert isinstance(guessed, Contention)
    assert driver.order(order.id).version == 2


# --- cost ---


def test_a_change_without_limits_runs_one_statement_for_them(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = driver.create_order(new_request((stock.product(units=10), 1, "1")))
    statements: list[str] = []

    def collect(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(driver.database.engine, "before_cursor_execute", collect)
    try:
        changing.call(driver, first_line(order, 2))
    finally:
        event.remove(driver.database.engine, "before_cursor_execute", collect)
    assert len([each for each in statements if "order_buyer_limits" in each or "advisory" in each]) == 1


def test_an_order_without_a_limit_runs_no_statement_for_limits(database: Database) -> None:
    statements: list[str] = []

    def collect(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", collect)
    try:
        stored(database, new_order())
        without = len(statements)
        assert not any("limit" in statement or "advisory" in statement for statement in statements)
        stored(database, limited_order(product=2))
        assert len(statements) - without > without
    finally:
        event.remove(database.engine, "before_cursor_execute", collect)
