"""The checker knows a history that is in order, and finds each thing that is not, when a single one is changed."""

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
    Event,
    History,
    Hold,
    Info,
    Item,
    Operation,
    Order,
    Outcome,
    Place,
    Refusal,
    Release,
    Reservation,
    Snapshot,
    Step,
)

pytestmark = pytest.mark.short
PRODUCT, ITEM = 7, 1


def call(operation: Operation, *outcomes: Outcome) -> Call:
    return Call(operation, "request", [Attempt(0, 1, outcome) for outcome in outcomes])


def event(kind: str, number: int, **data: Any) -> Event:
    topic = "order-events" if kind.startswith("ORDER") else "inventory-events"
    key = str(data.get("product_id", data.get("id")))
    return Event(topic, 0, number, key, f"event-{topic}-{number}", kind, number, data)


def of_order(status: str, number: int, version: int) -> Event:
    return event(f"ORDER_{status}", number, id="order", version=version, items=[{"product_id": PRODUCT}])


def of_hold(kind: str, number: int, reservation_id: str, units: int) -> Event:
    parts = [{"item_id": ITEM, "quantity": units, "location": "NORTH"}]
    return event(f"STOCK_{kind}", number, product_id=PRODUCT, reservation_id=reservation_id, allocations=parts)


def of_item(number: int, quantity: int, reserved: int, version: int) -> Event:
    numbers = {"quantity": quantity, "reserved_quantity": reserved, "version": version}
    return event("STOCK_UPDATED", number, product_id=PRODUCT, item_id=ITEM, **numbers)


def sound() -> History:
    """Ten units came, an order of four was shipped, a hold of two was given back, one of three is still there."""
    calls = [
        call(AddStock(PRODUCT, "NORTH", 10), Info("UNAVAILABLE"), Answer(ITEM)),
        call(Place(1, ((PRODUCT, 4),)), Answer("order"), Answer("order")),
        call(Step("order", "CONFIRMED"), Answer("order")),
        call(Step("order", "PROCESSING"), Info("DEADLINE_EXCEEDED")),
        call(Step("order", "SHIPPED"), Answer("order")),
        call(Step("order", "CANCELLED"), Refusal("ILLEGAL_TRANSITION")),
        call(Hold("given-back", PRODUCT, 2), Answer("second")),
        call(Release("second"), Answer(2), Answer(2)),
        call(Hold("kept", PRODUCT, 3), Info("UNAVAILABLE")),
        call(Hold("refused", PRODUCT, 9), Refusal("INSUFFICIENT_STOCK")),
    ]
    events = [
        of_item(1, 10, 0, 1),
        of_hold("RESERVED", 2, "first", 4),
        of_order("CREATED", 1, 1),
        of_hold("RESERVED", 3, "second", 2),
        of_hold("RESERVATION_CONFIRMED", 4, "first", 4),
        of_order("CONFIRMED", 2, 2),
        of_hold("RELEASED", 5, "second", 2),
        of_order("PROCESSING", 3, 3),
        of_order("SHIPPED", 4, 4),
        of_hold("FULFILLED", 6, "first", 4),
        of_item(7, 6, 0, 2),
        of_hold("RESERVED", 8, "third", 3),
    ]
    snapshot = Snapshot(
        {ITEM: Item(ITEM, PRODUCT, "NORTH", 6, 3, 2)},
        {
            "first": Reservation("first", PRODUCT, 4, "order", "FULFILLED", {ITEM: 4}, True),
            "second": Reservation("second", PRODUCT, 2, "given-back", "RELEASED", {ITEM: 2}, False),
            "third": Reservation("third", PRODUCT, 3, "kept", "HELD", {ITEM: 3}, False),
        },
        {"order": Order("order", 1, "SHIPPED", 4, {PRODUCT: 4})},
    )
    return History(calls, events, snapshot)


def without_event(number: int) -> Callable[[History], History]:
    return lambda history: replace(history, events=history.events[:number] + history.events[number + 1 :])


def with_event(another: Event, at: int | None = None) -> Callable[[History], History]:
    def change(history: History) -> History:
        events = list(history.events)
        events.insert(len(events) if at is None else at, another)
        return replace(history, events=events)

    return change


