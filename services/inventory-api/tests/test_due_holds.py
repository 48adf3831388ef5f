"""A hold past its time is free stock at once, whether or not the reaper has come by."""

from collections.abc import Sequence
from typing import Any

import pytest
from inventory_driver import TTL_SECONDS, InventoryDriver
from sqlalchemy import Connection

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock, ReservationExpired
from inventory_api.domain.model import Line, Reservation, State
from inventory_api.operations import expire, reserve
from inventory_api.store import items
from inventory_api.store.reservations import due
from shop_common.errors import Contention, ShopError
from shop_common.moments import rfc3339


def batch(inventory: InventoryDriver, *orders: OrderLines) -> list[list[Reservation] | ShopError]:
    """Orders that arrived in this sequence and are decided together."""
    return inventory.database.transact(lambda tx: reserve.reserve(tx, orders, default_ttl_seconds=TTL_SECONDS))


def expired(inventory: InventoryDriver) -> list[str]:
    return [event.data["reservation_id"] for event in inventory.events("STOCK_RESERVATION_EXPIRED")]


def test_an_expired_hold_is_free_stock_at_once(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 1)
    lapsed = inventory.reserve(1, 1, order="late")
    inventory.make_due(lapsed)

    assert inventory.available(1) == 1
    assert inventory.item(item).available_quantity == 1
    assert inventory.state(lapsed) is State.EXPIRED
    assert inventory.stored_state(lapsed) is State.HELD

    inventory.reserve(1, 1, order="next")

    assert inventory.stored_state(lapsed) is State.EXPIRED
    assert expired(inventory) == [lapsed.id]
    assert inventory.available(1) == 0


