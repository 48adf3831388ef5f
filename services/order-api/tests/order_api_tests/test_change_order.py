"""ChangeOrder: other lines and charges of an order. The rows of its table of crashes are here.

The row about limits per buyer is in test_buyer_limits.py. The rows about events are tests of inventory-api: see
test_additions.py there. The inventory-api of these tests gets no
events, so the effect of each event on the stock is late.
"""

from contextlib import closing
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.type.money_pb2 import Money
from sqlalchemy import Connection, select, update

from order_api.domain.changes import BegunChange, ChangeResult
from order_api.domain.commands import CancelAbandoned, ChangeLines
from order_api.domain.errors import OrderNotChangeable
from order_api.inventory import Inventory
from order_api.operations import change_order, order_turns
from order_api.store import tables
from order_api_tests.reconciling import age, cancel_abandoned
from shop_common.db.database import Database
from shop_common.db.sql import now
from shop_common.errors import ShopError
from shop_protos.inventory.v1 import inventory_pb2
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
SHIPPED, CANCELLED = pb.ORDER_STATUS_SHIPPED, pb.ORDER_STATUS_CANCELLED


def usd(units: int) -> Money:
    return Money(currency_code="USD", units=units)


def new_item(product: int, quantity: int, price: int = 1, location: str = "") -> pb.CreateOrderItem:
    return pb.CreateOrderItem(product_id=product, quantity=quantity, price=usd(price), location=location)


def request_of(
    order: pb.Order,
    quantities: dict[int, int] | None = None,
    *new_items: pb.CreateOrderItem,
    charges: list[pb.Charge] | None = None,
    request_id: str = "",
    reason: str = "",
) -> pb.ChangeOrderRequest:
    """Return a change of the order. `quantities` are by the position of the line."""
    return pb.ChangeOrderRequest(
        id=order.id,
        version=order.version,
        items=[
            pb.ChangedItem(item_id=order.items[position].id, quantity=quantity)
            for position, quantity in (quantities or {}).items()
        ],
        new_items=new_items,
        charges=None if charges is None else pb.ChangedCharges(charges=charges),
        request_id=request_id,
        reason=reason,
    )


def call(driver: OrderApiDriver, request: pb.ChangeOrderRequest) -> pb.Order:
    return driver.stub.ChangeOrder(request, timeout=CALL_SECONDS).order


def lines(order: pb.Order) -> list[tuple[int, int, int]]:
    return [(item.product_id, item.quantity, item.cancelled) for item in order.items]


def types(driver: OrderApiDriver, order_id: str) -> list[str]:
    return [event["event_type"] for event in driver.events(order_id)]


def states(stock: InventoryClient, order_id: str) -> dict[str, int]:
    """Return the units of the order's reservations by state."""
    units: dict[str, int] = {}
    for each in stock.reservations(order_id):
        name = inventory_pb2.ReservationState.Name(each.state).removeprefix("RESERVATION_STATE_")
        units[name] = units.get(name, 0) + each.quantity
    return units


def intents(driver: OrderApiDriver, order_id: str) -> int:
    table = tables.order_intents
    with driver.database.read() as tx:
        return len(tx.execute(select(table.c.version).where(table.c.order_id == order_id)).all())


def age_intent(driver: OrderApiDriver, order_id: str) -> None:
    table = tables.order_intents
    with driver.database.write() as tx:
        then = now(tx) - timedelta(seconds=change_order.STALE_SECONDS + 1)
        tx.execute(update(table).where(table.c.order_id == order_id).values(created_at=then))


def confirmed(driver: OrderApiDriver, *items: tuple[int, int]) -> pb.Order:
    """Create an order with lines of these products and quantities, at a price of 2, and confirm it."""
    order = driver.create_order(new_request(*((product, quantity, "2") for product, quantity in items)))
    driver.change_status(order.id, CONFIRMED)
    return driver.order(order.id)


# --- what a change does ---


