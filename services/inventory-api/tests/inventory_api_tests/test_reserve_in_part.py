"""Reservations with `allow_partial`: what is available is reserved, and the rest is a shortfall."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from inventory_api.api import render
from inventory_api.domain.allocation import Shelves
from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock, ReservationNotFound
from inventory_api.domain.model import AllocationPolicy, Line, Shortfall, State
from inventory_api.domain.reserving import shortfalls
from inventory_api.operations.reservations.reserve import reserve
from inventory_api.store import tables
from inventory_api_tests.test_allocation import stock_of
from shop_common.db.idempotency import RequestIdReused
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver


def test_what_is_available_of_each_product_is_reserved(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 2, "B")
    inventory.add_stock(2, 9, "A")
    lines = (Line(3, 1), Line(1, 6), Line(2, 4), Line(1, 4))

    reservations = inventory.reserve_lines("order-1", *lines, allow_partial=True)

    assert [(each.product_id, each.quantity) for each in reservations] == [(1, 7), (2, 4)]
    assert shortfalls(OrderLines("order-1", lines), reservations) == [Shortfall(3, 1, 0), Shortfall(1, 10, 7)]
    assert (inventory.available(1), inventory.available(2)) == (0, 5)


def test_an_order_of_which_nothing_is_available_is_refused(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 0)

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve_lines("order-1", Line(1, 2), Line(7, 1), allow_partial=True)

    assert (refused.value.product_id, refused.value.requested, refused.value.available) == (1, 2, 0)


def test_due_reservations_are_expired_before_less_is_reserved(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    due = inventory.reserve(1, 4)
    inventory.make_due(due)

    (reservation,) = inventory.reserve_lines("order-2", Line(1, 12), allow_partial=True)

    assert reservation.quantity == 10
    assert inventory.stored_state(due) is State.EXPIRED


def test_a_policy_limits_what_is_reserved(inventory: InventoryDriver) -> None:
    for name, units in (("A", 5), ("B", 4), ("C", 3)):
        inventory.add_stock(1, units, name)
    policy = AllocationPolicy(excluded_locations=("A",), max_locations=1)

    (reservation,) = inventory.reserve_lines("order-1", Line(1, 9, policy=policy), allow_partial=True)

    assert [(part.location, part.quantity) for part in reservation.allocations] == [("B", 4)]


def test_a_repeat_returns_the_same_reservations_and_shortfalls(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    lines = (Line(1, 7), Line(2, 1))
    order = OrderLines("order-1", lines, allow_partial=True)
    first = inventory.reserve_lines("order-1", *lines, allow_partial=True, request_id="r")
    inventory.add_stock(2, 10)

    second = inventory.reserve_lines("order-1", *lines, allow_partial=True, request_id="r")

    assert second == first
    assert render.batch([order], [second]) == render.batch([order], [first])
    with pytest.raises(RequestIdReused):
        inventory.reserve_lines("order-1", *lines, request_id="r")


def test_a_repeat_after_a_purge_finds_no_reservation(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    lines = (Line(1, 7), Line(2, 1))
    (reservation,) = inventory.reserve_lines("order-1", *lines, allow_partial=True, request_id="r")
    inventory.release(reservation)
    with inventory.database.write() as tx:
        tx.execute(delete(tables.stock_reservations))
        tx.execute(
            delete(tables.outbox.table).where(tables.outbox.table.c.type.not_in(("STOCK_UPDATED", "STOCK_MOVED")))
        )

    with pytest.raises(ReservationNotFound):
        inventory.reserve_lines("order-1", *lines, allow_partial=True, request_id="r")


def test_other_orders_of_the_batch_still_get_all_or_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    orders = [
        OrderLines("whole", (Line(1, 3),)),
        OrderLines("part", (Line(1, 3),), allow_partial=True),
        OrderLines("late", (Line(1, 1),)),
    ]

    whole, part, late = inventory.database.transact(lambda tx: reserve(tx, orders, default_ttl_seconds=TTL_SECONDS))

    assert isinstance(whole, list)
    assert isinstance(part, list)
    assert ([each.quantity for each in whole], [each.quantity for each in part]) == ([3], [2])
    assert isinstance(late, InsufficientStock)


@settings(deadline=None)  # a busy machine must not fail the test
@given(
    free=st.dictionaries(st.tuples(st.integers(1, 2), st.sampled_from("ABC")), st.integers(0, 9), min_size=1),
    lines=st.lists(st.builds(Line, st.integers(1, 2), st.integers(1, 12)), min_size=1, max_size=4),
)
def test_as_much_is_taken_as_is_free_and_requested(free: dict[tuple[int, str], int], lines: list[Line]) -> None:
    shelves = Shelves(stock_of(free))
    requested = {product: sum(line.quantity for line in lines if line.product_id == product) for product in (1, 2)}
    in_stock = {product: sum(units for key, units in free.items() if key[0] == product) for product in (1, 2)}
    expected = {product: min(requested[product], in_stock[product]) for product in (1, 2)}

    try:
        taken = shelves.take_free(DEFAULT, lines)
    except InsufficientStock:
        taken = {}

    assert {product: sum(part.quantity for part in parts) for product, parts in taken.items()} == {
        product: units for product, units in expected.items() if units
    }