def test_a_hold_is_kept_until_its_very_time(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    held = inventory.reserve(1, 1, ttl=60)

    with pytest.raises(InsufficientStock):
        inventory.reserve(1, 1)

    assert inventory.expire() == 0
    assert inventory.stored_state(held) is State.HELD


def test_the_next_buyer_of_an_expired_hold_is_told_of_after_its_expiry(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    inventory.make_due(inventory.reserve(1, 1))

    inventory.reserve(1, 1)

    types = [event.type for event in inventory.events() if event.type != "STOCK_UPDATED"]
    assert types == ["STOCK_RESERVED", "STOCK_RESERVATION_EXPIRED", "STOCK_RESERVED"]


def test_a_request_that_finds_free_stock_expires_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2)
    lapsed = inventory.reserve(1, 1)
    inventory.make_due(lapsed)

    inventory.reserve(1, 1)

    assert inventory.stored_state(lapsed) is State.HELD
    assert inventory.available(1) == 1


def test_only_as_many_due_holds_are_expired_as_are_needed_the_oldest_first(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    lapsed = [inventory.reserve(1, 1, order=f"late-{n}") for n in range(5)]
    for hold, ago_seconds in zip(lapsed, (20, 50, 10, 40, 30), strict=True):
        inventory.make_due(hold, ago_seconds=ago_seconds)

    inventory.reserve(1, 2)

    assert set(expired(inventory)) == {lapsed[1].id, lapsed[3].id}
    assert inventory.available(1) == 3


def test_the_oldest_is_taken_whichever_location_it_is_at(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, "A")
    inventory.add_stock(1, 1, "B")
    newer = inventory.reserve(1, 1, location="A")
    older = inventory.reserve(1, 1, location="B")
    inventory.make_due(newer, ago_seconds=10)
    inventory.make_due(older, ago_seconds=20)

    held = inventory.reserve(1, 1)

    assert expired(inventory) == [older.id]
    assert [part.location for part in held.allocations] == ["B"]


def test_a_line_that_names_a_location_expires_no_hold_at_another(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, "A")
    inventory.add_stock(1, 1, "B")
    elsewhere = inventory.reserve(1, 1, location="A")
    inventory.make_due(elsewhere, ago_seconds=20)

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(1, 2, location="B")
    there = inventory.reserve(1, 1, location="B")
    inventory.make_due(there, ago_seconds=10)
    inventory.reserve(1, 1, location="B")

    assert refused.value.available == 1
    assert expired(inventory) == [there.id]


def test_a_split_hold_gives_back_all_of_its_parts(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 3, "A")
    inventory.add_stock(1, 2, "B")
    lapsed = inventory.reserve(1, 5)
    inventory.make_due(lapsed)

    assert (inventory.available(1, "A"), inventory.available(1, "B"), inventory.available(1)) == (3, 2, 5)
    held = inventory.reserve(1, 2, location="B")

    assert expired(inventory) == [lapsed.id]
    assert [(part.location, part.quantity) for part in held.allocations] == [("B", 2)]
    assert inventory.available(1) == 3


def test_an_order_gets_several_products_that_are_all_held_past_their_time(inventory: InventoryDriver) -> None:
    for product in (1, 2, 3):
        inventory.add_stock(product, 1)
        inventory.make_due(inventory.reserve(product, 1, order=f"late-{product}"))

    held = inventory.reserve_lines("order-1", Line(1, 1), Line(2, 1), Line(3, 1))

    assert len(held) == 3
    assert len(expired(inventory)) == 3


def test_a_confirmed_reservation_never_falls_due(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    inventory.reserve(1, 1)
    (kept,) = inventory.confirm()

    with pytest.raises(InsufficientStock):
        inventory.reserve(1, 1)

    assert kept.expires_at is None
    assert inventory.expire() == 0


def test_a_batch_is_decided_anew_in_arrival_order(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 3)
    inventory.make_due(inventory.reserve(1, 2, order="late"))

    # At first only the second fits; with what has expired the first does, and then the second does not.
    first, second, third = batch(
        inventory,
        OrderLines("first", (Line(1, 3),)),
        OrderLines("second", (Line(1, 1),)),
        OrderLines("third", (Line(2, 1),)),
    )

    assert isinstance(first, list)
    assert isinstance(second, InsufficientStock)
    assert second.available == 0
    assert isinstance(third, InsufficientStock)


def test_orders_of_a_batch_share_what_has_expired(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 4)
    lapsed = [inventory.reserve(1, 1, order=f"late-{n}") for n in range(4)]
    for age, hold in enumerate(lapsed):
        inventory.make_due(hold, ago_seconds=40 - age)

    outcomes = batch(inventory, *(OrderLines(f"order-{n}", (Line(1, 1),)) for n in range(3)))

    assert all(isinstance(outcome, list) for outcome in outcomes)
    assert set(expired(inventory)) == {hold.id for hold in lapsed[:3]}


def test_an_earlier_order_without_a_location_does_not_hide_a_due_hold_from_a_later_one(
    inventory: InventoryDriver,
) -> None:
    inventory.add_stock(1, 6, "A")
    inventory.add_stock(1, 10, "B")
    lapsed = inventory.reserve(1, 5, location="B")
    inventory.make_due(lapsed)

    # The first leaves the least behind at B, so the second finds B empty but for the hold past its time.
    first, second = batch(inventory, OrderLines("first", (Line(1, 5),)), OrderLines("second", (Line(1, 5, "B"),)))

    assert isinstance(first, list)
    assert isinstance(second, list)
    assert expired(inventory) == [lapsed.id]


def test_more_due_holds_than_one_batch_may_expire_is_contention_and_the_next_try_goes_on(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DUE_EXPIRED_MAX", 3)
    inventory.add_stock(1, 5)
    inventory.make_due(*(inventory.reserve(1, 1, order=f"late-{n}") for n in range(5)))

    with pytest.raises(Contention):
        inventory.reserve(1, 5, request_id="again")
    assert len(expired(inventory)) == 3

    inventory.reserve(1, 5, request_id="again")
    assert len(expired(inventory)) == 5


def test_exactly_as_many_due_holds_as_one_batch_may_expire_are_enough(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DUE_EXPIRED_MAX", 3)
    inventory.add_stock(1, 4)
    inventory.make_due(*(inventory.reserve(1, 1, order=f"late-{n}") for n in range(4)))

    inventory.reserve(1, 3)

    assert len(expired(inventory)) == 3


def test_the_reaper_expires_the_oldest_and_no_more_than_it_was_asked_to(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    lapsed = [inventory.reserve(1, 1, order=f"late-{n}") for n in range(5)]
    for age, hold in enumerate(lapsed):
        inventory.make_due(hold, ago_seconds=50 - age)
    inventory.reserve(1, 1, order="fresh")

    assert inventory.expire(2) == 2
    assert set(expired(inventory)) == {lapsed[0].id, lapsed[1].id}
    assert inventory.expire(1000) == 3
    assert inventory.expire(1000) == 0
    assert inventory.available(1) == 9


def test_an_expiry_tells_when_the_hold_ran_out_and_continues_nobodys_trace(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    held = inventory.reserve(1, 1)
    inventory.make_due(held, ago_seconds=100)

    inventory.expire()

    (event,) = inventory.events("STOCK_RESERVATION_EXPIRED")
    assert event.traceparent is None
    expires_at = inventory.reservation(held).expires_at
    assert expires_at is not None
    assert event.data["expired_at"] == rfc3339(expires_at)
    assert (event.data["quantity"], event.data["order_id"]) == (1, "order-1")


def test_holds_that_others_ended_meanwhile_are_not_expired_again(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    released, expired, left = (inventory.reserve(1, 2, order=order) for order in ("released", "expired", "left"))
    for hold, ago_seconds in ((released, 30), (expired, 20), (left, 10)):
        inventory.make_due(hold, ago_seconds=ago_seconds)
    with inventory.database.read() as tx:
        found = due.oldest(tx, 10)
    inventory.release(released)
    with pytest.raises(ReservationExpired):
        inventory.confirm("expired")

    ended = inventory.database.transact(lambda tx: expire.expire_read(tx, found))

    assert [reservation.id for reservation in found] == [released.id, expired.id, left.id]
    assert ended == 1
    assert inventory.available(1) == 10


def test_a_hold_that_was_confirmed_in_time_is_never_expired(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2)
    kept = inventory.reserve(1, 2, order="kept")
    inventory.confirm("kept")

    assert inventory.database.transact(lambda tx: expire.expire_read(tx, [kept])) == 0
    assert inventory.stored_state(kept) is State.CONFIRMED


def test_a_batch_goes_on_where_the_last_one_ended_and_misses_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    holds = [inventory.reserve(1, 1, order=f"order-{number}") for number in range(6)]
    for hold, ago_seconds in zip(holds, (60, 50, 40, 30, 20), strict=False):
        inventory.make_due(hold, ago_seconds=ago_seconds)
    assert inventory.expire(2) == 2

    # Of before where that batch ended: its time may have been over while it was being made.
    inventory.make_due(holds[5], ago_seconds=70)

    assert inventory.expire(2) == 2
    assert [inventory.stored_state(hold) is State.EXPIRED for hold in holds] == [True] * 4 + [False] * 2
    assert inventory.expire(2) == 2
    assert inventory.expire(2) == 0
    assert inventory.available(1) == 10


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many holds each transaction expired; two at most."""
    sizes: list[int] = []
    usual = expire.expire_read

    def expire_read(tx: Connection, found: Sequence[Reservation]) -> int:
        sizes.append(len(found))
        return usual(tx, found)

    monkeypatch.setattr(expire, "TURN_EXPIRED", 2)
    monkeypatch.setattr(expire, "expire_read", expire_read)
    return sizes


def test_a_batch_is_expired_in_turns_of_a_transaction_each(inventory: InventoryDriver, turns: list[int]) -> None:
    inventory.add_stock(1, 10)
    for number in range(5):
        inventory.make_due(inventory.reserve(1, 1, order=f"order-{number}"))

    assert inventory.expire() == 5
    assert turns == [2, 2, 1]
    assert inventory.available(1) == 10
    assert len(expired(inventory)) == 5


def test_a_turn_that_fails_leaves_what_was_expired_before_it(
    inventory: InventoryDriver, turns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory.add_stock(1, 10)
    holds = [inventory.reserve(1, 1, order=f"order-{number}") for number in range(5)]
    for age, hold in enumerate(holds):
        inventory.make_due(hold, ago_seconds=50 - age)
    usual = items.free

    def free(*arguments: Any) -> None:
        usual(*arguments)
        if len(turns) == 2:
            raise Contention("others hold the same rows")

    monkeypatch.setattr(items, "free", free)
    with pytest.raises(Contention):
        inventory.expire()

    assert [inventory.stored_state(hold) for hold in holds] == [State.EXPIRED] * 2 + [State.HELD] * 3
    assert len(expired(inventory)) == 2
    assert inventory.expire() == 3
    assert len(expired(inventory)) == 5
    assert inventory.available(1) == 10
