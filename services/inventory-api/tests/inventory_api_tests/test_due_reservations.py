"""The units of a due reservation are free at once, before the reaper has expired it."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Connection

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock, ReservationExpired
from inventory_api.domain.model import Line, Reservation, State
from inventory_api.operations.reservations import expire, reserve
from inventory_api.store import items
from inventory_api.store.reservations import due
from shop_common.errors import Contention, ShopError
from shop_common.timestamps import rfc3339
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver


def batch(inventory: InventoryDriver, *orders: OrderLines) -> list[list[Reservation] | ShopError]:
    """Reserve for these orders in one batch, in this order."""
    return inventory.database.transact(lambda tx: reserve.reserve(tx, orders, default_ttl_seconds=TTL_SECONDS))


def expired(inventory: InventoryDriver) -> list[str]:
    return [event.data["reservation_id"] for event in inventory.events("STOCK_RESERVATION_EXPIRED")]


def test_the_units_of_a_due_reservation_are_free_at_once(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 1)
    due_reservation = inventory.reserve(1, 1, order="late")
    inventory.make_due(due_reservation)

    assert inventory.available(1) == 1
    assert inventory.item(item).available_quantity == 1
    assert inventory.state(due_reservation) is State.EXPIRED
    assert inventory.stored_state(due_reservation) is State.HELD

    inventory.reserve(1, 1, order="next")

    assert inventory.stored_state(due_reservation) is State.EXPIRED
    assert expired(inventory) == [due_reservation.id]
    assert inventory.available(1) == 0


def test_a_reservation_is_held_until_its_expiry(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    held = inventory.reserve(1, 1, ttl=60)

    with pytest.raises(InsufficientStock):
        inventory.reserve(1, 1)

    assert inventory.expire() == 0
    assert inventory.stored_state(held) is State.HELD


def test_the_event_of_an_expiry_precedes_that_of_the_next_reservation(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    inventory.make_due(inventory.reserve(1, 1))

    inventory.reserve(1, 1)

    types = [event.type for event in inventory.events() if event.type not in ("STOCK_UPDATED", "STOCK_MOVED")]
    assert types == ["STOCK_RESERVED", "STOCK_RESERVATION_EXPIRED", "STOCK_RESERVED"]


def test_a_request_for_free_stock_expires_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2)
    due_reservation = inventory.reserve(1, 1)
    inventory.make_due(due_reservation)

    inventory.reserve(1, 1)

    assert inventory.stored_state(due_reservation) is State.HELD
    assert inventory.available(1) == 1


def test_only_as_many_due_reservations_expire_as_are_needed_oldest_first(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    due_reservations = [inventory.reserve(1, 1, order=f"late-{n}") for n in range(5)]
    for reservation, ago_seconds in zip(due_reservations, (20, 50, 10, 40, 30), strict=True):
        inventory.make_due(reservation, ago_seconds=ago_seconds)

    inventory.reserve(1, 2)

    assert set(expired(inventory)) == {due_reservations[1].id, due_reservations[3].id}
    assert inventory.available(1) == 3


def test_the_oldest_due_reservation_expires_at_any_location(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, "A")
    inventory.add_stock(1, 1, "B")
    newer = inventory.reserve(1, 1, location="A")
    older = inventory.reserve(1, 1, location="B")
    inventory.make_due(newer, ago_seconds=10)
    inventory.make_due(older, ago_seconds=20)

    held = inventory.reserve(1, 1)

    assert expired(inventory) == [older.id]
    assert [part.location for part in held.allocations] == ["B"]


def test_a_line_that_names_a_location_expires_no_reservation_at_another(inventory: InventoryDriver) -> None:
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


def test_a_split_reservation_frees_all_of_its_allocations(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 3, "A")
    inventory.add_stock(1, 2, "B")
    due_reservation = inventory.reserve(1, 5)
    inventory.make_due(due_reservation)

    assert (inventory.available(1, "A"), inventory.available(1, "B"), inventory.available(1)) == (3, 2, 5)
    held = inventory.reserve(1, 2, location="B")

    assert expired(inventory) == [due_reservation.id]
    assert [(part.location, part.quantity) for part in held.allocations] == [("B", 2)]
    assert inventory.available(1) == 3


def test_an_order_gets_several_products_whose_reservations_are_all_due(inventory: InventoryDriver) -> None:
    for product in (1, 2, 3):
        inventory.add_stock(product, 1)
        inventory.make_due(inventory.reserve(product, 1, order=f"late-{product}"))

    held = inventory.reserve_lines("order-1", Line(1, 1), Line(2, 1), Line(3, 1))

    assert len(held) == 3
    assert len(expired(inventory)) == 3


def test_a_confirmed_reservation_is_never_due(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    inventory.reserve(1, 1)
    (kept,) = inventory.confirm()

    with pytest.raises(InsufficientStock):
        inventory.reserve(1, 1)

    assert kept.expires_at is None
    assert inventory.expire() == 0


def test_a_batch_is_decided_again_in_arrival_order(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 3)
    inventory.make_due(inventory.reserve(1, 2, order="late"))

    # At first only the second order fits. Once the due reservation has expired, the first fits and the second does not.
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


def test_orders_of_a_batch_share_expired_units(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 4)
    due_reservations = [inventory.reserve(1, 1, order=f"late-{n}") for n in range(4)]
    for age, reservation in enumerate(due_reservations):
        inventory.make_due(reservation, ago_seconds=40 - age)

    outcomes = batch(inventory, *(OrderLines(f"order-{n}", (Line(1, 1),)) for n in range(3)))

    assert all(isinstance(outcome, list) for outcome in outcomes)
    assert set(expired(inventory)) == {reservation.id for reservation in due_reservations[:3]}


def test_an_earlier_order_without_location_does_not_hide_a_due_reservation_from_a_later_one(
    inventory: InventoryDriver,
) -> None:
    inventory.add_stock(1, 6, "A")
    inventory.add_stock(1, 10, "B")
    due_reservation = inventory.reserve(1, 5, location="B")
    inventory.make_due(due_reservation)

    # The first order takes the free units of B, so only the due reservation can cover the second one.
    first, second = batch(inventory, OrderLines("first", (Line(1, 5),)), OrderLines("second", (Line(1, 5, "B"),)))

    assert isinstance(first, list)
    assert isinstance(second, list)
    assert expired(inventory) == [due_reservation.id]


def test_more_due_reservations_than_one_batch_may_expire_are_contention_and_a_retry_continues(
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


def test_as_many_due_reservations_as_one_batch_may_expire_are_enough(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DUE_EXPIRED_MAX", 3)
    inventory.add_stock(1, 4)
    inventory.make_due(*(inventory.reserve(1, 1, order=f"late-{n}") for n in range(4)))

    inventory.reserve(1, 3)

    assert len(expired(inventory)) == 3


def test_the_reaper_expires_the_oldest_and_at_most_max_count(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    due_reservations = [inventory.reserve(1, 1, order=f"late-{n}") for n in range(5)]
    for age, reservation in enumerate(due_reservations):
        inventory.make_due(reservation, ago_seconds=50 - age)
    inventory.reserve(1, 1, order="fresh")

    assert inventory.expire(2) == 2
    assert set(expired(inventory)) == {due_reservations[0].id, due_reservations[1].id}
    assert inventory.expire(1000) == 3
    assert inventory.expire(1000) == 0
    assert inventory.available(1) == 9


def test_the_event_of_an_expiry_has_the_expiry_and_no_trace(inventory: InventoryDriver) -> None:
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


def test_reservations_that_ended_meanwhile_are_not_expired_again(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    released, expired, left = (inventory.reserve(1, 2, order=order) for order in ("released", "expired", "left"))
    for reservation, ago_seconds in ((released, 30), (expired, 20), (left, 10)):
        inventory.make_due(reservation, ago_seconds=ago_seconds)
    with inventory.database.read() as tx:
        read = due.oldest(tx, 10)
    inventory.release(released)
    with pytest.raises(ReservationExpired):
        inventory.confirm("expired")

    ended = inventory.database.transact(lambda tx: expire.expire_read(tx, read))

    assert [reservation.id for reservation in read] == [released.id, expired.id, left.id]
    assert [reservation.id for reservation in ended] == [left.id]
    assert inventory.available(1) == 10


def test_a_reservation_that_was_confirmed_in_time_is_never_expired(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2)
    kept = inventory.reserve(1, 2, order="kept")
    inventory.confirm("kept")

    assert inventory.database.transact(lambda tx: expire.expire_read(tx, [kept])) == []
    assert inventory.stored_state(kept) is State.CONFIRMED


def test_a_batch_starts_where_the_last_one_ended_and_misses_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    reservations = [inventory.reserve(1, 1, order=f"order-{number}") for number in range(6)]
    for reservation, ago_seconds in zip(reservations, (60, 50, 40, 30, 20), strict=False):
        inventory.make_due(reservation, ago_seconds=ago_seconds)
    assert inventory.expire(2) == 2

    # This reservation expired before the last one of that batch, but it was committed after the batch was read.
    inventory.make_due(reservations[5], ago_seconds=70)

    assert inventory.expire(2) == 2
    assert [inventory.stored_state(reservation) is State.EXPIRED for reservation in reservations] == [True] * 4 + [
        False
    ] * 2
    assert inventory.expire(2) == 2
    assert inventory.expire(2) == 0
    assert inventory.available(1) == 10


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Limits a transaction to two reservations. Returns the number that each transaction expired so far."""
    sizes: list[int] = []
    original = expire.expire_read

    def expire_read(tx: Connection, read: Sequence[Reservation]) -> list[Reservation]:
        sizes.append(len(read))
        return original(tx, read)

    monkeypatch.setattr(expire, "TURN_EXPIRED", 2)
    monkeypatch.setattr(expire, "expire_read", expire_read)
    return sizes


