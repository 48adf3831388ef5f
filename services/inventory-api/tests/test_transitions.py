"""What happens to reservations after they were made, and that each step happens at most once."""

from collections.abc import Callable
from functools import partial

import pytest
from stockroom import Stockroom, at_once

from inventory_api.domain.errors import ReservationExpired, ReservationNotFound, ReservationReleased
from inventory_api.domain.model import Line, Reservation, State


def told(stockroom: Stockroom, *, but: str = "STOCK_RESERVED") -> list[str]:
    """The types of what was told of reservations, without their beginning."""
    return [event.type for event in stockroom.events() if event.type not in (but, "STOCK_UPDATED")]


# --- confirm ---


def test_confirming_keeps_all_holds_of_an_order_for_good(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 5)
    stockroom.add(2, 5)
    held = stockroom.hold_lines("order-1", Line(1, 2), Line(2, 3))

    kept = stockroom.confirm("order-1")

    assert {each.id for each in kept} == {each.id for each in held}
    assert all(each.state is State.CONFIRMED and each.expires_at is None for each in kept)
    assert [stockroom.reservation(each) for each in kept] == kept
    assert stockroom.item(item).reserved_quantity == 2
    assert told(stockroom) == ["STOCK_RESERVATION_CONFIRMED"] * 2


