"""Items: adding units, setting quantities, checking stock, and their limits."""

from functools import partial

import pytest
from sqlalchemy import insert

from inventory_api.domain.commands import AddStock, SetQuantity, StockQuestion
from inventory_api.domain.errors import BelowReserved, InsufficientStock, ItemNotFound, QuantityLimit, VersionMismatch
from inventory_api.domain.model import DEFAULT_LOCATION, ITEM_QUANTITY_MAX, Item, State
from inventory_api.operations.items import add_stock
from inventory_api.store import tables
from shop_common.api.valid import INT64_MAX
from shop_common.db.sql import now
from testkit.drivers.inventory_api import InventoryDriver, at_once, deadline, refusals, stock_key


def missing(item: Item) -> SetQuantity:
    return SetQuantity(item.id + 1_000_000, 1)


# --- add ---


def test_the_first_units_create_the_item(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)

    assert (item.product_id, item.location, item.quantity, item.reserved_quantity) == (1, DEFAULT_LOCATION, 5, 0)
    assert item.version == 1
    assert inventory.item(item) == item
    (event,) = inventory.events("STOCK_UPDATED")
    assert event.data == {
        "item_id": item.id,
        "product_id": 1,
        "location": DEFAULT_LOCATION,
        "quantity": 5,
        "reserved_quantity": 0,
        "version": 1,
    }


def test_more_units_go_to_the_same_item_at_the_same_location_only(inventory: InventoryDriver) -> None:
    first = inventory.add_stock(1, 5, "A")
    elsewhere = inventory.add_stock(1, 1, "B")
    more = inventory.add_stock(1, 7, "A")

    assert (more.id, more.quantity, more.version) == (first.id, 12, 2)
    assert more.created_at == first.created_at
    assert more.updated_at >= first.updated_at
    assert elsewhere.id != first.id
    assert inventory.item(elsewhere).quantity == 1


def test_an_item_may_be_created_with_zero_units(inventory: InventoryDriver) -> None:
    assert inventory.add_stock(1, 0).quantity == 0


