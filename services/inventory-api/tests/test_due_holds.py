"""A hold past its time is free stock at once, whether or not the reaper has come by."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Connection
from stockroom import TTL_SECONDS, Stockroom

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock, ReservationExpired
from inventory_api.domain.model import Line, Reservation, State
from inventory_api.operations import expiry, reserve
from inventory_api.store import items, reservations
from shop_common.errors import Contention, ShopError
from shop_common.moments import rfc3339


def batch(stockroom: Stockroom, *orders: OrderLines) -> list[list[Reservation] | ShopError]:
    """Orders that arrived in this sequence and are decided together."""
    return stockroom.database.transact(lambda tx: reserve.reserve(tx, orders, default_ttl_seconds=TTL_SECONDS))


def expired(stockroom: Stockroom) -> list[str]:
    return [event.data["reservation_id"] for event in stockroom.events("STOCK_RESERVATION_EXPIRED")]


def test_an_expired_hold_is_free_stock_at_once(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 1)
    lapsed = stockroom.hold(1, 1, order="late")
    stockroom.lapse(lapsed)

    assert stockroom.available(1) == 1
    assert stockroom.item(item).available_quantity == 1
    assert stockroom.state(lapsed) is State.EXPIRED
    assert stockroom.stored_state(lapsed) is State.HELD

    stockroom.hold(1, 1, order="next")

    assert stockroom.stored_state(lapsed) is State.EXPIRED
    assert expired(stockroom) == [lapsed.id]
    assert stockroom.available(1) == 0


def test_a_hold_is_kept_until_its_very_time(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    held = stockroom.hold(1, 1, ttl=60)

    with pytest.raises(InsufficientStock):
        stockroom.hold(1, 1)

    assert stockroom.expire() == 0
    assert stockroom.stored_state(held) is State.HELD


def test_the_next_buyer_of_an_expired_hold_is_told_of_after_its_expiry(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    stockroom.lapse(stockroom.hold(1, 1))

    stockroom.hold(1, 1)

    types = [event.type for event in stockroom.events() if event.type != "STOCK_UPDATED"]
    assert types == ["STOCK_RESERVED", "STOCK_RESERVATION_EXPIRED", "STOCK_RESERVED"]


def test_a_request_that_finds_free_stock_expires_nothing(stockroom: Stockroom) -> None:
    stockroom.add(1, 2)
    lapsed = stockroom.hold(1, 1)
    stockroom.lapse(lapsed)

    stockroom.hold(1, 1)

    assert stockroom.stored_state(lapsed) is State.HELD
    assert stockroom.available(1) == 1


def test_only_as_many_due_holds_are_expired_as_are_needed_the_oldest_first(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    lapsed = [stockroom.hold(1, 1, order=f"late-{n}") for n in range(5)]
    for hold, ago_seconds in zip(lapsed, (20, 50, 10, 40, 30), strict=True):
        stockroom.lapse(hold, ago_seconds=ago_seconds)

    stockroom.hold(1, 2)

    assert set(expired(stockroom)) == {lapsed[1].id, lapsed[3].id}
    assert stockroom.available(1) == 3


def test_the_oldest_is_taken_whichever_location_it_is_at(stockroom: Stockroom) -> None:
    stockroom.add(1, 1, "A")
    stockroom.add(1, 1, "B")
    newer = stockroom.hold(1, 1, location="A")
    older = stockroom.hold(1, 1, location="B")
    stockroom.lapse(newer, ago_seconds=10)
    stockroom.lapse(older, ago_seconds=20)

    held = stockroom.hold(1, 1)

    assert expired(stockroom) == [older.id]
    assert [part.location for part in held.allocations] == ["B"]


def test_a_line_that_names_a_location_expires_no_hold_at_another(stockroom: Stockroom) -> None:
    stockroom.add(1, 1, "A")
    stockroom.add(1, 1, "B")
    elsewhere = stockroom.hold(1, 1, location="A")
    stockroom.lapse(elsewhere, ago_seconds=20)

    with pytest.raises(InsufficientStock) as refused:
        stockroom.hold(1, 2, location="B")
    there = stockroom.hold(1, 1, location="B")
    stockroom.lapse(there, ago_seconds=10)
    stockroom.hold(1, 1, location="B")

    assert refused.value.available == 1
    assert expired(stockroom) == [there.id]


def test_a_split_hold_gives_back_all_of_its_parts(stockroom: Stockroom) -> None:
    stockroom.add(1, 3, "A")
    stockroom.add(1, 2, "B")
    lapsed = stockroom.hold(1, 5)
    stockroom.lapse(lapsed)

    assert (stockroom.available(1, "A"), stockroom.available(1, "B"), stockroom.available(1)) == (3, 2, 5)
    held = stockroom.hold(1, 2, location="B")

    assert expired(stockroom) == [lapsed.id]
    assert [(part.location, part.quantity) for part in held.allocations] == [("B", 2)]
    assert stockroom.available(1) == 3


def test_an_order_gets_several_products_that_are_all_held_past_their_time(stockroom: Stockroom) -> None:
    for product in (1, 2, 3):
        stockroom.add(product, 1)
        stockroom.lapse(stockroom.hold(product, 1, order=f"late-{product}"))

    held = stockroom.hold_lines("order-1", Line(1, 1), Line(2, 1), Line(3, 1))

    assert len(held) == 3
    assert len(expired(stockroom)) == 3


def test_a_confirmed_reservation_never_falls_due(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    stockroom.hold(1, 1)
    (kept,) = stockroom.confirm()

    with pytest.raises(InsufficientStock):
        stockroom.hold(1, 1)

    assert kept.expires_at is None
    assert stockroom.expire() == 0


def test_a_batch_is_decided_anew_in_arrival_order(stockroom: Stockroom) -> None:
    stockroom.add(1, 3)
    stockroom.lapse(stockroom.hold(1, 2, order="late"))

    # At first only the second fits; with what has expired the first does, and then the second does not.
    first, second, third = batch(
        stockroom,
        OrderLines("first", (Line(1, 3),)),
        OrderLines("second", (Line(1, 1),)),
        OrderLines("third", (Line(2, 1),)),
    )

    assert isinstance(first, list)
    assert isinstance(second, InsufficientStock)
    assert second.available == 0
    assert isinstance(third, InsufficientStock)


def test_orders_of_a_batch_share_what_has_expired(stockroom: Stockroom) -> None:
    stockroom.add(1, 4)
    lapsed = [stockroom.hold(1, 1, order=f"late-{n}") for n in range(4)]
    for age, hold in enumerate(lapsed):
        stockroom.lapse(hold, ago_seconds=40 - age)

    outcomes = batch(stockroom, *(OrderLines(f"order-{n}", (Line(1, 1),)) for n in range(3)))

    assert all(isinstance(outcome, list) for outcome in outcomes)
    assert set(expired(stockroom)) == {hold.id for hold in lapsed[:3]}


def test_an_earlier_order_without_a_location_does_not_hide_a_due_hold_from_a_later_one(stockroom: Stockroom) -> None:
    stockroom.add(1, 6, "A")
    stockroom.add(1, 10, "B")
    lapsed = stockroom.hold(1, 5, location="B")
    stockroom.lapse(lapsed)

    # The first leaves the least behind at B, so the second finds B empty but for the hold past its time.
    first, second = batch(stockroom, OrderLines("first", (Line(1, 5),)), OrderLines("second", (Line(1, 5, "B"),)))

    assert isinstance(first, list)
    assert isinstance(second, list)
    assert expired(stockroom) == [lapsed.id]


def test_more_due_holds_than_one_batch_may_expire_is_contention_and_the_next_try_goes_on(
    stockroom: Stockroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DUE_EXPIRED_MAX", 3)
    stockroom.add(1, 5)
    stockroom.lapse(*(stockroom.hold(1, 1, order=f"late-{n}") for n in range(5)))

    with pytest.raises(Contention):
        stockroom.hold(1, 5, request_id="again")
    assert len(expired(stockroom)) == 3

    stockroom.hold(1, 5, request_id="again")
    assert len(expired(stockroom)) == 5


def test_exactly_as_many_due_holds_as_one_batch_may_expire_are_enough(
    stockroom: Stockroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DUE_EXPIRED_MAX", 3)
    stockroom.add(1, 4)
    stockroom.lapse(*(stockroom.hold(1, 1, order=f"late-{n}") for n in range(4)))

    stockroom.hold(1, 3)

    assert len(expired(stockroom)) == 3


def test_the_reaper_expires_the_oldest_and_no_more_than_it_was_asked_to(stockroom: Stockroom) -> None:
    stockroom.add(1, 10)
    lapsed = [stockroom.hold(1, 1, order=f"late-{n}") for n in range(5)]
    for age, hold in enumerate(lapsed):
        stockroom.lapse(hold, ago_seconds=50 - age)
    stockroom.hold(1, 1, order="fresh")

    assert stockroom.expire(2) == 2
    assert set(expired(stockroom)) == {lapsed[0].id, lapsed[1].id}
    assert stockroom.expire(1000) == 3
    assert stockroom.expire(1000) == 0
    assert stockroom.available(1) == 9


def test_an_expiry_tells_when_the_hold_ran_out_and_continues_nobodys_trace(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    held = stockroom.hold(1, 1)
    stockroom.lapse(held, ago_seconds=100)

    stockroom.expire()

    (event,) = stockroom.events("STOCK_RESERVATION_EXPIRED")
    assert event.traceparent is None
    expires_at = stockroom.reservation(held).expires_at
    assert expires_at is not None
    assert event.data["expired_at"] == rfc3339(expires_at)
    assert (event.data["quantity"], event.data["order_id"]) == (1, "order-1")


def test_holds_that_others_ended_meanwhile_are_not_expired_again(stockroom: Stockroom) -> None:
    stockroom.add(1, 10)
    released, expired, left = (stockroom.hold(1, 2, order=order) for order in ("released", "expired", "left"))
    for hold, ago_seconds in ((released, 30), (expired, 20), (left, 10)):
        stockroom.lapse(hold, ago_seconds=ago_seconds)
    with stockroom.database.read() as tx:
        found = reservations.due(tx, 10)
    stockroom.release(released)
    with pytest.raises(ReservationExpired):
        stockroom.confirm("expired")

    ended = stockroom.database.transact(lambda tx: reservations.expire(tx, found))

    assert [reservation.id for reservation in found] == [released.id, expired.id, left.id]
    assert ended == 1
    assert stockroom.available(1) == 10


def test_a_hold_that_was_confirmed_in_time_is_never_expired(stockroom: Stockroom) -> None:
    stockroom.add(1, 2)
    kept = stockroom.hold(1, 2, order="kept")
    stockroom.confirm("kept")

    assert stockroom.database.transact(lambda tx: reservations.expire(tx, [kept])) == 0
    assert stockroom.stored_state(kept) is State.CONFIRMED


def test_a_batch_goes_on_where_the_last_one_ended_and_misses_nothing(stockroom: Stockroom) -> None:
    stockroom.add(1, 10)
    holds = [stockroom.hold(1, 1, order=f"order-{number}") for number in range(6)]
    for hold, ago_seconds in zip(holds, (60, 50, 40, 30, 20), strict=False):
        stockroom.lapse(hold, ago_seconds=ago_seconds)
    assert stockroom.expire(2) == 2

    # Of before where that batch ended: its time may have been over while it was being made.
    stockroom.lapse(holds[5], ago_seconds=70)

    assert stockroom.expire(2) == 2
    assert [stockroom.stored_state(hold) is State.EXPIRED for hold in holds] == [True] * 4 + [False] * 2
    assert stockroom.expire(2) == 2
    assert stockroom.expire(2) == 0
    assert stockroom.available(1) == 10


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many holds each transaction expired; two at most."""
    sizes: list[int] = []
    usual = reservations.expire

    def expire(tx: Connection, found: Sequence[Reservation]) -> int:
        sizes.append(len(found))
        return usual(tx, found)

    monkeypatch.setattr(expiry, "TURN_HOLDS", 2)
    monkeypatch.setattr(reservations, "expire", expire)
    return sizes