def test_confirming_again_answers_the_same_and_tells_nothing(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    stockroom.hold(1, 2)

    assert stockroom.confirm() == stockroom.confirm()
    assert told(stockroom) == ["STOCK_RESERVATION_CONFIRMED"]


def test_an_order_without_reservations_can_not_be_confirmed(stockroom: Stockroom) -> None:
    with pytest.raises(ReservationNotFound) as refused:
        stockroom.confirm("nobody's")

    assert refused.value.metadata() == {"order_id": "nobody's"}


def test_an_order_with_one_hold_past_its_time_is_not_confirmed_at_all(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    stockroom.add(2, 5)
    lapsed, fresh = stockroom.hold_lines("order-1", Line(1, 2), Line(2, 3))
    stockroom.lapse(lapsed)

    with pytest.raises(ReservationExpired):
        stockroom.confirm("order-1")

    assert stockroom.stored_state(lapsed) is State.EXPIRED
    assert stockroom.stored_state(fresh) is State.HELD
    assert told(stockroom) == ["STOCK_RESERVATION_EXPIRED"]
    assert (stockroom.available(1), stockroom.available(2)) == (5, 2)


def test_an_order_with_an_expired_hold_stays_unconfirmed(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    stockroom.lapse(stockroom.hold(1, 2))
    stockroom.expire()

    for _ in range(2):
        with pytest.raises(ReservationExpired):
            stockroom.confirm()
    assert told(stockroom) == ["STOCK_RESERVATION_EXPIRED"]


def test_released_reservations_are_left_out_of_a_confirmation(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    stockroom.release(stockroom.hold(1, 2))
    second = stockroom.hold(1, 1)

    (kept,) = stockroom.confirm()

    assert kept.id == second.id


def test_an_order_whose_holds_were_all_released_is_not_confirmed(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    stockroom.release(stockroom.hold(1, 2))

    with pytest.raises(ReservationReleased):
        stockroom.confirm()


def test_confirming_one_order_leaves_another_as_it_is(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    other = stockroom.hold(1, 1, order="order-2")
    stockroom.hold(1, 1, order="order-1")

    stockroom.confirm("order-1")

    assert stockroom.state(other) is State.HELD


# --- release ---


@pytest.mark.parametrize("confirmed", [False, True])
def test_releasing_gives_back_what_was_taken_from_each_location(stockroom: Stockroom, confirmed: bool) -> None:
    stockroom.add(1, 3, "A")
    stockroom.add(1, 2, "B")
    held = stockroom.hold(1, 5)
    if confirmed:
        stockroom.confirm()

    assert stockroom.release(held) == 5

    assert (stockroom.available(1, "A"), stockroom.available(1, "B")) == (3, 2)
    assert stockroom.state(held) is State.RELEASED
    (event,) = stockroom.events("STOCK_RELEASED")
    assert event.data["released_quantity"] == 5


def test_releasing_again_answers_the_same_and_gives_nothing_more(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    held = stockroom.hold(1, 2)

    assert [stockroom.release(held) for _ in range(3)] == [2, 2, 2]
    assert stockroom.available(1) == 5
    assert told(stockroom) == ["STOCK_RELEASED"]


def test_an_unknown_reservation_can_not_be_released(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    held = stockroom.hold(1, 1)
    unknown = Reservation(held.id[:-4] + "0000", 1, 1, "", State.HELD, held.created_at, None, ())

    with pytest.raises(ReservationNotFound) as refused:
        stockroom.release(unknown)
    with pytest.raises(ReservationNotFound):
        stockroom.reservation(unknown)

    assert refused.value.metadata() == {"reservation_id": unknown.id}


def test_releasing_a_hold_past_its_time_expires_it_and_releases_nothing(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    held = stockroom.hold(1, 2)
    stockroom.lapse(held)

    assert stockroom.release(held) == 0
    assert stockroom.release(held) == 0
    assert told(stockroom) == ["STOCK_RESERVATION_EXPIRED"]
    assert stockroom.available(1) == 5


def test_releasing_what_was_fulfilled_gives_nothing_back(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 5)
    held = stockroom.hold(1, 2)
    stockroom.confirm()
    stockroom.ship("order-1")

    assert stockroom.release(held) == 0
    assert stockroom.state(held) is State.FULFILLED
    assert stockroom.item(item).quantity == 3


def test_a_cancelled_order_gives_back_all_that_is_active(stockroom: Stockroom) -> None:
    stockroom.add(1, 9)
    stockroom.add(2, 9)
    stockroom.hold_lines("order-1", Line(1, 2), Line(2, 3))
    stockroom.confirm("order-1")
    stockroom.hold(1, 1, order="order-1")
    other = stockroom.hold(1, 1, order="order-2")

    stockroom.cancel("order-1", "nobody's")
    stockroom.cancel("order-1")

    assert (stockroom.available(1), stockroom.available(2)) == (8, 9)
    assert told(stockroom).count("STOCK_RELEASED") == 3
    assert stockroom.state(other) is State.HELD


# --- fulfil ---


def test_shipping_takes_confirmed_units_out_of_the_stock(stockroom: Stockroom) -> None:
    a = stockroom.add(1, 3, "A")
    b = stockroom.add(1, 4, "B")
    held = stockroom.hold(1, 5)
    stockroom.confirm()

    assert stockroom.ship("order-1") == {"order-1": {1: 5}}

    assert stockroom.state(held) is State.FULFILLED
    found = [stockroom.item(each) for each in (a, b)]
    assert [(item.quantity, item.reserved_quantity, item.version) for item in found] == [(2, 0, 2), (0, 0, 2)]
    assert told(stockroom)[-1] == "STOCK_FULFILLED"
    updates = stockroom.events("STOCK_UPDATED")[2:]
    assert {(event.data["location"], event.data["quantity"]) for event in updates} == {("A", 2), ("B", 0)}


def test_shipping_again_takes_nothing_more_and_answers_the_same(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 5)
    stockroom.hold(1, 2)
    stockroom.confirm()

    assert stockroom.ship("order-1") == stockroom.ship("order-1") == {"order-1": {1: 2}}
    assert stockroom.item(item).quantity == 3


def test_a_hold_that_was_never_confirmed_is_left_to_expire_when_its_order_ships(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 5)
    held = stockroom.hold(1, 2)

    assert stockroom.ship("order-1", "nobody's") == {"order-1": {}, "nobody's": {}}
    assert stockroom.state(held) is State.HELD
    stockroom.lapse(held)
    stockroom.expire()

    assert stockroom.item(item).available_quantity == 5


def test_orders_shipped_together_change_an_item_once(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 10)
    for order in ("order-1", "order-2"):
        stockroom.hold(1, 3, order=order)
        stockroom.confirm(order)

    stockroom.ship("order-1", "order-2")

    found = stockroom.item(item)
    assert (found.quantity, found.version) == (4, 2)
    assert len(stockroom.events("STOCK_UPDATED")) == 2
    assert len(stockroom.events("STOCK_FULFILLED")) == 2


@pytest.mark.parametrize("ending", ["released", "expired", "fulfilled"])
def test_what_has_ended_stays_as_it_is(stockroom: Stockroom, ending: str) -> None:
    stockroom.add(1, 5)
    held = stockroom.hold(1, 2)
    if ending == "released":
        stockroom.release(held)
    elif ending == "expired":
        stockroom.lapse(held)
        stockroom.expire()
    else:
        stockroom.confirm()
        stockroom.ship("order-1")
    state, available, before = stockroom.state(held), stockroom.available(1), len(stockroom.events())

    stockroom.release(held)
    stockroom.cancel("order-1")
    stockroom.ship("order-1")
    stockroom.expire()

    assert (stockroom.state(held), stockroom.available(1), len(stockroom.events())) == (state, available, before)


# --- at most once, whoever asks ---


@pytest.mark.parametrize("start", ["held", "confirmed", "lapsed"])
def test_sixteen_callers_of_different_transitions_move_a_reservation_along_one_path(
    stockroom: Stockroom, second_process: Stockroom, start: str
) -> None:
    item = stockroom.add(1, 10)
    stockroom.hold(1, 1, order="bystander")
    for round_number in range(4):
        order = f"order-{round_number}"
        held = stockroom.hold(1, 3, order=order)
        before = stockroom.item(item).quantity
        if start == "confirmed":
            stockroom.confirm(order)
        if start == "lapsed":
            stockroom.lapse(held)

        def steps(process: Stockroom, held: Reservation = held, order: str = order) -> list[Callable[[], object]]:
            return [
                partial(process.confirm, order),
                partial(process.release, held),
                process.expire,
                partial(process.ship, order),
            ]

        at_once([step for _ in range(2) for process in (stockroom, second_process) for step in steps(process)])

        # That the events are one legal path, and the counters their sum, is audited after each test.
        stockroom.audit()
        state, found = stockroom.state(held), stockroom.item(item)
        kept = 3 if state is State.CONFIRMED else 0
        assert state is not State.HELD
        assert found.quantity == before - (3 if state is State.FULFILLED else 0)
        assert found.reserved_quantity == 1 + kept
        stockroom.cancel(order)
        stockroom.add(1, 3)


def test_of_sixteen_releases_at_once_one_gives_back_and_all_answer_the_same(
    stockroom: Stockroom, second_process: Stockroom
) -> None:
    stockroom.add(1, 10)
    held = stockroom.hold(1, 3)

    answers = at_once([partial(process.release, held) for _ in range(8) for process in (stockroom, second_process)])

    assert answers == [3] * 16
    assert told(stockroom) == ["STOCK_RELEASED"]
    assert stockroom.available(1) == 10