@pytest.mark.parametrize("status", [PENDING, CONFIRMED, PROCESSING])
def test_a_change_reserves_what_is_new_and_keeps_what_stays(
    driver: OrderApiDriver, stock: InventoryClient, status: pb.OrderStatus.ValueType
) -> None:
    first, second, third = (stock.product(units=10) for _ in range(3))
    order = driver.create_order(new_request((first, 2, "2"), (second, 3, "2")))
    for each in {PENDING: (), CONFIRMED: (CONFIRMED,), PROCESSING: (CONFIRMED, PROCESSING)}[status]:
        order = driver.change_status(order.id, each)
    before = {each.id: each.quantity for each in stock.reservations(order.id)}
    shipping = pb.Charge(kind=pb.CHARGE_KIND_SHIPPING, amount=usd(5))

    changed = call(driver, request_of(order, {0: 4, 1: 1}, new_item(third, 1, 7), charges=[shipping]))

    assert lines(changed) == [(first, 4, 0), (second, 3, 2), (third, 1, 0)]
    assert changed.total_amount == usd(4 * 2 + 1 * 2 + 7 + 5)
    assert (changed.status, changed.version, list(changed.charges)) == (status, order.version + 1, [shipping])
    assert changed.reserved_until == order.reserved_until
    assert driver.order(order.id) == changed
    # The event has not arrived yet, so the units that the order gives up are still reserved.
    after = {each.id: each.quantity for each in stock.reservations(order.id)}
    assert before.items() <= after.items()
    state = "HELD" if status == PENDING else "CONFIRMED"
    assert states(stock, order.id) == {state: 2 + 3 + 2 + 1}
    event = driver.events(order.id)[-1]
    assert (event["event_type"], event["data"]["version"]) == ("ORDER_CHANGED", changed.version)
    assert event["data"]["targets"] == [
        {"product_id": first, "kept": 4, "shipped": 0},
        {"product_id": second, "kept": 1, "shipped": 0},
        {"product_id": third, "kept": 1, "shipped": 0},
    ]
    assert intents(driver, order.id) == 0


