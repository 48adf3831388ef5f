"""The checker accepts a correct history, and finds a violation in each history with one change."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import check, check_tenants
from tests.faults.history import (
    EXTENDED,
    AddStock,
    Answer,
    Attempt,
    Call,
    ChangeStatus,
    ChangeStock,
    CreateOrder,
    Event,
    History,
    Info,
    Item,
    Operation,
    Order,
    Outcome,
    Refusal,
    Release,
    Reservation,
    Reserve,
    Snapshot,
)

pytestmark = pytest.mark.short
PRODUCT, ITEM = 7, 1


def call(operation: Operation, *outcomes: Outcome) -> Call:
    return Call(operation, "request", [Attempt(0, 1, outcome) for outcome in outcomes])


def event(kind: str, number: int, /, **data: Any) -> Event:
    topic = "order-events" if kind.startswith("ORDER") else "inventory-events"
    key = str(data.get("product_id", data.get("id")))
    return Event(topic, 0, number, key, f"event-{topic}-{number}", kind, number, data)


def of_order(status: str, number: int, version: int) -> Event:
    return event(f"ORDER_{status}", number, id="order", version=version, items=[{"product_id": PRODUCT}])


def of_reservation(kind: str, number: int, reservation_id: str, units: int) -> Event:
    parts = [{"item_id": ITEM, "quantity": units, "location": "NORTH"}]
    return event(f"STOCK_{kind}", number, product_id=PRODUCT, reservation_id=reservation_id, allocations=parts)


def of_item(number: int, quantity: int, reserved: int, version: int) -> Event:
    numbers = {"quantity": quantity, "reserved_quantity": reserved, "version": version}
    return event("STOCK_UPDATED", number, product_id=PRODUCT, item_id=ITEM, **numbers)


def of_movement(number: int, revision: int, kind: str, quantity: int, after: int) -> Event:
    numbers = {"revision": revision, "kind": kind, "quantity": quantity, "quantity_after": after}
    return event("STOCK_MOVED", number, product_id=PRODUCT, item_id=ITEM, **numbers)


def correct() -> History:
    """Ten units are added. An order of four is shipped, a reservation of two is released, one of three is held."""
    calls = [
        call(AddStock(PRODUCT, "NORTH", 10), Info("UNAVAILABLE"), Answer(ITEM)),
        call(CreateOrder(1, ((PRODUCT, 4),)), Answer("order"), Answer("order")),
        call(ChangeStatus("order", "CONFIRMED"), Answer("order")),
        call(ChangeStatus("order", "PROCESSING"), Info("DEADLINE_EXCEEDED")),
        call(ChangeStatus("order", "SHIPPED"), Answer("order")),
        call(ChangeStatus("order", "CANCELLED"), Refusal("ILLEGAL_TRANSITION")),
        call(Reserve("released", PRODUCT, 2), Answer("second")),
        call(Release("second"), Answer(2), Answer(2)),
        call(Reserve("kept", PRODUCT, 3), Info("UNAVAILABLE")),
        call(Reserve("refused", PRODUCT, 9), Refusal("INSUFFICIENT_STOCK")),
    ]
    events = [
        of_item(1, 10, 0, 1),
        of_reservation("RESERVED", 2, "first", 4),
        of_order("CREATED", 1, 1),
        of_reservation("RESERVED", 3, "second", 2),
        of_reservation("RESERVATION_CONFIRMED", 4, "first", 4),
        of_order("CONFIRMED", 2, 2),
        of_reservation("RELEASED", 5, "second", 2),
        of_order("PROCESSING", 3, 3),
        of_order("SHIPPED", 4, 4),
        of_reservation("FULFILLED", 6, "first", 4),
        of_item(7, 6, 0, 2),
        of_reservation("RESERVED", 8, "third", 3),
        of_movement(21, 1, "RECEIVED", 10, 10),
        of_movement(22, 2, "FULFILLED", -4, 6),
    ]
    snapshot = Snapshot(
        {ITEM: Item(ITEM, PRODUCT, "NORTH", 6, 3, 2)},
        {
            "first": Reservation("first", PRODUCT, 4, "order", "FULFILLED", {ITEM: 4}, True),
            "second": Reservation("second", PRODUCT, 2, "released", "RELEASED", {ITEM: 2}, False),
            "third": Reservation("third", PRODUCT, 3, "kept", "HELD", {ITEM: 3}, False),
        },
        {"order": Order("order", 1, "SHIPPED", 4, {PRODUCT: 4})},
    )
    return History(calls, events, snapshot)


def without_event(number: int) -> Callable[[History], History]:
    return lambda history: replace(history, events=[each for each in history.events if each != history.events[number]])


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
    """Swaps two events on Kafka."""

    def change(history: History) -> History:
        events = list(history.events)
        first, second = events[one], events[other]
        events[one], events[other] = replace(second, offset=first.offset), replace(first, offset=second.offset)
        return replace(history, events=events)

    return change


def test_a_correct_history_passes() -> None:
    assert check(correct()) == []


def withheld() -> History:
    """The correct history, and then two of the free units are withheld."""
    updated = event(
        "STOCK_UPDATED",
        30,
        product_id=PRODUCT,
        item_id=ITEM,
        quantity=6,
        reserved_quantity=3,
        withheld_quantity=2,
        version=3,
    )
    history = with_event(of_withholding(31, 3, 2, 2))(with_event(updated)(correct()))
    return with_item(version=3, withheld=2, withholdings=2)(history)


def of_withholding(number: int, revision: int, units: int, after: int) -> Event:
    movement = of_movement(number, revision, "WITHHELD", 0, 6)
    return replace(movement, data={**movement.data, "withheld": units, "withheld_after": after})


def test_a_correct_history_with_withheld_units_passes() -> None:
    assert check(withheld()) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(without_event(-1), id="no movement"),
        pytest.param(with_event(of_withholding(32, 4, 2, 4)), id="two movements"),
        pytest.param(with_event(of_withholding(32, 4, 0, 0)), id="another total"),
        pytest.param(with_item(withheld=0), id="the counter is left"),
        pytest.param(with_item(withholdings=0), id="no withholding"),
        pytest.param(with_event(of_reservation("RESERVED", 33, "fourth", 2)), id="withheld units are reserved"),
    ],
)
def test_a_violation_of_withheld_units_is_found(change: Callable[[History], History]) -> None:
    violations = check(change(withheld()))
    assert any(f"item {ITEM}" in violation for violation in violations), violations


def moved() -> History:
    """The correct history, and then one of the free units is moved to SOUTH, where two are received before."""
    change = ChangeStock(PRODUCT, (("NORTH", -1, 0), ("SOUTH", 1, 0)))
    history = with_call(call(change, Info("UNAVAILABLE"), Answer(ITEM)))(correct())
    events = [
        *history.events,
        at_south(of_item(30, 2, 0, 1)),
        at_south(of_movement(31, 1, "RECEIVED", 2, 2)),
        of_item(32, 5, 3, 3),
        of_change(of_movement(33, 3, "MOVED", -1, 5)),
        at_south(of_item(34, 3, 0, 2)),
        of_change(at_south(of_movement(35, 2, "MOVED", 1, 3))),
    ]
    history = with_call(call(AddStock(PRODUCT, "SOUTH", 2), Answer(ITEM + 1)))(replace(history, events=events))
    items = {ITEM: Item(ITEM, PRODUCT, "NORTH", 5, 3, 3), ITEM + 1: Item(ITEM + 1, PRODUCT, "SOUTH", 3, 0, 2)}
    return replace(history, snapshot=replace(history.snapshot, items=items))


def at_south(one: Event) -> Event:
    return replace(one, data={**one.data, "item_id": ITEM + 1, "location": "SOUTH"})


def of_change(movement: Event) -> Event:
    return replace(movement, data={"location": "NORTH", **movement.data, "reference": "request"})


def without_reference(number: int) -> Callable[[History], History]:
    def change(history: History) -> History:
        events = list(history.events)
        data = {name: value for name, value in events[number].data.items() if name != "reference"}
        events[number] = replace(events[number], data=data)
        return replace(history, events=events)

    return change


def test_a_correct_history_with_moved_units_passes() -> None:
    assert check(moved()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(without_event(-1), "had the effects", id="only the first movement"),
        pytest.param(without_reference(-1), "had the effects", id="another movement"),
        pytest.param(
            lambda history: replace(history, calls=[each for each in history.calls if not is_change(each)]),
            "without a call",
            id="no call",
        ),
        pytest.param(with_event(of_change(of_movement(36, 4, "MOVED", -1, 4))), "had the effects", id="again"),
        pytest.param(without_event(-2), "were not all added", id="the other item is left"),
        pytest.param(without_event(-4), "were removed", id="the item is left"),
    ],
)
def test_a_violation_of_moved_units_is_found(change: Callable[[History], History], expected: str) -> None:
    violations = check(change(moved()))
    assert any(expected in violation for violation in violations), violations


def test_a_refused_change_of_stock_has_no_effect() -> None:
    refused = call(ChangeStock(PRODUCT, (("NORTH", -1, 0), ("SOUTH", 1, 0))), Refusal("INSUFFICIENT_STOCK"))
    history = moved()
    calls = [refused if is_change(each) else each for each in history.calls]
    assert any("is refused" in violation for violation in check(replace(history, calls=calls)))


def is_change(each: Call) -> bool:
    return isinstance(each.operation, ChangeStock)


def test_repeats_with_the_same_id_pass() -> None:
    history = correct()
    repeats = [replace(each, offset=each.offset + 100) for each in history.events]
    assert check(replace(history, events=history.events + repeats)) == []


def test_an_order_without_a_response_that_was_not_stored_passes_once_its_reservation_has_expired() -> None:
    history = with_call(call(CreateOrder(2, ((PRODUCT, 1),)), Info("UNAVAILABLE")))(correct())
    history = with_reservation(Reservation("lost", PRODUCT, 1, "never", "EXPIRED", {ITEM: 1}, False))(history)
    events = [
        *history.events,
        of_reservation("RESERVED", 9, "lost", 1),
        of_reservation("RESERVATION_EXPIRED", 10, "lost", 1),
    ]
    assert check(replace(history, events=events)) == []


def confirmed_and_released() -> History:
    history = with_call(call(Reserve("confirmed-and-released", PRODUCT, 2), Answer("fourth")))(correct())
    history = with_call(call(Release("fourth"), Answer(2)))(history)
    history = with_reservation(
        Reservation("fourth", PRODUCT, 2, "confirmed-and-released", "RELEASED", {ITEM: 2}, True)
    )(history)
    kinds = ("RESERVED", "RESERVATION_CONFIRMED", "RELEASED")
    more = [of_reservation(kind, number, "fourth", 2) for number, kind in enumerate(kinds, 9)]
    return replace(history, events=[*history.events, *more])


def test_a_confirmed_reservation_may_be_released() -> None:
    assert check(confirmed_and_released()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(without_event(2), "CONFIRMED follows nothing", id="lost event of an order"),
        pytest.param(without_event(5), "versions", id="lost event in the middle"),
        pytest.param(without_event(11), "has no events", id="lost event of a reservation"),
        pytest.param(without_event(10), "by its events", id="lost event of an item"),
        pytest.param(
            lambda _: without_event(15)(confirmed_and_released()),
            "was confirmed, but its events are",
            id="lost event of a reservation that left no gap",
        ),
        pytest.param(
            with_reservation(Reservation("first", PRODUCT, 4, "order", "FULFILLED", {ITEM: 4}, False)),
            "was never confirmed, but its events are",
            id="event of a reservation without its effect",
        ),
        pytest.param(swapped(2, 5), "follows", id="events of an order out of order"),
        pytest.param(swapped(3, 6), "follows", id="events of a reservation out of order"),
        pytest.param(
            with_event(replace(of_order("SHIPPED", 4, 4), offset=9, id="other", sequence=9)),
            "SHIPPED follows SHIPPED",
            id="two events for one effect",
        ),
        pytest.param(
            with_event(replace(of_order("SHIPPED", 4, 4), offset=9, id="other")),
            "was assigned to the events",
            id="number assigned twice",
        ),
        pytest.param(
            with_event(replace(of_order("CREATED", 1, 1), offset=9, type="ORDER_CANCELLED")),
            "two different events",
            id="id assigned twice",
        ),
        pytest.param(with_event(of_order("DELIVERED", 9, 5)), "but its events are", id="event without its effect"),
        pytest.param(
            with_event(replace(of_reservation("RELEASED", 9, "x", 1), key="8")),
            "there is no such reservation",
            id="event without a reservation",
        ),
        pytest.param(with_item(quantity=7), "on hand", id="unit without an addition"),
        pytest.param(with_item(reserved=2), "in active reservations", id="too few units reserved"),
        pytest.param(with_item(version=3), "by its events", id="version without an event"),
        pytest.param(without_event(12), "the movement", id="lost movement"),
        pytest.param(without_event(13), "its movements add up to", id="lost last movement"),
        pytest.param(
            with_event(of_movement(23, 2, "FULFILLED", -4, 6)),
            "the movement",
            id="movement of one change written twice",
        ),
        pytest.param(
            with_event(of_reservation("RESERVED", 9, "fourth", 4)),
            "7 of 6 units are reserved",
            id="oversold temporarily",
        ),
        pytest.param(
            with_reservation(Reservation("again", PRODUCT, 2, "released", "EXPIRED", {ITEM: 2}, False)),
            "2 times",
            id="stock reserved twice",
        ),
        pytest.param(
            with_reservation(Reservation("r", PRODUCT, 9, "refused", "EXPIRED", {ITEM: 9}, False)),
            "is refused",
            id="refused, with an effect",
        ),
        pytest.param(
            with_reservation(Reservation("first", PRODUCT, 4, "order", "CONFIRMED", {ITEM: 4}, True)),
            "in the wrong state",
            id="shipped, with stock still reserved",
        ),
        pytest.param(
            with_reservation(Reservation("stray", PRODUCT, 1, "nobody", "CONFIRMED", {ITEM: 1}, True)),
            "there is no order",
            id="reservation without an order",
        ),
        pytest.param(
            with_reservation(Reservation("third", PRODUCT, 3, "kept", "RELEASED", {ITEM: 3}, False)),
            "without a call",
            id="released without a call",
        ),
        pytest.param(
            with_reservation(Reservation("third", PRODUCT, 3, "kept", "HELD", {ITEM: 2}, False)),
            "do not add up",
            id="allocations too small",
        ),
        pytest.param(with_orders(), "there is no such order", id="acknowledged order lost"),
        pytest.param(with_orders(Order("order", 1, "SHIPPED", 4, {PRODUCT: 5})), "created", id="other lines"),
        pytest.param(
            with_orders(Order("order", 1, "SHIPPED", 4, {PRODUCT: 4}), Order("two", 1, "PENDING", 1, {PRODUCT: 4})),
            "2 times",
            id="order created twice",
        ),
        pytest.param(
            with_orders(Order("order", 2, "SHIPPED", 4, {PRODUCT: 4})), "without a call", id="order without a call"
        ),
        pytest.param(
            with_call(call(ChangeStatus("order", "DELIVERED"), Answer("order"))),
            "has no event",
            id="acknowledged status change lost",
        ),
        pytest.param(
            with_call(call(AddStock(PRODUCT, "NORTH", 3), Answer(ITEM))), "0 times", id="acknowledged stock lost"
        ),
        pytest.param(with_call(call(AddStock(PRODUCT, "SOUTH", 3), Answer(9))), "0 times", id="acknowledged item lost"),
        pytest.param(
            with_call(call(Reserve("gone", PRODUCT, 1), Answer("gone"))), "0 times", id="acknowledged reservation lost"
        ),
        pytest.param(
            with_call(call(Reserve("kept-too", PRODUCT, 3), Answer("a"), Answer("b"))),
            "returned different results",
            id="two answers",
        ),
        pytest.param(with_call(call(Release("third"), Answer(3))), "returned 3 units", id="acknowledged release lost"),
        pytest.param(with_call(call(ChangeStatus("order", "X"), Info("INTERNAL"))), "INTERNAL", id="defect"),
        pytest.param(
            lambda history: replace(
                history, calls=[each for each in history.calls if each.operation != ChangeStatus("order", "PROCESSING")]
            ),
            "without a call",
            id="status change without a call",
        ),
        pytest.param(
            lambda history: replace(history, fault_free=True), "got no response", id="no response without a fault"
        ),
        pytest.param(
            lambda history: replace(history, dead_letters=["x"]),
            "became a dead letter",
            id="valid event became a dead letter",
        ),
        pytest.param(
            lambda history: replace(history, poison=frozenset("x")),
            "did not become a dead letter",
            id="invalid event did not become a dead letter",
        ),
        pytest.param(lambda history: replace(history, unfinished="work is left"), "work is left", id="not at rest"),
        pytest.param(
            lambda history: replace(history, seen=frozenset({ITEM, "second", "of-another-tenant"})),
            "a page has the row of-another-tenant",
            id="row of another tenant on a page",
        ),
        pytest.param(
            with_event(replace(of_order("CREATED", 9, 1), key="other-order")),
            "has the key other-order",
            id="key of an event",
        ),
        pytest.param(
            with_call(call(ChangeStatus("order", EXTENDED), Answer("order"))),
            "succeeded, but has no event",
            id="acknowledged extension lost",
        ),
        pytest.param(
            with_event(of_order("EXTENDED", 40, 5)), "became EXTENDED without a call", id="extended without a call"
        ),
    ],
)
def test_a_violation_is_found(change: Callable[[History], History], expected: str) -> None:
    violations = check(change(correct()))
    assert any(expected in violation for violation in violations), violations


def of_tenant(history: History, tenant: str) -> History:
    """The same history, of a tenant whose rows and events have other ids."""
    snapshot = history.snapshot
    events = [
        replace(
            each,
            tenant=tenant,
            id=f"{tenant}-{each.id}",
            key=f"{tenant}/{each.key}" if each.topic == "inventory-events" else each.key,
            sequence=each.sequence + 100,
        )
        for each in history.events
    ]
    return replace(history, tenant=tenant, events=events, snapshot=snapshot)


def test_tenants_with_the_same_history_pass() -> None:
    assert check_tenants([of_tenant(correct(), "acme"), correct()]) == []


@pytest.mark.parametrize("name", ["other", "order", "second"])
def test_an_error_that_names_another_tenant_or_its_rows_is_found(name: str) -> None:
    refused = call(Release("unknown"), Refusal("RESERVATION_NOT_FOUND", f"there is a reservation: {name}"))
    acme = History([refused], [], Snapshot(), tenant="acme")

    found = check_tenants([acme, of_tenant(correct(), "other")])

    assert any(f"acme: an error names {name} of another tenant" in violation for violation in found), found


def test_an_event_that_two_tenants_share_is_found() -> None:
    shared = of_tenant(correct(), "acme")
    shared.events[0] = replace(shared.events[0], id="event-inventory-events-1")

    found = check_tenants([shared, correct()])

    assert "two different events have the id event-inventory-events-1: STOCK_UPDATED and STOCK_UPDATED" in found
