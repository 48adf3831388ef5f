"""A repeated request_id names the same resource and has one effect."""

from functools import partial

import pytest
from sqlalchemy import func, select
from stockroom import Stockroom, at_once, deadline, refusals

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import Line, Reservation, State
from inventory_api.store import tables
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import ShopError


def stored_keys(stockroom: Stockroom) -> int:
    with stockroom.database.read() as tx:
        return tx.execute(select(func.count()).select_from(tables.idempotency_keys.table)).scalar_one()


def test_a_repeated_hold_is_the_same_hold(stockroom: Stockroom) -> None:
    stockroom.add(1, 10)

    first = stockroom.hold_lines("order-1", Line(1, 2), Line(1, 2), request_id="r")
    again = stockroom.hold_lines("order-1", Line(1, 2), Line(1, 2), request_id="r")

    assert again == first
    assert stockroom.available(1) == 6
    assert len(stockroom.events("STOCK_RESERVED")) == 1


def test_a_repeated_hold_of_several_products_answers_in_the_same_sequence(stockroom: Stockroom) -> None:
    for product in (1, 2, 3):
        stockroom.add(product, 1)
    lines = [Line(3, 1), Line(1, 1), Line(2, 1)]

    assert stockroom.hold_lines("o", *lines, request_id="r") == stockroom.hold_lines("o", *lines, request_id="r")


@pytest.mark.parametrize(
    "other",
    [
        OrderLines("order-2", (Line(1, 1),), None, request_id="r"),
        OrderLines("order-1", (Line(1, 2),), None, request_id="r"),
        OrderLines("order-1", (Line(2, 1),), None, request_id="r"),
        OrderLines("order-1", (Line(1, 1, "WAREHOUSE_A"),), None, request_id="r"),
        OrderLines("order-1", (Line(1, 1), Line(1, 1)), None, request_id="r"),
        OrderLines("order-1", (Line(1, 1),), 60, request_id="r"),
    ],
    ids=["order", "quantity", "product", "location", "lines", "ttl"],
)
def test_a_request_id_with_other_content_is_refused(stockroom: Stockroom, other: OrderLines) -> None:
    stockroom.add(1, 10)
    stockroom.hold(1, 1, request_id="r")

    with pytest.raises(RequestIdReused):
        stockroom.operations.reserve(other, deadline=deadline())

    assert stockroom.available(1) == 9


def test_a_request_id_is_its_methods_own(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 10, request_id="r")
    stockroom.set(item, 20, request_id="r")
    stockroom.hold(1, 1, request_id="r")

    assert stockroom.available(1) == 19


def test_a_repeat_after_release_reads_released_and_holds_nothing(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    stockroom.release(stockroom.hold(1, 1, request_id="r"))

    assert stockroom.hold(1, 1, request_id="r").state is State.RELEASED
    assert stockroom.available(1) == 1


@pytest.mark.parametrize("written_down", [False, True])
def test_a_repeat_after_expiry_reads_expired_and_holds_nothing(stockroom: Stockroom, written_down: bool) -> None:
    stockroom.add(1, 1)
    stockroom.lapse(stockroom.hold(1, 1, request_id="r"))
    if written_down:
        stockroom.expire()

    assert stockroom.hold(1, 1, request_id="r").state is State.EXPIRED
    assert stockroom.available(1) == 1


def test_a_repeat_after_confirmation_reads_confirmed(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    stockroom.hold(1, 1, request_id="r")
    (kept,) = stockroom.confirm()

    assert stockroom.hold(1, 1, request_id="r") == kept


def test_sixteen_repeats_at_once_in_two_processes_are_one_hold(stockroom: Stockroom, second_process: Stockroom) -> None:
    stockroom.add(1, 100)

    def ask(process: Stockroom) -> Reservation:
        return process.hold(1, 1, request_id="r")

    held = at_once([partial(ask, process) for process in (stockroom, second_process) for _ in range(8)])

    assert refusals(held) == []
    assert len({each.id for each in held if isinstance(each, Reservation)}) == 1
    assert stockroom.available(1) == 99


def test_of_two_contents_under_one_request_id_at_once_one_is_refused(
    stockroom: Stockroom, second_process: Stockroom
) -> None:
    stockroom.add(1, 100)

    outcomes = at_once(
        [
            partial(process.hold, 1, 1 + number, request_id="r")
            for number, process in enumerate((stockroom, second_process) * 4)
        ]
    )

    assert len(refusals(outcomes)) == 7
    assert all(isinstance(each, RequestIdReused) for each in refusals(outcomes))
    assert len(stockroom.events("STOCK_RESERVED")) == 1


def test_one_call_may_carry_a_request_id_twice(stockroom: Stockroom) -> None:
    stockroom.add(1, 10)
    order = OrderLines("order-1", (Line(1, 1),), None, request_id="r")
    other = OrderLines("order-1", (Line(1, 2),), None, request_id="r")

    first, twin, reused = stockroom.operations._reserve.submit_many([order, order, other], deadline=deadline())

    assert first == twin
    assert isinstance(reused, RequestIdReused)
    assert stockroom.available(1) == 9


def test_a_refusal_stores_nothing_and_is_decided_anew(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    with pytest.raises(InsufficientStock):
        stockroom.hold(1, 2, request_id="r")
    assert stored_keys(stockroom) == 0

    stockroom.add(1, 1)

    assert stockroom.hold(1, 2, request_id="r").state is State.HELD
    assert stored_keys(stockroom) == 1


def test_a_refused_order_of_a_batch_leaves_its_neighbours_claim(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    orders = [OrderLines(f"order-{n}", (Line(1, 1),), None, request_id=f"r-{n}") for n in range(3)]

    outcomes = stockroom.operations._reserve.submit_many(orders, deadline=deadline())
    repeated = stockroom.operations._reserve.submit_many(orders, deadline=deadline())

    granted = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, ShopError)]
    assert granted == [0]
    assert repeated[0] == outcomes[0]
    assert stored_keys(stockroom) == 1


def test_a_repeated_addition_adds_once_and_answers_with_the_item_as_it_is(stockroom: Stockroom) -> None:
    stockroom.add(1, 5, request_id="r")
    stockroom.add(1, 2)

    assert stockroom.add(1, 5, request_id="r").quantity == 7
    with pytest.raises(RequestIdReused):
        stockroom.add(1, 6, request_id="r")
    assert len(stockroom.events("STOCK_UPDATED")) == 2


def test_a_repeated_change_is_made_once_although_the_version_has_moved_on(stockroom: Stockroom) -> None:
    item = stockroom.add(1, 5)
    changed = stockroom.set(item, 8, version=item.version, request_id="r")

    assert stockroom.set(item, 8, version=item.version, request_id="r") == changed
    with pytest.raises(RequestIdReused):
        stockroom.set(item, 9, version=item.version, request_id="r")
    assert changed.version == item.version + 1