def with_call(another: Call) -> Callable[[History], History]:
    return lambda history: replace(history, calls=[*history.calls, another])


def with_item(**numbers: Any) -> Callable[[History], History]:
    def change(history: History) -> History:
        item = replace(history.snapshot.items[ITEM], **numbers)
        return replace(history, snapshot=replace(history.snapshot, items={ITEM: item}))

    return change


def with_reservation(reservation: Reservation) -> Callable[[History], History]:
    def change(history: History) -> History:
        known = dict(history.snapshot.reservations) | {reservation.id: reservation}
        return replace(history, snapshot=replace(history.snapshot, reservations=known))

    return change


def with_orders(*orders: Order) -> Callable[[History], History]:
    return lambda history: replace(
        history, snapshot=replace(history.snapshot, orders={order.id: order for order in orders})
    )


def swapped(one: int, other: int) -> Callable[[History], History]:
    """These two events came in each other's place."""

    def change(history: History) -> History:
        events = list(history.events)
        first, second = events[one], events[other]
        events[one], events[other] = replace(second, offset=first.offset), replace(first, offset=second.offset)
        return replace(history, events=events)

    return change


def test_what_is_in_order_passes() -> None:
    assert check(sound()) == []


def test_a_repeat_under_its_own_id_passes() -> None:
    history = sound()
    repeats = [replace(each, offset=each.offset + 100) for each in history.events]
    assert check(replace(history, events=history.events + repeats)) == []


def test_an_order_that_lost_its_answer_and_was_never_stored_passes_once_its_hold_has_ended() -> None:
    history = with_call(call(Place(2, ((PRODUCT, 1),)), Info("UNAVAILABLE")))(sound())
    history = with_reservation(Reservation("lost", PRODUCT, 1, "never", "EXPIRED", {ITEM: 1}, False))(history)
    events = [*history.events, of_hold("RESERVED", 9, "lost", 1), of_hold("RESERVATION_EXPIRED", 10, "lost", 1)]
    assert check(replace(history, events=events)) == []


def confirmed_and_given_back() -> History:
    history = with_call(call(Hold("regretted", PRODUCT, 2), Answer("fourth")))(sound())
    history = with_call(call(Release("fourth"), Answer(2)))(history)
    history = with_reservation(Reservation("fourth", PRODUCT, 2, "regretted", "RELEASED", {ITEM: 2}, True))(history)
    kinds = ("RESERVED", "RESERVATION_CONFIRMED", "RELEASED")
    story = [of_hold(kind, number, "fourth", 2) for number, kind in enumerate(kinds, 9)]
    return replace(history, events=[*history.events, *story])


