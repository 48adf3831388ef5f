"""Confirming, releasing and fulfilling reservations; each status change happens at most once."""

from collections.abc import Callable
from functools import partial

import pytest

from inventory_api.domain.errors import ReservationExpired, ReservationNotFound, ReservationReleased
from inventory_api.domain.model import Line, Reservation, State
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import InventoryDriver, at_once


def event_types(inventory: InventoryDriver) -> list[str]:
    """The event types of reservations, except STOCK_RESERVED."""
    return [
        event.type
        for event in inventory.events()
        if event.type not in ("STOCK_RESERVED", "STOCK_UPDATED", "STOCK_MOVED")
    ]


# --- confirm ---


def test_a_confirmed_order_keeps_all_its_reservations(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    inventory.add_stock(2, 5)
    held = inventory.reserve_lines("order-1", Line(1, 2), Line(2, 3))

    kept = inventory.confirm("order-1")

    assert {each.id for each in kept} == {each.id for each in held}
    assert all(each.state is State.CONFIRMED and each.expires_at is None for each in kept)
    assert [inventory.reservation(each) for each in kept] == kept
    assert inventory.item(item).reserved_quantity == 2
    assert event_types(inventory) == ["STOCK_RESERVATION_CONFIRMED"] * 2


def test_confirming_again_returns_the_same_and_emits_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.reserve(1, 2)

    assert inventory.confirm() == inventory.confirm()
    assert event_types(inventory) == ["STOCK_RESERVATION_CONFIRMED"]


def test_an_order_without_reservations_cannot_be_confirmed(inventory: InventoryDriver) -> None:
    with pytest.raises(ReservationNotFound) as refused:
        inventory.confirm("unknown")

    assert refused.value.metadata() == {"order_id": "unknown"}


def test_an_order_with_one_due_reservation_is_not_confirmed_at_all(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.add_stock(2, 5)
    due, fresh = inventory.reserve_lines("order-1", Line(1, 2), Line(2, 3))
    inventory.make_due(due)

    with pytest.raises(ReservationExpired):
        inventory.confirm("order-1")

    assert inventory.stored_state(due) is State.EXPIRED
    assert inventory.stored_state(fresh) is State.HELD
    assert event_types(inventory) == ["STOCK_RESERVATION_EXPIRED"]
    assert (inventory.available(1), inventory.available(2)) == (5, 2)


def test_an_order_with_an_expired_reservation_stays_unconfirmed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.make_due(inventory.reserve(1, 2))
    inventory.expire()

    for _ in range(2):
        with pytest.raises(ReservationExpired):
            inventory.confirm()
    assert event_types(inventory) == ["STOCK_RESERVATION_EXPIRED"]


def test_a_confirmation_leaves_out_released_reservations(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.release(inventory.reserve(1, 2))
    second = inventory.reserve(1, 1)

    (kept,) = inventory.confirm()

    assert kept.id == second.id


def test_an_order_whose_reservations_were_all_released_is_not_confirmed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.release(inventory.reserve(1, 2))

    with pytest.raises(ReservationReleased):
        inventory.confirm()


def test_confirming_one_order_does_not_change_another(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    other = inventory.reserve(1, 1, order="order-2")
    inventory.reserve(1, 1, order="order-1")

    inventory.confirm("order-1")

    assert inventory.state(other) is State.HELD


# --- release ---


@pytest.mark.parametrize("confirmed", [False, True])
def test_releasing_frees_the_units_at_each_location(inventory: InventoryDriver, confirmed: bool) -> None:
    inventory.add_stock(1, 3, "A")
    inventory.add_stock(1, 2, "B")
    held = inventory.reserve(1, 5)
    if confirmed:
        inventory.confirm()

    assert inventory.release(held) == 5

    assert (inventory.available(1, "A"), inventory.available(1, "B")) == (3, 2)
    assert inventory.state(held) is State.RELEASED
    (event,) = inventory.events("STOCK_RELEASED")
    assert event.data["released_quantity"] == 5


def test_releasing_again_returns_the_same_and_frees_nothing_more(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)

    assert [inventory.release(held) for _ in range(3)] == [2, 2, 2]
    assert inventory.available(1) == 5
    assert event_types(inventory) == ["STOCK_RELEASED"]


def test_an_unknown_reservation_cannot_be_released(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    held = inventory.reserve(1, 1)
    unknown = Reservation(DEFAULT, "", held.id[:-4] + "0000", 1, 1, "", State.HELD, held.created_at, None, ())

    with pytest.raises(ReservationNotFound) as refused:
        inventory.release(unknown)
    with pytest.raises(ReservationNotFound):
        inventory.reservation(unknown)

    assert refused.value.metadata() == {"reservation_id": unknown.id}


def test_releasing_a_due_reservation_expires_it_and_releases_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)
    inventory.make_due(held)

    assert inventory.release(held) == 0
    assert inventory.release(held) == 0
    assert event_types(inventory) == ["STOCK_RESERVATION_EXPIRED"]
    assert inventory.available(1) == 5


def test_releasing_a_fulfilled_reservation_frees_nothing(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)
    inventory.confirm()
    inventory.ship("order-1")

    assert inventory.release(held) == 0
    assert inventory.state(held) is State.FULFILLED
    assert inventory.item(item).quantity == 3


def test_cancelling_an_order_releases_its_active_reservations(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 9)
    inventory.add_stock(2, 9)
    inventory.reserve_lines("order-1", Line(1, 2), Line(2, 3))
    inventory.confirm("order-1")
    inventory.reserve(1, 1, order="order-1")
    other = inventory.reserve(1, 1, order="order-2")

    inventory.cancel("order-1", "unknown")
    inventory.cancel("order-1")

    assert (inventory.available(1), inventory.available(2)) == (8, 9)
    assert event_types(inventory).count("STOCK_RELEASED") == 3
    assert inventory.state(other) is State.HELD


# --- fulfil ---


def test_shipping_subtracts_confirmed_units_from_the_quantity(inventory: InventoryDriver) -> None:
    a = inventory.add_stock(1, 3, "A")
    b = inventory.add_stock(1, 4, "B")
    held = inventory.reserve(1, 5)
    inventory.confirm()

    assert inventory.ship("order-1") == {"order-1": {1: 5}}

    assert inventory.state(held) is State.FULFILLED
    found = [inventory.item(each) for each in (a, b)]
    assert [(item.quantity, item.reserved_quantity, item.version) for item in found] == [(2, 0, 2), (0, 0, 2)]
    assert event_types(inventory)[-1] == "STOCK_FULFILLED"
    updates = inventory.events("STOCK_UPDATED")[2:]
    assert {(event.data["location"], event.data["quantity"]) for event in updates} == {("A", 2), ("B", 0)}


def test_shipping_again_changes_nothing_and_returns_the_same(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    inventory.reserve(1, 2)
    inventory.confirm()

    assert inventory.ship("order-1") == inventory.ship("order-1") == {"order-1": {1: 2}}
    assert inventory.item(item).quantity == 3


def test_shipping_leaves_an_unconfirmed_reservation_to_expire(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)

    assert inventory.ship("order-1", "unknown") == {"order-1": {}, "unknown": {}}
    assert inventory.state(held) is State.HELD
    inventory.make_due(held)
    inventory.expire()

    assert inventory.item(item).available_quantity == 5


def test_orders_that_are_shipped_together_change_an_item_once(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10)
    for order in ("order-1", "order-2"):
        inventory.reserve(1, 3, order=order)
        inventory.confirm(order)

    inventory.ship("order-1", "order-2")

    found = inventory.item(item)
    assert (found.quantity, found.version) == (4, 2)
    assert len(inventory.events("STOCK_UPDATED")) == 2
    assert len(inventory.events("STOCK_FULFILLED")) == 2


@pytest.mark.parametrize("ending", ["released", "expired", "fulfilled"])
def test_a_reservation_that_has_ended_does_not_change(inventory: InventoryDriver, ending: str) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)
    if ending == "released":
        inventory.release(held)
    elif ending == "expired":
        inventory.make_due(held)
        inventory.expire()
    else:
        inventory.confirm()
        inventory.ship("order-1")
    state, available, before = inventory.state(held), inventory.available(1), len(inventory.events())

    inventory.release(held)
    inventory.cancel("order-1")
    inventory.ship("order-1")
    inventory.expire()

    assert (inventory.state(held), inventory.available(1), len(inventory.events())) == (state, available, before)


# --- at most once, with concurrent callers ---


@pytest.mark.parametrize("start", ["held", "confirmed", "due"])
def test_sixteen_concurrent_transitions_of_a_reservation_leave_one_legal_history(
    inventory: InventoryDriver, second_process: InventoryDriver, start: str
) -> None:
    item = inventory.add_stock(1, 10)
    inventory.reserve(1, 1, order="bystander")
    for round_number in range(4):
        order = f"order-{round_number}"
        held = inventory.reserve(1, 3, order=order)
        before = inventory.item(item).quantity
        if start == "confirmed":
            inventory.confirm(order)
        if start == "due":
            inventory.make_due(held)

        def calls(process: InventoryDriver, held: Reservation = held, order: str = order) -> list[Callable[[], object]]:
            return [
                partial(process.confirm, order),
                partial(process.release, held),
                process.expire,
                partial(process.ship, order),
            ]

        at_once([call for _ in range(2) for process in (inventory, second_process) for call in calls(process)])

        # The consistency check after each test verifies that the events are one legal history and the counters agree.
        inventory.check_consistency()
        state, found = inventory.state(held), inventory.item(item)
        kept = 3 if state is State.CONFIRMED else 0
        assert state is not State.HELD
        assert found.quantity == before - (3 if state is State.FULFILLED else 0)
        assert found.reserved_quantity == 1 + kept
        inventory.cancel(order)
        inventory.add_stock(1, 3)


def test_of_sixteen_concurrent_releases_one_frees_the_units_and_all_return_the_same(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    inventory.add_stock(1, 10)
    held = inventory.reserve(1, 3)

    results = at_once([partial(process.release, held) for _ in range(8) for process in (inventory, second_process)])

    assert results == [3] * 16
    assert event_types(inventory) == ["STOCK_RELEASED"]
    assert inventory.available(1) == 10
