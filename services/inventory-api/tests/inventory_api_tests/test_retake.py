"""ConfirmReservations with `retake` reserves the units of expired reservations again, all of them or none."""

import pytest

from inventory_api.domain.commands import OrderRequest, RetakeRequest
from inventory_api.domain.errors import InsufficientStock, ReservationNotFound, ReservationReleased
from inventory_api.domain.model import AllocationPolicy, Line, State
from inventory_api.store import order_effects
from shop_common.errors import Contention
from testkit.drivers.inventory_api import InventoryDriver, at_once, deadline, order_key


def event_types(inventory: InventoryDriver) -> list[str]:
    return [event.type for event in inventory.events() if event.type not in ("STOCK_UPDATED", "STOCK_MOVED")]


@pytest.mark.parametrize("reaped", [False, True])
def test_expired_units_are_reserved_again_and_confirmed(inventory: InventoryDriver, reaped: bool) -> None:
    item = inventory.add_stock(1, 5)
    expired = inventory.reserve(1, 2)
    inventory.make_due(expired)
    if reaped:
        inventory.expire()

    (retaken,) = inventory.retake()

    assert (retaken.state, retaken.quantity, retaken.expires_at) == (State.CONFIRMED, 2, None)
    assert retaken.id != expired.id
    assert retaken.allocations == expired.allocations
    assert inventory.state(expired) is State.REPLACED
    assert (inventory.item(item).reserved_quantity, inventory.available(1)) == (2, 3)
    assert event_types(inventory) == [
        "STOCK_RESERVED",
        "STOCK_RESERVATION_EXPIRED",
        "STOCK_RESERVATION_CHANGED",
        "STOCK_RESERVED",
        "STOCK_RESERVATION_CONFIRMED",
    ]


def test_a_repeat_changes_nothing_and_neither_does_a_plain_confirmation(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.make_due(inventory.reserve(1, 2))

    retaken = inventory.retake()
    emitted = event_types(inventory)

    assert inventory.retake() == inventory.confirm() == retaken
    assert event_types(inventory) == emitted


def test_an_order_that_has_not_expired_is_confirmed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)

    assert [each.id for each in inventory.retake()] == [held.id]
    assert event_types(inventory) == ["STOCK_RESERVED", "STOCK_RESERVATION_CONFIRMED"]


def test_held_and_expired_reservations_of_one_order_are_confirmed_together(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 9, "A")
    inventory.add_stock(1, 4, "B")
    inventory.add_stock(2, 5)
    split = inventory.reserve(1, 11)
    again = inventory.reserve(1, 1)
    held = inventory.reserve(2, 5)
    inventory.make_due(split, again)

    confirmed = inventory.retake()

    assert held.id in {each.id for each in confirmed}
    assert sorted((each.product_id, each.quantity) for each in confirmed) == [(1, 1), (1, 11), (2, 5)]
    assert {each.state for each in confirmed} == {State.CONFIRMED}
    assert inventory.available(1) == 1


def test_without_enough_stock_nothing_is_confirmed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2)
    inventory.add_stock(2, 2)
    expired, other = inventory.reserve_lines("order-1", Line(1, 2), Line(2, 1))
    inventory.make_due(expired, other)
    taken = inventory.reserve(1, 1, order="order-2")

    with pytest.raises(InsufficientStock) as refused:
        inventory.retake()

    assert refused.value.metadata() == {"product_id": "1", "requested": "2", "available": "1"}
    assert [inventory.stored_state(each) for each in (expired, other)] == [State.EXPIRED] * 2
    assert (inventory.available(1), inventory.available(2)) == (1, 2)
    inventory.release(taken)
    assert [each.quantity for each in sorted(inventory.retake(), key=lambda each: each.product_id)] == [2, 1]


def test_due_reservations_of_other_orders_give_their_units(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2)
    expired = inventory.reserve(1, 2)
    inventory.make_due(expired)
    due = inventory.reserve(1, 2, order="order-2")
    inventory.make_due(due)

    (retaken,) = inventory.retake()

    assert retaken.quantity == 2
    assert inventory.stored_state(due) is State.EXPIRED


def test_units_come_from_the_locations_of_the_expired_reservation(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 5, "B")
    only_a = Line(1, 3, policy=AllocationPolicy(excluded_locations=("B",)))
    (expired,) = inventory.reserve_lines("order-1", only_a)
    inventory.make_due(expired)
    inventory.reserve(1, 3, order="order-2", location="A")

    with pytest.raises(InsufficientStock):
        inventory.retake()

    assert inventory.available(1) == 7


def test_an_order_that_was_released_or_is_unknown_is_refused(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.release(inventory.reserve(1, 2))

    with pytest.raises(ReservationReleased):
        inventory.retake()
    with pytest.raises(ReservationNotFound):
        inventory.retake("unknown")


def test_concurrent_calls_reserve_the_units_once(inventory: InventoryDriver, second_process: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.make_due(inventory.reserve(1, 2))

    outcomes = at_once([each.retake for each in (inventory, second_process) * 4])

    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert inventory.available(1) == 3


def test_a_batch_may_have_calls_with_and_without_retake(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.make_due(inventory.reserve(1, 1))
    held = inventory.reserve(1, 2, order="order-2")

    requests = [RetakeRequest("order-1"), OrderRequest("order-2"), RetakeRequest("unknown")]
    retaken, confirmed, unknown = inventory.operations.confirm_many(requests, deadline=deadline())

    assert isinstance(retaken, list)
    assert isinstance(confirmed, list)
    assert ([each.quantity for each in retaken], [each.id for each in confirmed]) == ([1], [held.id])
    assert isinstance(unknown, ReservationNotFound)


# --- orders of order-api ---


def test_the_late_event_of_an_earlier_cancellation_releases_nothing(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    inventory.make_due(inventory.reserve(1, 2))

    inventory.retake(version=3)
    inventory.change_order("order-1", 2, ordered={1: 2}, targets={1: (0, 0)})

    assert inventory.item(item).reserved_quantity == 2
    expired, changed, reserved, confirmed = inventory.events()[-4:]
    assert (expired.type, confirmed.type) == ("STOCK_RESERVATION_EXPIRED", "STOCK_RESERVATION_CONFIRMED")
    assert {each.data["order_version"] for each in (expired, changed, reserved, confirmed)} == {3}


@pytest.mark.parametrize("cancelled_before", [False, True])
def test_later_changes_of_the_order_take_effect(inventory: InventoryDriver, cancelled_before: bool) -> None:
    inventory.add_stock(1, 9)
    inventory.make_due(inventory.reserve(1, 5))
    if cancelled_before:
        inventory.change_order("order-1", 2, ordered={1: 5}, targets={1: (0, 0)})
    inventory.retake(version=3)

    inventory.change_order("order-1", 5, ordered={1: 5}, targets={1: (3, 0)})
    assert inventory.available(1) == 6
    inventory.change_order("order-1", 6, ordered={1: 5}, targets={1: (3, 3)})
    assert inventory.available(1) == 6
    with inventory.database.read() as tx:
        key = order_key("order-1")
        assert order_effects.applied_versions(tx, [key]) == {key: 6}


def test_a_late_call_for_an_earlier_version_changes_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    expired = inventory.reserve(1, 2)
    inventory.make_due(expired)
    inventory.change_order("order-1", 4, ordered={1: 2}, targets={1: (0, 0)})

    with pytest.raises(Contention):
        inventory.retake(version=3)

    assert inventory.state(expired) is State.EXPIRED
