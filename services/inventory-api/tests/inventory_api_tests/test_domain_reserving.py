"""Decisions without a database: which orders of a batch get stock, and which due reservations cover a shortage."""

from datetime import UTC, datetime

import pytest

from inventory_api.domain import reserving
from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock, ReservationsLimit
from inventory_api.domain.model import (
    ORDER_RESERVATIONS_MAX,
    Allocation,
    Item,
    Line,
    OrderSize,
    Reservation,
    State,
    StockKey,
)
from inventory_api.domain.reserving import UNDECIDED, Decision, decide
from inventory_api.domain.shortage import choose_to_cover, shortage_of_orders
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import order_key, stock_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def stock_of(*items: tuple[int, str, int, int]) -> dict[int, Item]:
    """Items from (product, location, quantity, reserved quantity), with ids from 1."""
    return {
        number: Item(DEFAULT, number, product, location, quantity, reserved, 1, NOW, NOW)
        for number, (product, location, quantity, reserved) in enumerate(items, 1)
    }


def order(order_id: str, *lines: Line) -> OrderLines:
    return OrderLines(order_id, lines)


def decide_new(orders: list[OrderLines], stock: dict[int, Item]) -> list[Decision]:
    return decide(orders, stock, {each.order_key: OrderSize(0, 0) for each in orders})


def due(id_: str, parts: dict[str, int]) -> Reservation:
    allocations = tuple(Allocation(number, location, units) for number, (location, units) in enumerate(parts.items()))
    return Reservation(DEFAULT, "", id_, 1, sum(parts.values()), "order", State.HELD, NOW, NOW, allocations)


def test_an_earlier_order_takes_stock_from_a_later_one() -> None:
    orders = [order("first", Line(1, 3)), order("second", Line(1, 3)), order("third", Line(1, 2))]

    first, second, third = decide_new(orders, stock_of((1, "A", 5, 0)))

    assert first == {1: (Allocation(1, "A", 3),)}
    assert isinstance(second, InsufficientStock)
    assert (second.requested, second.available) == (3, 2)
    assert third == {1: (Allocation(1, "A", 2),)}


def test_an_order_beyond_its_limit_is_refused_and_takes_nothing() -> None:
    full = order("full", Line(1, 5))
    stock = stock_of((1, "A", 5, 0))

    refused, other = decide(
        [full, order("other", Line(1, 5))],
        stock,
        {order_key("full"): OrderSize(ORDER_RESERVATIONS_MAX, 0), order_key("other"): OrderSize(0, 0)},
    )

    assert isinstance(refused, ReservationsLimit)
    assert other == {1: (Allocation(1, "A", 5),)}


def test_the_orders_of_a_batch_count_towards_one_limit() -> None:
    stock = stock_of((1, "A", 5, 0))

    first, second = decide(
        [order("same", Line(1, 1)), order("same", Line(1, 1))],
        stock,
        {order_key("same"): OrderSize(ORDER_RESERVATIONS_MAX - 1, 0)},
    )

    assert isinstance(first, dict)
    assert isinstance(second, ReservationsLimit)


def test_the_first_order_is_decided_at_any_size_and_the_rest_stays_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "BATCH_ALLOCATIONS_MAX", 1)
    stock = stock_of((1, "A", 1, 0), (1, "B", 1, 0), (1, "C", 1, 0))

    decisions = decide_new([order("first", Line(1, 2)), order("second", Line(1, 1)), order("third", Line(1, 1))], stock)

    assert isinstance(decisions[0], dict)
    assert decisions[1:] == [UNDECIDED, UNDECIDED]


def shortage_when_decided(orders: list[OrderLines], stock: dict[int, Item]) -> dict[StockKey, int]:
    return shortage_of_orders(orders, decide_new(orders, stock), stock)


def test_orders_that_get_their_stock_have_no_shortage() -> None:
    assert shortage_when_decided([order("a", Line(1, 5))], stock_of((1, "A", 5, 0))) == {}


def test_the_shortage_counts_what_all_orders_need_of_the_product() -> None:
    orders = [order("first", Line(1, 4)), order("second", Line(1, 4))]

    assert shortage_when_decided(orders, stock_of((1, "A", 5, 0))) == {stock_key(1): 3}


def test_a_line_that_names_a_location_lacks_units_there() -> None:
    orders = [order("a", Line(1, 4, "A"))]

    assert shortage_when_decided(orders, stock_of((1, "A", 1, 0), (1, "B", 9, 0))) == {stock_key(1, "A"): 3}


def test_free_units_at_the_wrong_location_do_not_hide_a_shortage() -> None:
    # The first order leaves B empty, because B has the fewest units that are enough.
    orders = [order("first", Line(1, 5)), order("second", Line(1, 5, "B"))]

    assert shortage_when_decided(orders, stock_of((1, "A", 6, 0), (1, "B", 5, 0))) == {stock_key(1, "B"): 5}


def test_the_shortage_has_no_products_of_orders_that_get_their_stock() -> None:
    orders = [order("refused", Line(1, 5)), order("other", Line(2, 1))]

    assert shortage_when_decided(orders, stock_of((2, "A", 1, 0))) == {stock_key(1): 5}


def test_the_first_due_reservations_cover_the_shortage() -> None:
    candidates = [due("a", {"A": 2}), due("b", {"A": 2}), due("c", {"A": 2})]

    assert choose_to_cover({stock_key(1): 3}, candidates) == candidates[:2]


def test_a_due_reservation_at_another_location_is_not_chosen() -> None:
    elsewhere, there = due("a", {"A": 2}), due("b", {"B": 1, "C": 1})

    assert choose_to_cover({stock_key(1, "C"): 1}, [elsewhere, there]) == [there]


def test_one_due_reservation_covers_a_location_and_then_the_rest_of_the_product() -> None:
    candidates = [due("a", {"A": 5}), due("b", {"B": 1})]

    assert choose_to_cover({stock_key(1, "A"): 2, stock_key(1): 3}, candidates) == candidates[:1]