def test_a_batch_is_expired_in_turns_of_a_transaction_each(stockroom: Stockroom, turns: list[int]) -> None:
    stockroom.add(1, 10)
    for number in range(5):
        stockroom.lapse(stockroom.hold(1, 1, order=f"order-{number}"))

    assert stockroom.expire() == 5
    assert turns == [2, 2, 1]
    assert stockroom.available(1) == 10
    assert len(expired(stockroom)) == 5


def test_a_turn_that_fails_leaves_what_was_expired_before_it(
    stockroom: Stockroom, turns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stockroom.add(1, 10)
    holds = [stockroom.hold(1, 1, order=f"order-{number}") for number in range(5)]
    for age, hold in enumerate(holds):
        stockroom.lapse(hold, ago_seconds=50 - age)
    usual = items.free

    def free(*arguments: Any) -> None:
        usual(*arguments)
        if len(turns) == 2:
            raise Contention("others hold the same rows")

    monkeypatch.setattr(items, "free", free)
    with pytest.raises(Contention):
        stockroom.expire()

    assert [stockroom.stored_state(hold) for hold in holds] == [State.EXPIRED] * 2 + [State.HELD] * 3
    assert len(expired(stockroom)) == 2
    assert stockroom.expire() == 3
    assert len(expired(stockroom)) == 5
    assert stockroom.available(1) == 10