def test_what_was_confirmed_may_be_given_back() -> None:
    assert check(confirmed_and_given_back()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(without_event(2), "CONFIRMED was told after nothing", id="lost event of an order"),
        pytest.param(without_event(5), "versions", id="lost event in the middle"),
        pytest.param(without_event(11), "nothing was told", id="lost event of a hold"),
        pytest.param(without_event(10), "by its events", id="lost event of an item"),
        pytest.param(
            lambda _: without_event(13)(confirmed_and_given_back()),
            "was confirmed, told were",
            id="lost event of a hold that left no gap",
        ),
        pytest.param(
            with_reservation(Reservation("first", PRODUCT, 4, "order", "FULFILLED", {ITEM: 4}, False)),
            "was never confirmed, told were",
            id="event of a hold without its effect",
        ),
        pytest.param(swapped(2, 5), "was told after", id="order's events out of order"),
        pytest.param(swapped(3, 6), "was told after", id="hold's events out of order"),
        pytest.param(
            with_event(replace(of_order("SHIPPED", 4, 4), offset=9, id="other", sequence=9)),
            "SHIPPED was told after SHIPPED",
            id="effect told twice",
        ),
        pytest.param(
            with_event(replace(of_order("SHIPPED", 4, 4), offset=9, id="other")),
            "was given to the events",
            id="number given twice",
        ),
        pytest.param(
            with_event(replace(of_order("CREATED", 1, 1), offset=9, type="ORDER_CANCELLED")),
            "two different events",
            id="id given twice",
        ),
        pytest.param(with_event(of_order("DELIVERED", 9, 5)), "told were", id="event without its effect"),
        pytest.param(
            with_event(replace(of_hold("RELEASED", 9, "x", 1), key="8")),
            "there is no such reservation",
            id="event of nothing",
        ),
        pytest.param(with_item(quantity=7), "are on hand", id="unit from nowhere"),
        pytest.param(with_item(reserved=2), "are reserved", id="reserved too little"),
        pytest.param(with_item(version=3), "by its events", id="version nobody heard of"),
        pytest.param(
            with_event(of_hold("RESERVED", 9, "fourth", 4)), "7 of 6 units are promised", id="oversold for a moment"
        ),
        pytest.param(
            with_reservation(Reservation("again", PRODUCT, 2, "given-back", "EXPIRED", {ITEM: 2}, False)),
            "2 times",
            id="hold made twice",
        ),
        pytest.param(
            with_reservation(Reservation("r", PRODUCT, 9, "refused", "EXPIRED", {ITEM: 9}, False)),
            "is refused",
            id="refused and done",
        ),
        pytest.param(
            with_reservation(Reservation("first", PRODUCT, 4, "order", "CONFIRMED", {ITEM: 4}, True)),
            "of its stock is",
            id="shipped and still here",
        ),
        pytest.param(
            with_reservation(Reservation("stray", PRODUCT, 1, "nobody", "CONFIRMED", {ITEM: 1}, True)),
            "there is no order",
            id="hold of an order that is not",
        ),
        pytest.param(
            with_reservation(Reservation("third", PRODUCT, 3, "kept", "RELEASED", {ITEM: 3}, False)),
            "nobody asked for",
            id="released unasked",
        ),
        pytest.param(
            with_reservation(Reservation("third", PRODUCT, 3, "kept", "HELD", {ITEM: 2}, False)),
            "all of its units",
            id="drawn too little",
        ),
        pytest.param(with_orders(), "there is no such order", id="acknowledged order lost"),
        pytest.param(with_orders(Order("order", 1, "SHIPPED", 4, {PRODUCT: 5})), "made", id="other lines"),
        pytest.param(
            with_orders(Order("order", 1, "SHIPPED", 4, {PRODUCT: 4}), Order("two", 1, "PENDING", 1, {PRODUCT: 4})),
            "2 times",
            id="order made twice",
        ),
        pytest.param(
            with_orders(Order("order", 2, "SHIPPED", 4, {PRODUCT: 4})), "nobody asked for", id="order of nobody"
        ),
        pytest.param(
            with_call(call(Step("order", "DELIVERED"), Answer("order"))), "did not happen", id="acknowledged step lost"
        ),
        pytest.param(
            with_call(call(AddStock(PRODUCT, "NORTH", 3), Answer(ITEM))), "0 times", id="acknowledged stock lost"
        ),
        pytest.param(with_call(call(AddStock(PRODUCT, "SOUTH", 3), Answer(9))), "0 times", id="acknowledged item lost"),
        pytest.param(with_call(call(Hold("gone", PRODUCT, 1), Answer("gone"))), "0 times", id="acknowledged hold lost"),
        pytest.param(
            with_call(call(Hold("kept-too", PRODUCT, 3), Answer("a"), Answer("b"))),
            "was answered with",
            id="two answers",
        ),
        pytest.param(
            with_call(call(Release("third"), Answer(3))), "was answered with 3", id="acknowledged release lost"
        ),
        pytest.param(with_call(call(Step("order", "X"), Info("INTERNAL"))), "INTERNAL", id="defect"),
        pytest.param(
            lambda history: replace(
                history, calls=[each for each in history.calls if each.operation != Step("order", "PROCESSING")]
            ),
            "nobody asked for",
            id="step unasked",
        ),
        pytest.param(lambda history: replace(history, calm=True), "had no answer", id="no answer in calm"),
        pytest.param(lambda history: replace(history, letters=["x"]), "was set aside", id="sound event set aside"),
        pytest.param(
            lambda history: replace(history, poison=frozenset("x")), "was not set aside", id="poison not set aside"
        ),
        pytest.param(lambda history: replace(history, restless="work is left"), "work is left", id="no rest"),
    ],
)
def test_what_is_not_in_order_is_found(change: Callable[[History], History], said: str) -> None:
    found = check(change(sound()))
    assert any(said in sentence for sentence in found), found