def test_an_addition_returns_reserved_and_due_units(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.reserve(1, 1)
    inventory.make_due(inventory.reserve(1, 2))

    item = inventory.add_stock(1, 1)

    assert (item.quantity, item.reserved_quantity, item.available_quantity) == (6, 3, 5)


def test_concurrent_additions_from_two_processes_all_count(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    calls = [
        partial(process.add_stock, product, 1, location)
        for process in (inventory, second_process)
        for product in (1, 2)
        for location in ("A", "B")
        for _ in range(4)
    ]

    assert refusals(at_once(calls)) == []

    assert [inventory.available(product, where) for product in (1, 2) for where in ("A", "B")] == [8] * 4
    assert len(inventory.events("STOCK_UPDATED")) == 32


def test_an_item_has_at_most_its_limit_of_units(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, ITEM_QUANTITY_MAX - 1)
    inventory.add_stock(1, 1)

    with pytest.raises(QuantityLimit) as refused:
        inventory.add_stock(1, 1)
    with pytest.raises(QuantityLimit):
        inventory.add_stock(1, ITEM_QUANTITY_MAX)

    assert refused.value.metadata()["quantity"] == str(ITEM_QUANTITY_MAX)
    assert inventory.item(item).quantity == ITEM_QUANTITY_MAX
    assert len(inventory.events("STOCK_UPDATED")) == len(inventory.events("STOCK_MOVED")) == 2


def test_a_refused_addition_does_not_affect_the_rest_of_its_batch(inventory: InventoryDriver) -> None:
    requests = [AddStock(1, "A", ITEM_QUANTITY_MAX), AddStock(1, "A", 1), AddStock(1, "B", 1)]

    with inventory.database.write() as tx:
        outcomes = add_stock.add_stock(tx, requests)

    assert [type(outcome) for outcome in outcomes] == [Item, QuantityLimit, Item]


# --- set ---


def test_a_set_quantity_is_absolute_and_adds_one_version(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)

    changed = inventory.set_quantity(item, 2)

    assert (changed.quantity, changed.version) == (2, 2)
    assert inventory.item(item) == changed
    assert inventory.events("STOCK_UPDATED")[-1].data["quantity"] == 2


def test_setting_no_quantity_returns_the_item_and_emits_nothing(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)

    assert inventory.set_quantity(item, None) == item
    assert inventory.set_quantity(item, None, version=1) == item
    assert [event.type for event in inventory.events()] == ["STOCK_UPDATED", "STOCK_MOVED"]


def test_an_unknown_item_cannot_be_set_or_read(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    unknown = missing(item)

    with pytest.raises(ItemNotFound) as refused:
        inventory.operations.set_quantity(unknown, deadline=deadline())
    with pytest.raises(ItemNotFound):
        inventory.operations.get_item(unknown.item_key, deadline=deadline())

    assert refused.value.metadata() == {"id": str(unknown.item_id)}


def test_a_change_by_another_caller_is_a_version_mismatch(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    inventory.add_stock(1, 1)

    with pytest.raises(VersionMismatch) as refused:
        inventory.set_quantity(item, 9, version=item.version)
    with pytest.raises(VersionMismatch):
        inventory.set_quantity(item, None, version=item.version)

    assert refused.value.metadata() == {"id": str(item.id), "expected": "1", "actual": "2"}
    assert inventory.set_quantity(item, 9, version=2).quantity == 9


def test_reservations_do_not_change_the_version_until_they_are_fulfilled(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    inventory.reserve(1, 2)
    inventory.confirm()
    assert inventory.item(item).version == item.version

    inventory.ship("order-1")

    assert inventory.item(item).version == item.version + 1


def test_of_many_concurrent_changes_of_one_version_one_succeeds(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    item = inventory.add_stock(1, 5)

    outcomes = at_once(
        [
            partial(process.set_quantity, item, 10 + number, version=item.version)
            for number, process in enumerate((inventory, second_process) * 6)
        ]
    )

    assert len(refusals(outcomes)) == 11
    assert all(isinstance(each, VersionMismatch) for each in refusals(outcomes))


def test_the_quantity_may_be_set_to_the_reserved_units_and_not_below(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10)
    inventory.reserve(1, 4)

    with pytest.raises(BelowReserved) as refused:
        inventory.set_quantity(item, 3)

    assert refused.value.metadata() == {"id": str(item.id), "requested": "3", "reserved": "4", "withheld": "0"}
    assert inventory.set_quantity(item, 4).available_quantity == 0
    assert inventory.set_quantity(item, 9).available_quantity == 5


def test_due_reservations_expire_when_the_quantity_is_set_below_them(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10, "A")
    inventory.add_stock(1, 10, "B")
    due = inventory.reserve(1, 4, location="A")
    split = inventory.reserve(1, 12)
    fresh = inventory.reserve(1, 1, order="fresh", location="A")
    inventory.make_due(due, split)

    with pytest.raises(BelowReserved):
        inventory.set_quantity(item, 0)
    changed = inventory.set_quantity(item, 1)

    assert (changed.quantity, changed.reserved_quantity) == (1, 1)
    assert {inventory.stored_state(each) for each in (due, split)} == {State.EXPIRED}
    assert inventory.stored_state(fresh) is State.HELD
    assert inventory.available(1, "B") == 10


def test_a_quantity_that_is_high_enough_expires_nothing(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10)
    due = inventory.reserve(1, 4)
    inventory.make_due(due)

    assert inventory.set_quantity(item, 4).available_quantity == 4
    assert inventory.stored_state(due) is State.HELD


# --- check ---


def test_stock_is_checked_at_one_location_or_over_all(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 3, "A")
    inventory.add_stock(1, 4, "B")
    inventory.reserve(1, 1, location="A")
    questions = [StockQuestion(stock_key(*key)) for key in ((1, None), (1, "A"), (2, None), (1, "B"))]

    assert inventory.operations._check_stock.submit_many(questions, deadline=deadline()) == [6, 2, 0, 4]


def test_a_sum_over_locations_does_not_overflow(inventory: InventoryDriver) -> None:
    with inventory.database.write() as tx:
        timestamp = now(tx)
        tx.execute(
            insert(tables.inventory_items),
            [
                {
                    "product_id": 1,
                    "location": f"L{number}",
                    "quantity": ITEM_QUANTITY_MAX,
                    "reserved_quantity": 0,
                    "version": 0,
                    "created_at": timestamp,
                    "updated_at": timestamp,
                }
                for number in range(1100)
            ],
        )

    assert inventory.available(1) == INT64_MAX
    assert inventory.available(1, "L7") == ITEM_QUANTITY_MAX
    held = inventory.reserve(1, 1_000_000_000)
    assert [part.quantity for part in held.allocations] == [1_000_000_000]


def test_a_refusal_reports_the_exact_available_sum(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, ITEM_QUANTITY_MAX, "A")
    inventory.add_stock(1, ITEM_QUANTITY_MAX, "B")

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(1, 2 * ITEM_QUANTITY_MAX + 1)

    assert refused.value.available == 2 * ITEM_QUANTITY_MAX
