"""The checker knows orders that ship, are cancelled and come back in parts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import check
from tests.faults.event_histories import check_events
from tests.faults.history import (
    AddStock,
    Answer,
    ChangeStatus,
    CreateOrder,
    Event,
    History,
    Item,
    Order,
    Reservation,
    Snapshot,
)
from tests.faults.test_checker import (
    ITEM,
    PRODUCT,
    call,
    event,
    of_item,
    of_movement,
    of_reservation,
    with_item,
    with_orders,
    with_reservation,
    without_event,
)

pytestmark = pytest.mark.short
RESTOCKED = ({"treatment": "RESTOCK", "location": "NORTH", "quantity": 1},)


def of_units(kind: str, number: int, kept: int, shipped: int, returned: tuple[dict[str, Any], ...] = ()) -> Event:
    """An event of the order; its version is its number."""
    target: dict[str, Any] = {"product_id": PRODUCT, "kept": kept, "shipped": shipped}
    if returned:
        target["returned"] = list(returned)
    return event(f"ORDER_{kind}", number, id="order", version=number, items=[{"product_id": PRODUCT}], targets=[target])


def split(number: int, reservation_id: str, units: int, **parts: int) -> Event:
    """Return the event of a reservation that was replaced by its parts. All units are of one item."""
    changed = of_reservation("RESERVATION_CHANGED", number, reservation_id, units)
    reported = [
        {"reservation_id": name, "quantity": part, "allocations": [{"item_id": ITEM, "quantity": part}]}
        for name, part in parts.items()
    ]
    return replace(changed, data={**changed.data, "parts": reported})


def reservation(name: str, units: int, state: str) -> Reservation:
    return Reservation(name, PRODUCT, units, "order", state, {ITEM: units}, was_confirmed=True)


def correct() -> History:
    """An order of four units: one is shipped, one is cancelled, and the others are shipped. One comes back."""
    calls = [
        call(AddStock(PRODUCT, "NORTH", 10), Answer(ITEM)),
        call(CreateOrder(1, ((PRODUCT, 4),)), Answer("order")),
        call(ChangeStatus("order", "CONFIRMED"), Answer("order")),
        call(ChangeStatus("order", "PROCESSING"), Answer("order")),
        call(ChangeStatus("order", "SHIPPED"), Answer("order")),
    ]
    events = [
        of_item(1, 10, 0, 1),
        of_movement(21, 1, "RECEIVED", 10, 10),
        of_reservation("RESERVED", 2, "whole", 4),
        of_units("CREATED", 1, 4, 0),
        of_reservation("RESERVATION_CONFIRMED", 3, "whole", 4),
        of_units("CONFIRMED", 2, 4, 0),
        of_units("PROCESSING", 3, 4, 0),
        of_units("PARTIALLY_SHIPPED", 4, 4, 1),
        split(4, "whole", 4, one=1, three=3),
        of_reservation("FULFILLED", 5, "one", 1),
        of_item(6, 9, 3, 2),
        of_movement(22, 2, "FULFILLED", -1, 9),
        of_units("ITEMS_CANCELLED", 5, 3, 1),
        split(7, "three", 3, cancelled=1, rest=2),
        of_reservation("RELEASED", 8, "cancelled", 1),
        of_units("SHIPPED", 6, 3, 3),
        of_reservation("FULFILLED", 9, "rest", 2),
        of_item(10, 7, 0, 3),
        of_movement(23, 3, "FULFILLED", -2, 7),
        of_units("RETURNED", 7, 3, 3, RESTOCKED),
        of_item(11, 8, 0, 4),
        of_movement(24, 4, "RETURNED", 1, 8),
    ]
    reservations = [
        reservation("whole", 4, "REPLACED"),
        reservation("one", 1, "FULFILLED"),
        reservation("three", 3, "REPLACED"),
        reservation("cancelled", 1, "RELEASED"),
        reservation("rest", 2, "FULFILLED"),
    ]
    order = Order("order", 1, "SHIPPED", 7, {PRODUCT: 4}, {PRODUCT: 1}, {PRODUCT: 1})
    items = {ITEM: Item(ITEM, PRODUCT, "NORTH", 8, 0, 4)}
    return History(calls, events, Snapshot(items, {each.id: each for each in reservations}, {"order": order}))


def with_changed_event(index: int, another: Event) -> Callable[[History], History]:
    def change(history: History) -> History:
        events = [another if number == index else each for number, each in enumerate(history.events)]
        return replace(history, events=events)

    return change


def test_a_correct_history_of_parts_passes() -> None:
    assert check(correct()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(without_event(7), "its events have the versions", id="lost event of a shipment"),
        pytest.param(without_event(8), "follows nothing", id="lost event of a split"),
        pytest.param(
            with_changed_event(8, split(4, "whole", 4, one=1, three=2)), "its parts have the units", id="lost unit"
        ),
        pytest.param(
            with_changed_event(8, split(4, "whole", 4, one=2, three=2)),
            "was reported with the allocations",
            id="other parts",
        ),
        pytest.param(with_changed_event(12, of_units("ITEMS_CANCELLED", 5, 3, 0)), "the targets", id="shipped again"),
        pytest.param(
            with_changed_event(6, of_units("CANCELLED", 3, 4, 0)), "ORDER_PARTIALLY_SHIPPED follows", id="shipped late"
        ),
        pytest.param(
            with_reservation(reservation("rest", 2, "CONFIRMED")), "in the wrong state", id="shipped, but reserved"
        ),
        pytest.param(
            with_orders(Order("order", 1, "SHIPPED", 7, {PRODUCT: 4}, {PRODUCT: 1}, {PRODUCT: 2})),
            "in the wrong state",
            id="cancelled, but shipped",
        ),
        pytest.param(
            with_changed_event(19, of_units("RETURNED", 7, 3, 3)), "1 units of (7, 'NORTH') were", id="restocked only"
        ),
        pytest.param(without_event(21), "without a call", id="returned without a movement"),
        pytest.param(without_event(20), "were not all added", id="movement without the units"),
        pytest.param(with_item(quantity=9, version=5), "on hand", id="restocked twice"),
    ],
)
def test_a_violation_is_found(change: Callable[[History], History], expected: str) -> None:
    violations = check(change(correct()))

    assert any(expected in violation for violation in violations), violations


def test_units_of_an_expired_reservation_may_be_reserved_again() -> None:
    events = [
        of_item(1, 10, 0, 1),
        of_movement(21, 1, "RECEIVED", 10, 10),
        of_reservation("RESERVED", 2, "old", 4),
        of_reservation("RESERVATION_EXPIRED", 3, "old", 4),
        split(4, "old", 4, new=4),
        of_reservation("RESERVED", 5, "new", 4),
        of_reservation("RESERVATION_CONFIRMED", 6, "new", 4),
    ]
    old = replace(reservation("old", 4, "REPLACED"), was_confirmed=False)
    rows = {"old": old, "new": reservation("new", 4, "CONFIRMED")}
    snapshot = Snapshot({ITEM: Item(ITEM, PRODUCT, "NORTH", 10, 4, 1)}, rows)

    assert check_events(events, snapshot)[1] == []
    assert check_events([*events[:4], *events[5:]], snapshot)[1], "the replacement has no event"
    assert check_events([*events[:5], *events[6:]], snapshot)[1], "the units were not reserved again"