def test_a_batch_is_expired_in_turns_of_one_transaction_each(inventory: InventoryDriver, turns: list[int]) -> None:
    inventory.add_stock(1, 10)
    for number in range(5):
        inventory.make_due(inventory.reserve(1, 1, order=f"order-{number}"))

    assert inventory.expire() == 5
    assert turns == [2, 2, 1]
    assert inventory.available(1) == 10
    assert len(expired(inventory)) == 5


def test_a_failed_turn_does_not_undo_earlier_turns(
    inventory: InventoryDriver, turns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory.add_stock(1, 10)
    reservations = [inventory.reserve(1, 1, order=f"order-{number}") for number in range(5)]
    for age, reservation in enumerate(reservations):
        inventory.make_due(reservation, ago_seconds=50 - age)
    original = items.free

    def free(*arguments: Any) -> None:
        original(*arguments)
        if len(turns) == 2:
            raise Contention("other transactions changed the same rows")

    monkeypatch.setattr(items, "free", free)
    with pytest.raises(Contention):
        inventory.expire()

    assert [inventory.stored_state(reservation) for reservation in reservations] == [State.EXPIRED] * 2 + [
        State.HELD
    ] * 3
    assert len(expired(inventory)) == 2
    assert inventory.expire() == 3
    assert len(expired(inventory)) == 5
    assert inventory.available(1) == 10
