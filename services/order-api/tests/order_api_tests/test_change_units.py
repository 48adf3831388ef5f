"""Shipping and cancelling some units of an order."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from order_api.domain import transitions, units
from order_api.domain.commands import CancelItems, ChangeLines, ChangeStatus, ReturnItems, ShipItems
from order_api.domain.errors import (
    IllegalTransition,
    OrderItemNotFound,
    OrderNotFound,
    PartialChangesDisabled,
    ShipmentsLimit,
    UnitsNotOpen,
)
from order_api.domain.model import SHIPMENTS_MAX, NewItem, Order, OrderItem, Shipment, Status
from order_api.domain.transitions import LostStock
from order_api.domain.units import Target, UnitsChange
from order_api.inventory import Inventory
from order_api.operations.cancel_orders import cancel_lost
from order_api.operations.change_status import change_status
from order_api.operations.change_units import cancel_items, ship_items
from order_api.operations.coalescing import Operations
from order_api.store import orders
from shop_common.db.database import Database
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import ShopError
from testkit.drivers.order_api import at_once, events, new_order, stored

NOW = datetime(2024, 1, 1, tzinfo=UTC)
PRICE = Decimal("1.5")


def order(status: Status = Status.PROCESSING, *, shipped: int = 0, cancelled: int = 0) -> Order:
    """An order with two lines of product 7, of 5 and 3 units; the units are those of the first line."""
    items = (OrderItem(1, 7, 5, PRICE, "", shipped, cancelled), OrderItem(2, 7, 3, PRICE))
    return Order("default", "o", 1, Decimal(12), "USD", status, "", NOW, 1, NOW, NOW, items)


def ship(before: Order, *pairs: tuple[int, int]) -> UnitsChange | ShopError:
    return units.ship(before, ShipItems("o", pairs))


def cancel(before: Order, *pairs: tuple[int, int]) -> UnitsChange | ShopError:
    return units.cancel(before, CancelItems("o", pairs))


def after(change: UnitsChange | ShopError) -> Order:
    assert isinstance(change, UnitsChange)
    return change.order


# --- decisions ---


def test_an_order_is_processing_while_a_unit_is_open_and_shipped_afterwards() -> None:
    half = after(ship(order(), (1, 5)))
    whole = after(ship(half, (2, 3)))

    assert (half.status, units.targets(half)) == (Status.PROCESSING, {7: Target(8, 5)})
    assert (whole.status, units.targets(whole)) == (Status.SHIPPED, {7: Target(8, 8)})


def test_a_shipment_without_units_ships_all_open_ones() -> None:
    change = ship(order(shipped=2, cancelled=1))

    assert isinstance(change, UnitsChange)
    assert (change.units, change.order.status) == ({1: 2, 2: 3}, Status.SHIPPED)


def test_the_last_cancelled_units_cancel_an_order_or_end_it_as_shipped() -> None:
    assert after(cancel(order(), (1, 5))).status is Status.PROCESSING
    assert after(cancel(order(), (1, 5), (2, 3))).status is Status.CANCELLED
    assert after(cancel(order(shipped=2), (1, 3), (2, 3))).status is Status.SHIPPED
    assert units.targets(after(cancel(order(shipped=2), (1, 3), (2, 3)))) == {7: Target(2, 2)}


@pytest.mark.parametrize("status", [each for each in Status if each is not Status.PROCESSING])
def test_only_a_processing_order_ships_units(status: Status) -> None:
    assert isinstance(ship(order(status), (1, 1)), IllegalTransition)


@pytest.mark.parametrize("status", [Status.SHIPPED, Status.DELIVERED, Status.CANCELLED])
def test_units_of_an_order_that_has_ended_cannot_be_cancelled(status: Status) -> None:
    assert isinstance(cancel(order(status), (1, 1)), IllegalTransition)


def test_only_open_units_of_lines_of_the_order_are_shipped_and_cancelled() -> None:
    before = order(shipped=2, cancelled=1)

    for decide in (ship, cancel):
        refused = decide(before, (1, 3))
        assert isinstance(refused, UnitsNotOpen)
        assert refused.metadata() == {"id": "o", "item_id": "1", "requested": "3", "open": "2"}
        assert isinstance(decide(before, (9, 1)), OrderItemNotFound)


def test_an_order_has_a_limited_number_of_shipments() -> None:
    shipment = Shipment("s", "", "", ((1, 1),), NOW)

    assert isinstance(ship(replace(order(), shipments=(shipment,) * SHIPMENTS_MAX), (1, 1)), ShipmentsLimit)


def test_an_order_with_a_shipment_cannot_be_cancelled_as_a_whole() -> None:
    refused = transitions.change(order(shipped=1), ChangeStatus("o", Status.CANCELLED)).refusal

    assert isinstance(refused, IllegalTransition)
    assert refused.metadata()["legal"] == "SHIPPED"
    assert transitions.change(order(shipped=1), ChangeStatus("o", Status.SHIPPED)).status is Status.SHIPPED


def test_a_status_of_the_whole_order_counts_for_all_lines() -> None:
    assert units.targets(order(Status.SHIPPED, cancelled=1)) == {7: Target(7, 7)}
    assert units.targets(order(Status.CANCELLED, cancelled=1)) == {7: Target(0, 0)}


# --- on both databases ---


def processing(database: Database) -> Order:
    """A PROCESSING order with a line of 5 units of product 7, and one of 3 units of product 8."""
    (new,) = stored(database, new_order(items=(NewItem(7, 5, PRICE), NewItem(8, 3, PRICE))))
    for status in (Status.CONFIRMED, Status.PROCESSING):
        database.transact(lambda tx, status=status: change_status(tx, [ChangeStatus(new.id, status)]))  # type: ignore[misc]  # of lambdas
    return load(database, new)


def load(database: Database, stored_order: Order) -> Order:
    return database.query(lambda tx: orders.load(tx, [stored_order.key]))[stored_order.key]


def outcome_of_shipping(database: Database, *commands: ShipItems) -> list[Order | ShopError]:
    return database.transact(lambda tx: ship_items(tx, commands))


def test_shipments_are_stored_with_their_order_and_reported(database: Database) -> None:
    before = processing(database)
    first, second = before.items

    half, rest = outcome_of_shipping(
        database, ShipItems(before.id, ((first.id, 2),), "DHL", "17"), ShipItems(before.id, ())
    )

    assert isinstance(half, Order)
    assert isinstance(rest, Order)
    assert (half.status, half.version, rest.status, rest.version) == (Status.PROCESSING, 4, Status.SHIPPED, 5)
    assert load(database, before) == rest
    assert [(each.carrier, each.tracking_number, each.units) for each in rest.shipments] == [
        ("DHL", "17", ((first.id, 2),)),
        ("", "", ((first.id, 3), (second.id, 3))),
    ]
    partial, last = events(database, before.id)[-2:]
    assert (partial["event_type"], last["event_type"]) == ("ORDER_PARTIALLY_SHIPPED", "ORDER_SHIPPED")
    assert partial["data"]["shipment"]["items"] == [{"product_id": 7, "quantity": 2}]
    assert partial["data"]["targets"] == [
        {"product_id": 7, "kept": 5, "shipped": 2},
        {"product_id": 8, "kept": 3, "shipped": 0},
    ]


def test_a_repeated_request_id_ships_once(database: Database) -> None:
    before = processing(database)
    command = ShipItems(before.id, ((before.items[0].id, 2),), request_id="once")

    first, *repeats = (outcome_of_shipping(database, command)[0] for _ in range(3))
    other = outcome_of_shipping(database, replace(command, units=((before.items[0].id, 1),)))[0]

    assert repeats == [first, first]
    assert isinstance(other, RequestIdReused)
    assert load(database, before).items[0].shipped == 2


def test_cancelled_units_are_reported_and_the_rest_goes_on(database: Database) -> None:
    before = processing(database)
    cancelling = CancelItems(before.id, ((before.items[0].id, 2),), "damaged")

    (changed,) = database.transact(lambda tx: cancel_items(tx, [cancelling]))

    assert isinstance(changed, Order)
    assert (changed.status, changed.status_reason, changed.items[0].cancelled) == (Status.PROCESSING, "", 2)
    assert load(database, before) == changed
    event = events(database, before.id)[-1]
    assert event["event_type"] == "ORDER_ITEMS_CANCELLED"
    assert event["data"]["cancellation"] == {"reason": "damaged", "items": [{"product_id": 7, "quantity": 2}]}


def test_an_unknown_order_is_refused(database: Database) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"

    assert isinstance(outcome_of_shipping(database, ShipItems(unknown, ()))[0], OrderNotFound)
    (outcome,) = database.transact(lambda tx: cancel_items(tx, [CancelItems(unknown, ((1, 1),))]))
    assert isinstance(outcome, OrderNotFound)


def test_lost_stock_cancels_only_the_open_units_of_its_product_after_a_shipment(database: Database) -> None:
    before = processing(database)
    outcome_of_shipping(database, ShipItems(before.id, ((before.items[0].id, 2),)))

    for _ in range(2):  # the event is delivered twice
        database.transact(lambda tx: cancel_lost(tx, [LostStock(before.key, released=True, product_id=7)]))
    partly = load(database, before)
    database.transact(lambda tx: cancel_lost(tx, [LostStock(before.key, released=True, product_id=8)]))

    assert (partly.status, [item.cancelled for item in partly.items]) == (Status.PROCESSING, [3, 0])
    assert load(database, before).status is Status.SHIPPED
    kinds = [event["event_type"] for event in events(database, before.id)]
    assert kinds[-3:] == ["ORDER_PARTIALLY_SHIPPED", "ORDER_ITEMS_CANCELLED", "ORDER_SHIPPED"]


def test_concurrent_shipments_never_ship_a_unit_twice(database: Database) -> None:
    before = processing(database)
    item = before.items[0]

    outcomes = at_once(8, lambda _: outcome_of_shipping(database, ShipItems(before.id, ((item.id, 1),)))[0])

    assert sum(isinstance(outcome, Order) for outcome in outcomes) == 5
    assert sum(isinstance(outcome, UnitsNotOpen) for outcome in outcomes) == 3
    assert load(database, before).items[0].shipped == 5


def test_changes_of_units_are_refused_while_they_are_switched_off(database: Database) -> None:
    stock = Inventory("localhost:1", call_seconds=1)
    operations = Operations(database, stock, on_fatal=lambda *_: None, partial_changes=False)
    try:
        with pytest.raises(PartialChangesDisabled):
            operations.ship_items(ShipItems("o", ()), owner=None, deadline=0)
        with pytest.raises(PartialChangesDisabled):
            operations.cancel_items(CancelItems("o", ((1, 1),)), owner=None, deadline=0)
        with pytest.raises(PartialChangesDisabled):
            operations.return_items(ReturnItems("o", ()), owner=None, deadline=0)
        with pytest.raises(PartialChangesDisabled):
            operations.change_lines(ChangeLines("o", version=1), owner=None, deadline=0)
    finally:
        operations.close()
        stock.close()