def test_the_added_units_of_a_pending_order_expire_with_the_others(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product, other = stock.product(units=10), stock.product(units=10)
    order = driver.create_order(new_request((product, 2, "2")))

    call(driver, request_of(order, {0: 3}, new_item(other, 1)))

    assert len({(each.expires_at.seconds, each.expires_at.nanos) for each in stock.reservations(order.id)}) == 1
    assert driver.change_status(order.id, CONFIRMED).status == CONFIRMED
    assert states(stock, order.id) == {"CONFIRMED": 4}


def test_a_change_without_stock_leaves_the_order_as_it_is(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=3)
    order = driver.create_order(new_request((product, 2, "2")))

    refused = refusal(lambda: call(driver, request_of(order, {0: 4}, request_id=f"c-{order.id}")))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_STOCK")
    assert refused.metadata == {"product_id": str(product), "requested": "2", "available": "1"}
    assert driver.order(order.id) == order
    assert (types(driver, order.id), intents(driver, order.id)) == (["ORDER_CREATED"], 0)
    assert states(stock, order.id) == {"HELD": 2}
    assert call(driver, request_of(order, {0: 3}, request_id=f"c-{order.id}")).version == 2


def test_a_change_that_takes_all_units_away_cancels_the_order(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product, other = stock.product(units=3), stock.product(units=3)
    order = confirmed(driver, (product, 2), (other, 1))

    changed = call(driver, request_of(order, {0: 0, 1: 0}, reason="changed her mind"))

    assert (changed.status, changed.status_reason, changed.total_amount.units) == (CANCELLED, "changed her mind", 0)
    assert types(driver, order.id)[-1] == "ORDER_CANCELLED"
    history = driver.stub.GetOrder(pb.GetOrderRequest(id=order.id), timeout=CALL_SECONDS).history
    assert [change.status for change in history] == [PENDING, CONFIRMED, CANCELLED]


def test_shipped_units_stay(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=9)
    order = confirmed(driver, (product, 3))
    driver.change_status(order.id, PROCESSING)
    shipment = pb.CreateShipmentRequest(id=order.id, items=[pb.ItemUnits(item_id=order.items[0].id, quantity=2)])
    order = driver.stub.CreateShipment(shipment, timeout=CALL_SECONDS).order

    refused = refusal(lambda: call(driver, request_of(order, {0: 1})))

    assert refused.reason == "UNITS_NOT_OPEN"
    assert (refused.metadata["requested"], refused.metadata["open"]) == ("2", "1")
    more = call(driver, request_of(order, {0: 5}))
    assert (lines(more), more.status) == ([(product, 5, 0)], PROCESSING)
    done = call(driver, request_of(more, {0: 2}))
    assert (lines(done), done.status) == ([(product, 5, 3)], SHIPPED)
    assert types(driver, order.id)[-1] == "ORDER_SHIPPED"
    refused = refusal(lambda: call(driver, request_of(done, {0: 3})))
    assert (refused.reason, refused.metadata) == ("ORDER_NOT_CHANGEABLE", {"id": order.id, "status": "SHIPPED"})


def test_invalid_changes_are_refused_by_field(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=1000)
    order = driver.create_order(new_request((product, 2, "2")))
    discount = pb.Charge(kind=pb.CHARGE_KIND_DISCOUNT, amount=usd(5))
    euros = pb.CreateOrderItem(product_id=product, quantity=1, price=Money(currency_code="EUR", units=1))
    for request, field in (
        (request_of(order), "items"),
        (request_of(order, {0: 1}, new_item(product, 1)), "items"),
        (request_of(order, None, charges=[discount]), "charges"),
        (request_of(order, None, euros), "new_items[0].price.currency_code"),
        (request_of(order, None, *[new_item(product, 1)] * 200), "new_items"),
        (request_of(order, {0: 10**9 + 1}), "items[0].quantity"),
    ):
        refused = refusal(lambda request=request: call(driver, request))  # type: ignore[misc]
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert list(refused.fields) == [field]
    unknown = pb.ChangeOrderRequest(id=order.id, version=1, items=[pb.ChangedItem(item_id=2**40, quantity=1)])
    assert refusal(lambda: call(driver, unknown)).reason == "ORDER_ITEM_NOT_FOUND"
    missing = pb.ChangeOrderRequest(id=new_order().id, version=1, items=[pb.ChangedItem(item_id=1, quantity=1)])
    assert refusal(lambda: call(driver, missing)).reason == "ORDER_NOT_FOUND"
    assert driver.order(order.id) == order


def test_an_order_that_has_changed_is_not_changed_again(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = confirmed(driver, (stock.product(units=9), 2))
    call(driver, request_of(order, {0: 3}))

    for quantity in (1, 4):
        refused = refusal(lambda quantity=quantity: call(driver, request_of(order, {0: quantity})))  # type: ignore[misc]
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "VERSION_MISMATCH")
        assert refused.metadata == {"id": order.id, "expected": "2", "actual": "3"}
    assert states(stock, order.id) == {"CONFIRMED": 3}


def test_a_repeat_returns_the_order(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = confirmed(driver, (stock.product(units=9), 2))
    request = request_of(order, {0: 3}, request_id=f"c-{order.id}")

    changed = at_once(5, lambda _: call(driver, request))

    assert [each.version for each in changed] == [3] * 5
    assert types(driver, order.id).count("ORDER_CHANGED") == 1
    assert states(stock, order.id) == {"CONFIRMED": 3}
    other = request_of(order, {0: 4}, request_id=request.request_id)
    assert refusal(lambda: call(driver, other)).reason == "REQUEST_ID_REUSED"


def test_a_repeat_of_create_order_returns_the_changed_order(driver: OrderApiDriver, stock: InventoryClient) -> None:
    request = new_request((stock.product(units=9), 2, "2"))
    request.request_id = new_order().id
    order = driver.create_order(request)
    changed = call(driver, request_of(order, {0: 3}, new_item(stock.product(units=1), 1)))

    assert driver.create_order(request) == changed


# --- concurrent calls ---


def test_one_of_several_changes_at_once_wins(driver: OrderApiDriver, stock: InventoryClient) -> None:
    order = confirmed(driver, (stock.product(units=100), 2))

    outcomes = at_once(8, lambda number: outcome(lambda: call(driver, request_of(order, {0: 3 + number}))))

    # The first intent wins. The others are refused, since the intent is younger than a minute.
    won = [number for number, each in enumerate(outcomes) if each.code is grpc.StatusCode.OK]
    assert len(won) == 1
    assert {each.reason for each in outcomes} <= {"", "CONTENTION", "VERSION_MISMATCH"}
    after = driver.order(order.id)
    assert (after.version, after.items[0].quantity, intents(driver, order.id)) == (3, 3 + won[0], 0)
    assert states(stock, order.id) == {"CONFIRMED": 3 + won[0]}


def test_a_confirmation_at_the_same_time_does_not_lose_the_added_units(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=1000)
    for _ in range(10):
        order = driver.create_order(new_request((product, 2, "2")))

        def act(number: int, order: pb.Order = order) -> None:
            if number:
                ended = outcome(lambda: driver.change_status(order.id, CONFIRMED))
            else:
                ended = outcome(lambda: call(driver, request_of(order, {0: 5})))
            assert ended.code in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED), ended  # or the other call came first

        at_once(2, act)
        final = driver.order(order.id)
        assert final.status in (PENDING, CONFIRMED)
        if final.status == PENDING:
            final = driver.change_status(order.id, CONFIRMED)
        assert final.items[0].quantity in (2, 5)
        assert states(stock, order.id)["CONFIRMED"] >= final.items[0].quantity


# --- crashes ---


def command_of(order: pb.Order, quantity: int) -> ChangeLines:
    return ChangeLines(order.id, version=order.version, quantities=((order.items[0].id, quantity),))


def begin(driver: OrderApiDriver, order: pb.Order, quantity: int) -> BegunChange:
    """Store the intent of a change, and end there, as a crash does."""
    (begun,) = driver.database.transact(lambda tx: change_order.begin(tx, [command_of(order, quantity)]))
    assert isinstance(begun, BegunChange)
    assert begun.change_id is not None
    return begun


def reserve(stock: InventoryClient, order: pb.Order, quantity: int, begun: BegunChange) -> None:
    with closing(Inventory(stock.address, call_seconds=CALL_SECONDS)) as inventory:
        inventory.reserve_additions(command_of(order, quantity), begun, seconds_left=CALL_SECONDS)


def finish(
    driver: OrderApiDriver, order: pb.Order, quantity: int, begun: BegunChange, answer: ShopError | None = None
) -> object:
    result = ChangeResult(command_of(order, quantity), begun, answer)
    (finished,) = driver.database.transact(lambda tx: change_order.finish(tx, [result]))
    return finished


@pytest.fixture
def order(driver: OrderApiDriver, stock: InventoryClient) -> pb.Order:
    """A confirmed order of two units of a product with ten."""
    return confirmed(driver, (stock.product(units=10), 2))


def test_before_the_intent_nothing_has_happened(
    driver: OrderApiDriver, stock: InventoryClient, order: pb.Order
) -> None:
    def crash(tx: Connection) -> None:
        change_order.begin(tx, [command_of(order, 5)])
        raise InterruptedError

    with pytest.raises(InterruptedError):
        driver.database.transact(crash)

    assert (driver.order(order.id), intents(driver, order.id)) == (order, 0)
    assert states(stock, order.id) == {"CONFIRMED": 2}


@pytest.mark.parametrize("is_reserved", [False, True])
@pytest.mark.parametrize("request_id", ["", "the same"])
def test_a_repeat_continues_an_interrupted_change(
    driver: OrderApiDriver, stock: InventoryClient, order: pb.Order, is_reserved: bool, request_id: str
) -> None:
    begun = begin(driver, order, 5)
    if is_reserved:
        reserve(stock, order, 5, begun)
    assert driver.order(order.id) == order

    changed = call(driver, request_of(order, {0: 5}, request_id=request_id))

    assert (changed.version, lines(changed)[0][1]) == (order.version + 1, 5)
    assert (states(stock, order.id), intents(driver, order.id)) == ({"CONFIRMED": 5}, 0)


@pytest.mark.parametrize("is_reserved", [False, True])
def test_without_a_repeat_the_change_ends_after_a_minute(
    driver: OrderApiDriver, stock: InventoryClient, order: pb.Order, is_reserved: bool
) -> None:
    begun = begin(driver, order, 5)
    if is_reserved:
        reserve(stock, order, 5, begun)
    cancel_abandoned(driver)
    assert intents(driver, order.id) == 1, "the change may still be running"
    other = refusal(lambda: call(driver, request_of(order, {0: 4})))
    assert (other.code, other.reason) == (grpc.StatusCode.ABORTED, "CONTENTION")
    age_intent(driver, order.id)

    assert cancel_abandoned(driver).ended_changes_count == 1

    after = driver.order(order.id)
    assert (intents(driver, order.id), after.version, lines(after)) == (0, order.version + 1, lines(order))
    event = driver.events(order.id)[-1]
    assert (event["event_type"], event["data"]["version"]) == ("ORDER_CHANGED", after.version)
    assert event["data"]["targets"][0]["kept"] == 2
    # The interrupted call finishes after all.
    assert isinstance(finish(driver, order, 5, begun), ShopError)
    assert driver.order(order.id) == after


def interrupted(driver: OrderApiDriver, stock: InventoryClient, count: int) -> list[pb.Order]:
    """Create orders, each with a change that was interrupted more than a minute ago."""
    created = [confirmed(driver, (stock.product(units=10), 2)) for _ in range(count)]
    for order in created:
        begin(driver, order, 5)
        age_intent(driver, order.id)
    return created


def test_interrupted_changes_end_in_turns_and_a_crash_keeps_the_turns_before(
    driver: OrderApiDriver, stock: InventoryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_turns, "TURN_LINES", 1)
    created = interrupted(driver, stock, 3)
    turns = 0
    transact = driver.database.transact

    def crash_in_the_second_turn(*arguments: Any) -> Any:
        nonlocal turns
        turns += 1
        if turns == 2:
            raise InterruptedError
        return transact(*arguments)

    monkeypatch.setattr(driver.database, "transact", crash_in_the_second_turn)
    with pytest.raises(InterruptedError):
        change_order.StaleChanges(driver.database).end(CancelAbandoned(60, 100))
    monkeypatch.undo()
    assert sum(intents(driver, order.id) for order in created) == 2

    assert cancel_abandoned(driver).ended_changes_count == 2

    assert [types(driver, order.id).count("ORDER_CHANGED") for order in created] == [1, 1, 1]


def test_a_call_ends_a_limited_number_of_changes(driver: OrderApiDriver, stock: InventoryClient) -> None:
    created = interrupted(driver, stock, 3)

    ended = [cancel_abandoned(driver, max_count=2).ended_changes_count for _ in range(3)]

    assert ended == [2, 1, 0]
    assert [driver.order(order.id).version for order in created] == [order.version + 1 for order in created]


def test_several_processes_end_each_change_once(driver: OrderApiDriver, stock: InventoryClient) -> None:
    created = interrupted(driver, stock, 3)

    ended = at_once(2, lambda _: change_order.StaleChanges(driver.database).end(CancelAbandoned(60, 100)))

    assert sum(ended) == 3
    assert [types(driver, order.id).count("ORDER_CHANGED") for order in created] == [1, 1, 1]


def test_the_change_of_an_order_that_was_cancelled_ends_without_an_event(
    driver: OrderApiDriver, order: pb.Order
) -> None:
    begin(driver, order, 5)
    age_intent(driver, order.id)
    cancelled = driver.change_status(order.id, CANCELLED)

    assert cancel_abandoned(driver).ended_changes_count == 1

    assert (driver.order(order.id), intents(driver, order.id)) == (cancelled, 0)


def test_another_change_ends_one_that_is_a_minute_old(driver: OrderApiDriver, order: pb.Order) -> None:
    begin(driver, order, 5)
    age_intent(driver, order.id)

    refused = refusal(lambda: call(driver, request_of(order, {0: 4})))

    assert (refused.reason, refused.metadata["actual"]) == ("VERSION_MISMATCH", str(order.version + 1))
    assert intents(driver, order.id) == 0
    assert call(driver, request_of(driver.order(order.id), {0: 4})).items[0].quantity == 4


def test_a_change_without_a_response_has_its_effect_once(
    driver: OrderApiDriver, stock: InventoryClient, order: pb.Order
) -> None:
    begun = begin(driver, order, 5)
    reserve(stock, order, 5, begun)
    assert not isinstance(finish(driver, order, 5, begun), ShopError)

    assert refusal(lambda: call(driver, request_of(order, {0: 5}))).reason == "VERSION_MISMATCH"
    assert states(stock, order.id) == {"CONFIRMED": 5}


def test_a_refused_call_that_may_have_reserved_units_ends_with_an_event(
    driver: OrderApiDriver, order: pb.Order
) -> None:
    begin(driver, order, 50)  # its call never returned

    assert refusal(lambda: call(driver, request_of(order, {0: 50}))).reason == "INSUFFICIENT_STOCK"

    assert (intents(driver, order.id), driver.order(order.id).version) == (0, order.version + 1)
    assert types(driver, order.id)[-1] == "ORDER_CHANGED"


@pytest.mark.parametrize(("status", "event"), [(CANCELLED, "ORDER_CANCELLED"), (PROCESSING, "ORDER_CHANGED")])
def test_a_change_of_the_status_during_the_call_wins(
    driver: OrderApiDriver, stock: InventoryClient, order: pb.Order, status: pb.OrderStatus.ValueType, event: str
) -> None:
    begun = begin(driver, order, 5)
    reserve(stock, order, 5, begun)
    driver.change_status(order.id, status)

    refused = finish(driver, order, 5, begun)

    assert isinstance(refused, ShopError)
    assert isinstance(refused, OrderNotChangeable) == (status == CANCELLED)
    after = driver.order(order.id)
    assert (after.status, after.items[0].quantity, intents(driver, order.id)) == (status, 2, 0)
    last = driver.events(order.id)[-1]
    assert (last["event_type"], last["data"]["version"]) == (event, after.version)


def test_an_order_that_expires_with_an_interrupted_change_is_reinstated_as_it_was(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    order = driver.create_order(new_request((stock.product(units=10), 2, "1"), ttl_seconds=1))
    begun = begin(driver, order, 5)
    reserve(stock, order, 5, begun)
    eventually(lambda: stock.states(order.id) == ["EXPIRED", "EXPIRED"])
    assert refusal(lambda: driver.change_status(order.id, CONFIRMED)).reason == "RESERVATION_EXPIRED"

    reinstated = driver.stub.ReinstateOrder(pb.ReinstateOrderRequest(id=order.id), timeout=CALL_SECONDS).order

    assert (reinstated.status, lines(reinstated)) == (CONFIRMED, lines(order))
    # The second event releases the units of the change, which were reserved again too.
    assert types(driver, order.id)[-2:] == ["ORDER_CONFIRMED", "ORDER_CHANGED"]
    assert {event["data"]["version"] for event in driver.events(order.id)[-2:]} == {reinstated.version}


def test_without_inventory_api_the_order_stays_as_it_is(database: Database) -> None:
    (order,) = stored(database, new_order())
    with OrderApiDriver.serving(database, "localhost:1") as driver:
        present = driver.order(order.id)

        refused = refusal(lambda: call(driver, request_of(present, {0: 50})))

        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "INVENTORY_UNAVAILABLE")
        assert driver.order(order.id) == present
        assert intents(driver, order.id) == 1, "a repeat continues"
        assert call(driver, request_of(present, {0: 0})).version == 2, "it needs no call"


def test_orders_without_an_intent_are_left_alone(driver: OrderApiDriver, order: pb.Order) -> None:
    age(driver, order.id)
    before = driver.order(order.id)

    assert cancel_abandoned(driver).ended_changes_count == 0

    assert driver.order(order.id) == before
