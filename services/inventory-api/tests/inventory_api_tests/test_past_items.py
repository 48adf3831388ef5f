"""The quantities of items at an earlier time, from their movements."""

from dataclasses import replace
from datetime import timedelta

import pytest

from inventory_api.domain.commands import ItemFilter, PastItemQuestion
from inventory_api.domain.errors import ItemNotFound
from inventory_api.domain.model import Item, ItemKey
from inventory_api.domain.movements import Movement
from shop_common.api.paging import PageRequest
from testkit.drivers.inventory_api import InventoryDriver, deadline

MICROSECOND = timedelta(microseconds=1)


def quantity_at(inventory: InventoryDriver, item: Item, movement: Movement, *, before: bool = False) -> int:
    as_of = movement.created_at - MICROSECOND if before else movement.created_at
    question = PastItemQuestion(ItemKey(inventory.caller.tenant, item.id), as_of)
    return inventory.operations.get_past_item(question, deadline=deadline()).quantity


def test_an_item_has_the_quantity_after_its_last_movement_until_the_time(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10)
    inventory.add_stock(1, 99, "elsewhere")
    inventory.set_quantity(item, 7)
    inventory.add_stock(1, 5)

    last, counted, _, first = inventory.movements()

    assert [quantity_at(inventory, item, each) for each in (first, counted, last)] == [10, 7, 12]
    assert [quantity_at(inventory, item, each, before=True) for each in (counted, last)] == [10, 7]
    with pytest.raises(ItemNotFound):
        quantity_at(inventory, item, first, before=True)
    with pytest.raises(ItemNotFound):
        quantity_at(inventory, replace(item, id=2**60), last)


def test_a_list_leaves_out_items_without_a_movement_until_the_time(inventory: InventoryDriver) -> None:
    for location in ("A", "B", "C"):
        inventory.add_stock(1, 1, location)
    _, of_b, of_a = inventory.movements()
    inventory.add_stock(1, 5, "A")

    def listed(as_of: Movement, size: int) -> list[tuple[str, int]]:
        filter_ = ItemFilter(inventory.caller.tenant, product_id=1, as_of=as_of.created_at)
        page = inventory.operations.list_past_items(PageRequest("items", filter_, None, size), deadline=deadline())
        found = list(page.rows)
        while page.next_position is not None:
            request = PageRequest("items", filter_, page.next_position, size)
            page = inventory.operations.list_past_items(request, deadline=deadline())
            found += page.rows
        return [(each.item.location, each.quantity) for each in found]

    for size in (1, 10):
        assert listed(of_a, size) == [("A", 1)]
        assert listed(of_b, size) == [("A", 1), ("B", 1)]
