"""The checker knows orders whose lines change."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import check
from tests.faults.history import (
    AddStock,
    Answer,
    Attempt,
    Call,
    CancelUnits,
    ChangeLines,
    ChangeStatus,
    CreateOrder,
    Event,
    History,
    Info,
    Item,
    Operation,
    Order,
    Outcome,
    Refusal,
    ReturnUnits,
    ShipUnits,
    Snapshot,
)
from tests.faults.test_checker import (
    ITEM,
    PRODUCT,
    call,
    of_item,
    of_movement,
    of_reservation,
    with_call,
    with_item,
    with_orders,
    with_reservation,
    without_event,
)
from tests.faults.test_checker_of_parts import RESTOCKED, of_units, reservation, split, with_changed_event

pytestmark = pytest.mark.short
PRICE = 19.99
RAISE, LOWER, SHIP, CANCEL, RETURN = "raise", "lower", "ship", "cancel", "return"


def of(request_id: str, operation: Operation, *outcomes: Outcome) -> Call:
    return Call(operation, request_id, [Attempt(0, 1, outcome) for outcome in outcomes])


def of_order(
    kind: str, version: int, ordered: int, kept: int, shipped: int, total: float, change: str = "", **details: Any
) -> Event:
    """An event of the order, which has a fee of 1 after a change."""
    returned = RESTOCKED if kind == "RETURNED" else ()
    changed = of_units(kind, version, kept, shipped, returned)
    items = [{"product_id": PRODUCT, "quantity": ordered, "price": PRICE}]
    charges = {"charges": [{"kind": "FEE", "label": change, "amount": 1}]} if change else {}
    return replace(changed, data={**changed.data, "items": items, "total_amount": total, **charges, **details})


def of_ours(kind: str, number: int, reservation_id: str, units: int, version: int = 0) -> Event:
    changed = of_reservation(kind, number, reservation_id, units)
    caused = {"order_version": version} if version else {}
    return replace(changed, data={**changed.data, "order_id": "order", **caused})


def units_of(name: str, units: int, **more: str) -> dict[str, Any]:
    return {name: {**more, "items": [{"product_id": PRODUCT, "quantity": units}]}}


def correct() -> History:
    """An order of two units gets three more, but not the next four. Then one is shipped and one cancelled by a change.

    One more is cancelled, the others are shipped, and one comes back.
    """
    calls = [
        call(AddStock(PRODUCT, "NORTH", 10), Answer(ITEM)),
        call(CreateOrder(1, ((PRODUCT, 2),)), Answer("order")),
        of(RAISE, ChangeLines("order", ((PRODUCT, 5),), ((PRODUCT, 3),)), Info("UNAVAILABLE"), Answer("order")),
        of("refused", ChangeLines("order", ((PRODUCT, 9),), ((PRODUCT, 4),)), Refusal("CONTENTION")),
        call(ChangeStatus("order", "CONFIRMED"), Answer("order")),
        call(ChangeStatus("order", "PROCESSING"), Answer("order")),
        of(SHIP, ShipUnits("order", ((PRODUCT, 1),)), Answer("order")),
        of(LOWER, ChangeLines("order", ((PRODUCT, 4),), ()), Answer("order")),
        of(CANCEL, CancelUnits("order", ((PRODUCT, 1),)), Answer("order")),
        call(ChangeStatus("order", "SHIPPED"), Answer("order")),
        of(RETURN, ReturnUnits("order", ((PRODUCT, 1),)), Answer("order")),
    ]
    events = [
        of_order("CREATED", 1, 2, 2, 0, 39.98),
        of_order("CHANGED", 2, 5, 5, 0, 100.95, RAISE),
        of_order("CHANGED", 3, 5, 5, 0, 100.95, RAISE),
        of_order("CONFIRMED", 4, 5, 5, 0, 100.95, RAISE),
        of_order("PROCESSING", 5, 5, 5, 0, 100.95, RAISE),
        of_order("PARTIALLY_SHIPPED", 6, 5, 5, 1, 100.95, RAISE, **units_of("shipment", 1, tracking_number=SHIP)),
        of_order("CHANGED", 7, 5, 4, 1, 80.96, LOWER),
        of_order("ITEMS_CANCELLED", 8, 5, 3, 1, 80.96, LOWER, **units_of("cancellation", 1, reason=CANCEL)),
        of_order("SHIPPED", 9, 5, 3, 3, 80.96, LOWER),
        of_order("RETURNED", 10, 5, 3, 3, 80.96, LOWER, **units_of("return", 1, reason=RETURN)),
        of_item(1, 10, 0, 1),
        of_ours("RESERVED", 2, "first", 2),
        of_ours("RESERVED", 3, "added", 3, 2),
        of_ours("RESERVED", 4, "not-added", 4, 3),
        of_ours("RELEASED", 5, "not-added", 4, 3),
        of_ours("RESERVATION_CONFIRMED", 6, "first", 2),
        of_ours("RESERVATION_CONFIRMED", 7, "added", 3),
        split(8, "first", 2, shipped=1, rest=1),
        of_ours("FULFILLED", 9, "shipped", 1, 6),
        of_item(10, 9, 4, 2),
        of_ours("RELEASED", 11, "rest", 1, 7),
        split(12, "added", 3, cancelled=1, last=2),
        of_ours("RELEASED", 13, "cancelled", 1, 8),
        of_ours("FULFILLED", 14, "last", 2, 9),
        of_item(15, 7, 0, 3),
        of_item(16, 8, 0, 4),
        of_movement(21, 1, "RECEIVED", 10, 10),
        of_movement(22, 2, "FULFILLED", -1, 9),
        of_movement(23, 3, "FULFILLED", -2, 7),
        of_movement(24, 4, "RETURNED", 1, 8),
    ]
    reservations = [
        reservation("first", 2, "REPLACED"),
        reservation("added", 3, "REPLACED"),
        replace(reservation("not-added", 4, "RELEASED"), was_confirmed=False),
        reservation("shipped", 1, "FULFILLED"),
        reservation("rest", 1, "RELEASED"),
        reservation("cancelled", 1, "RELEASED"),
        reservation("last", 2, "FULFILLED"),
    ]
    order = Order("order", 1, "SHIPPED", 10, {PRODUCT: 5}, {PRODUCT: 1}, {PRODUCT: 2})
    items = {ITEM: Item(ITEM, PRODUCT, "NORTH", 8, 0, 4)}
    return History(calls, events, Snapshot(items, {each.id: each for each in reservations}, {"order": order}))


def without_call(request_id: str) -> Callable[[History], History]:
    return lambda history: replace(history, calls=[each for each in history.calls if each.request_id != request_id])


def test_a_correct_history_of_changes_passes() -> None:
    assert check(correct()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(without_call(RAISE), "without a call", id="changed without a call"),
        pytest.param(without_call(SHIP), "without a call", id="shipped without a call"),
        pytest.param(without_call(CANCEL), "without a call", id="cancelled without a call"),
        pytest.param(without_call(RETURN), "without a call", id="came back without a call"),
        pytest.param(
            with_call(of("other", ShipUnits("order", ((PRODUCT, 1),)), Answer("order"))),
            "took effect 0 times",
            id="lost shipment",
        ),
        pytest.param(
            with_changed_event(2, of_order("CHANGED", 3, 5, 5, 0, 100.95, "refused")),
            "took effect 1 times",
            id="refused change",
        ),
        pytest.param(
            with_changed_event(2, of_order("CHANGED", 3, 6, 6, 0, 100.95, RAISE)), "units were added", id="added units"
        ),
        pytest.param(
            with_changed_event(6, of_order("CHANGED", 7, 5, 3, 1, 60.97, LOWER)), "had the effect", id="other effect"
        ),
        pytest.param(
            with_changed_event(1, of_order("CHANGED", 2, 5, 5, 0, 40.98, RAISE)), "the total", id="total of a change"
        ),
        pytest.param(
            with_changed_event(4, of_order("PROCESSING", 5, 5, 5, 0, 100.96, RAISE)), "the total", id="other total"
        ),
        pytest.param(without_event(2), "its events have the versions", id="lost event of a failed change"),
        pytest.param(
            with_changed_event(14, of_ours("RELEASED", 5, "not-added", 4, 2)), None, id="released for the change before"
        ),
        pytest.param(
            with_changed_event(20, of_ours("RELEASED", 11, "rest", 1, 6)), "were let go", id="let go what stays"
        ),
        pytest.param(
            with_reservation(replace(reservation("not-added", 4, "HELD"), was_confirmed=False)),
            "in the wrong state",
            id="units of a failed change stay",
        ),
        pytest.param(
            with_reservation(reservation("further", 1, "RELEASED")), "has the reservations", id="reserved again"
        ),
        pytest.param(
            with_orders(Order("order", 1, "SHIPPED", 10, {PRODUCT: 6}, {PRODUCT: 1}, {PRODUCT: 2})),
            "changes have added",
            id="added twice",
        ),
        pytest.param(
            with_orders(Order("order", 1, "SHIPPED", 10, {PRODUCT: 5}, {PRODUCT: 1}, {PRODUCT: 1})),
            "but its last event has",
            id="another number of kept units",
        ),
        pytest.param(with_item(quantity=9, version=5), "on hand", id="restocked twice"),
    ],
)
def test_a_violation_is_found(change: Callable[[History], History], expected: str | None) -> None:
    violations = check(change(correct()))

    if expected is None:
        assert violations == []
    else:
        assert any(expected in violation for violation in violations), violations


def test_an_interrupted_change_keeps_its_units_until_its_intent_ends() -> None:
    history = correct()
    orders = {"order": Order("order", 1, "PROCESSING", 5, {PRODUCT: 5}, {PRODUCT: 0}, {PRODUCT: 0})}
    reservations = {
        "first": reservation("first", 2, "CONFIRMED"),
        "added": reservation("added", 3, "CONFIRMED"),
        "not-added": reservation("not-added", 4, "CONFIRMED"),
    }
    events = [
        *history.events[:5],
        *history.events[10:14],
        *history.events[15:17],
        of_ours("RESERVATION_CONFIRMED", 8, "not-added", 4),
        history.events[26],
    ]
    items = {ITEM: Item(ITEM, PRODUCT, "NORTH", 10, 9, 1)}
    interrupted = of("refused", ChangeLines("order", ((PRODUCT, 9),), ((PRODUCT, 4),)), Info("UNAVAILABLE"))
    snapshot = Snapshot(items, reservations, orders, frozenset({"order"}))
    left = replace(history, calls=[*history.calls[:3], interrupted, *history.calls[4:6]], events=events)

    assert check(replace(left, snapshot=snapshot)) == []
    assert any(
        "in the wrong state" in each for each in check(replace(left, snapshot=replace(snapshot, intents=frozenset())))
    )
