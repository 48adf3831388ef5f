"""Lists: each row that existed at the first page is listed exactly once, whatever changes meanwhile."""

from collections.abc import Callable

import pytest

from inventory_api.domain.commands import ItemFilter, ReservationFilter
from inventory_api.domain.model import Item, Reservation, State
from shop_common.api import paging
from shop_common.api.paging import Page
from shop_common.api.valid import Fields
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import InventoryDriver


def all_items(
    inventory: InventoryDriver, filter_: ItemFilter, size: int, between: Callable[[], object] = lambda: None
) -> list[Item]:
    page = inventory.items_page(filter_, size=size)
    found = list(page.rows)
    while page.next_position is not None:
        between()
        page = inventory.items_page(filter_, size=size, after=page)
        found += page.rows
    return found


def all_reservations(
    inventory: InventoryDriver, filter_: ReservationFilter, size: int, between: Callable[[], object] = lambda: None
) -> list[Reservation]:
    page = inventory.reservations_page(filter_, size=size)
    found = list(page.rows)
    while page.next_position is not None:
        between()
        page = inventory.reservations_page(filter_, size=size, after=page)
        found += page.rows
    return found


@pytest.mark.parametrize("size", [1, 3, 7, 8, 50])
def test_pages_of_any_size_contain_each_item_once(inventory: InventoryDriver, size: int) -> None:
    items = [inventory.add_stock(product, 1) for product in range(1, 9)]

    assert all_items(inventory, ItemFilter(DEFAULT), size) == items


def test_a_list_that_exactly_fills_its_page_has_no_next_page(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    inventory.add_stock(2, 1)

    assert inventory.items_page(ItemFilter(DEFAULT), size=2).next_position is None
    assert inventory.items_page(ItemFilter(DEFAULT), size=1).next_position is not None
    assert inventory.items_page(ItemFilter(DEFAULT, product_id=404), size=1) == Page([], None)


def test_items_are_filtered_by_product_and_by_location(inventory: InventoryDriver) -> None:
    for product in (1, 2):
        for location in ("A", "B"):
            inventory.add_stock(product, 1, location)

    def keys(filter_: ItemFilter) -> list[tuple[int, str]]:
        return [(item.product_id, item.location) for item in all_items(inventory, filter_, 1)]

    assert keys(ItemFilter(DEFAULT, product_id=2)) == [(2, "A"), (2, "B")]
    assert keys(ItemFilter(DEFAULT, location="B")) == [(1, "B"), (2, "B")]
    assert keys(ItemFilter(DEFAULT, product_id=1, location="B")) == [(1, "B")]


def test_item_pages_neither_skip_nor_repeat_while_items_are_added(inventory: InventoryDriver) -> None:
    before = [inventory.add_stock(product, 1).id for product in range(1, 8)]
    fresh = iter(range(100, 120))

    found = all_items(inventory, ItemFilter(DEFAULT), 2, between=lambda: inventory.add_stock(next(fresh), 1))

    ids = [item.id for item in found]
    assert len(ids) == len(set(ids))
    assert ids[: len(before)] == before


def test_listed_items_count_due_units_as_available(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.reserve(1, 1)
    inventory.make_due(inventory.reserve(1, 2))

    (item,) = all_items(inventory, ItemFilter(DEFAULT), 10)

    assert (item.reserved_quantity, item.available_quantity) == (3, 4)


def test_reservation_pages_neither_skip_nor_repeat_while_reservations_are_added(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 100)
    before = [inventory.reserve(1, 1, order=f"order-{n}") for n in range(7)]

    found = all_reservations(
        inventory, ReservationFilter(DEFAULT), 2, between=lambda: inventory.reserve(1, 1, order="new")
    )

    ids = [each.id for each in found]
    assert len(ids) == len(set(ids))
    assert found[: len(before)] == before


def test_reservations_are_filtered_by_order_and_by_product(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 9)
    inventory.add_stock(2, 9)
    first, second, third = (
        inventory.reserve(product, 1, order=order) for product, order in ((1, "a"), (2, "a"), (1, "b"))
    )

    assert all_reservations(inventory, ReservationFilter(DEFAULT, order_id="a"), 1) == [first, second]
    assert all_reservations(inventory, ReservationFilter(DEFAULT, product_id=1), 1) == [first, third]
    assert all_reservations(inventory, ReservationFilter(DEFAULT, order_id="b", product_id=2), 1) == []


def test_reservations_are_filtered_by_the_state_that_callers_see(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 50)
    due, expired, released, fulfilled, confirmed, held = (
        inventory.reserve(1, 1, order=order) for order in ("l", "e", "r", "f", "c", "h")
    )
    inventory.make_due(expired)
    inventory.expire()
    inventory.make_due(due)
    inventory.release(released)
    inventory.confirm("f")
    inventory.ship("f")
    inventory.confirm("c")

    def ids(state: State) -> set[str]:
        found = all_reservations(inventory, ReservationFilter(DEFAULT, state=state), 1)
        assert all(each.state is state for each in found)
        return {each.id for each in found}

    assert ids(State.HELD) == {held.id}
    assert ids(State.EXPIRED) == {due.id, expired.id}
    assert ids(State.RELEASED) == {released.id}
    assert ids(State.FULFILLED) == {fulfilled.id}
    assert ids(State.CONFIRMED) == {confirmed.id}


def test_a_token_of_one_filter_is_refused_with_another(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, "A")
    inventory.add_stock(1, 1, "B")
    with Fields() as check:
        request = paging.page_request(
            check, "items", ItemFilter(DEFAULT, 1), page_size=1, page_token="", position=(int,)
        )
    page = inventory.operations.list_items(request, deadline=float("1e9"))
    token = paging.next_token(page, request)

    def violations(kind: str, filter_: ItemFilter) -> int:
        check = Fields()
        paging.page_request(check, kind, filter_, page_size=1, page_token=token, position=(int,))
        return len(check._violations)

    assert violations("items", ItemFilter(DEFAULT, 1)) == 0
    assert violations("items", ItemFilter(DEFAULT, 2)) == 1
    assert violations("items", ItemFilter(DEFAULT, 1, "A")) == 1
    assert violations("orders", ItemFilter(DEFAULT, 1)) == 1
