"""Lists: each row that was there at the first page comes exactly once, whatever happens meanwhile."""

from collections.abc import Callable

import pytest
from stockroom import Stockroom

from inventory_api.domain.model import Item, Reservation, State
from inventory_api.operations.stock import ItemFilter
from inventory_api.store.reservation_pages import ReservationFilter
from shop_common.api import paging
from shop_common.api.paging import Page
from shop_common.api.valid import Fields


def all_items(
    stockroom: Stockroom, wanted: ItemFilter, size: int, between: Callable[[], object] = lambda: None
) -> list[Item]:
    page = stockroom.items_page(wanted, size=size)
    found = list(page.rows)
    while page.next_position is not None:
        between()
        page = stockroom.items_page(wanted, size=size, after=page)
        found += page.rows
    return found


def all_reservations(
    stockroom: Stockroom, wanted: ReservationFilter, size: int, between: Callable[[], object] = lambda: None
) -> list[Reservation]:
    page = stockroom.reservations_page(wanted, size=size)
    found = list(page.rows)
    while page.next_position is not None:
        between()
        page = stockroom.reservations_page(wanted, size=size, after=page)
        found += page.rows
    return found


@pytest.mark.parametrize("size", [1, 3, 7, 8, 50])
def test_pages_of_any_size_hold_each_item_once(stockroom: Stockroom, size: int) -> None:
    items = [stockroom.add(product, 1) for product in range(1, 9)]

    assert all_items(stockroom, ItemFilter(), size) == items


def test_a_list_that_just_fills_its_page_has_no_next_one(stockroom: Stockroom) -> None:
    stockroom.add(1, 1)
    stockroom.add(2, 1)

    assert stockroom.items_page(ItemFilter(), size=2).next_position is None
    assert stockroom.items_page(ItemFilter(), size=1).next_position is not None
    assert stockroom.items_page(ItemFilter(product_id=404), size=1) == Page([], None)


def test_items_are_filtered_by_product_and_by_location(stockroom: Stockroom) -> None:
    for product in (1, 2):
        for location in ("A", "B"):
            stockroom.add(product, 1, location)

    def places(wanted: ItemFilter) -> list[tuple[int, str]]:
        return [(item.product_id, item.location) for item in all_items(stockroom, wanted, 1)]

    assert places(ItemFilter(product_id=2)) == [(2, "A"), (2, "B")]
    assert places(ItemFilter(location="B")) == [(1, "B"), (2, "B")]
    assert places(ItemFilter(product_id=1, location="B")) == [(1, "B")]


def test_item_pages_neither_skip_nor_repeat_while_items_are_added(stockroom: Stockroom) -> None:
    before = [stockroom.add(product, 1).id for product in range(1, 8)]
    fresh = iter(range(100, 120))

    found = all_items(stockroom, ItemFilter(), 2, between=lambda: stockroom.add(next(fresh), 1))

    ids = [item.id for item in found]
    assert len(ids) == len(set(ids))
    assert ids[: len(before)] == before


def test_listed_items_count_holds_past_their_time_as_available(stockroom: Stockroom) -> None:
    stockroom.add(1, 5)
    stockroom.hold(1, 1)
    stockroom.lapse(stockroom.hold(1, 2))

    (item,) = all_items(stockroom, ItemFilter(), 10)

    assert (item.reserved_quantity, item.available_quantity) == (3, 4)


def test_reservation_pages_neither_skip_nor_repeat_while_holds_are_made(stockroom: Stockroom) -> None:
    stockroom.add(1, 100)
    before = [stockroom.hold(1, 1, order=f"order-{n}") for n in range(7)]

    found = all_reservations(stockroom, ReservationFilter(), 2, between=lambda: stockroom.hold(1, 1, order="new"))

    ids = [each.id for each in found]
    assert len(ids) == len(set(ids))
    assert found[: len(before)] == before


def test_reservations_are_filtered_by_order_and_by_product(stockroom: Stockroom) -> None:
    stockroom.add(1, 9)
    stockroom.add(2, 9)
    first, second, third = (
        stockroom.hold(product, 1, order=order) for product, order in ((1, "a"), (2, "a"), (1, "b"))
    )

    assert all_reservations(stockroom, ReservationFilter(order_id="a"), 1) == [first, second]
    assert all_reservations(stockroom, ReservationFilter(product_id=1), 1) == [first, third]
    assert all_reservations(stockroom, ReservationFilter(order_id="b", product_id=2), 1) == []


def test_reservations_are_filtered_by_the_state_that_callers_see(stockroom: Stockroom) -> None:
    stockroom.add(1, 50)
    lapsed, expired, released, fulfilled, confirmed, held = (
        stockroom.hold(1, 1, order=order) for order in ("l", "e", "r", "f", "c", "h")
    )
    stockroom.lapse(expired)
    stockroom.expire()
    stockroom.lapse(lapsed)
    stockroom.release(released)
    stockroom.confirm("f")
    stockroom.ship("f")
    stockroom.confirm("c")

    def ids(state: State) -> set[str]:
        found = all_reservations(stockroom, ReservationFilter(state=state), 1)
        assert all(each.state is state for each in found)
        return {each.id for each in found}

    assert ids(State.HELD) == {held.id}
    assert ids(State.EXPIRED) == {lapsed.id, expired.id}
    assert ids(State.RELEASED) == {released.id}
    assert ids(State.FULFILLED) == {fulfilled.id}
    assert ids(State.CONFIRMED) == {confirmed.id}


def test_a_token_of_one_filter_is_no_token_of_another(stockroom: Stockroom) -> None:
    stockroom.add(1, 1, "A")
    stockroom.add(1, 1, "B")
    with Fields() as check:
        asked = paging.ask(check, "items", ItemFilter(1), page_size=1, page_token="", position=(int,))
    page = stockroom.operations.list_items(asked, deadline=float("1e9"))
    token = paging.next_token(page, asked)

    def violations(kind: str, wanted: ItemFilter) -> int:
        check = Fields()
        paging.ask(check, kind, wanted, page_size=1, page_token=token, position=(int,))
        return len(check._violations)

    assert violations("items", ItemFilter(1)) == 0
    assert violations("items", ItemFilter(2)) == 1
    assert violations("items", ItemFilter(1, "A")) == 1
    assert violations("orders", ItemFilter(1)) == 1
