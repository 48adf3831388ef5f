"""Every change of a quantity is a movement. The driver checks after each test that the movements are without gaps."""

from datetime import UTC, datetime
from functools import partial

import pytest
from sqlalchemy import Connection, update

from inventory_api.domain.commands import MovementFilter, SetQuantity
from inventory_api.domain.model import Item, Line
from inventory_api.domain.movements import Booked, Movement, MovementKind, QuantityChange, movements_of
from inventory_api.operations.items.set_quantity import set_quantity
from inventory_api.store import movements, tables
from shop_common.api.command import Cause
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import InventoryDriver, at_once, refusals

NOW = datetime(2024, 1, 15, tzinfo=UTC)


def summaries(found: list[Movement]) -> list[tuple[str, int, int]]:
    return [(each.kind.value, each.quantity, each.quantity_after) for each in found]


def item(quantity: int, item_id: int = 1) -> Item:
    return Item(DEFAULT, item_id, 7, "A", quantity, 0, 1, NOW, NOW)


# --- decisions ---


def test_movements_continue_the_revisions_of_each_item() -> None:
    changes = [
        QuantityChange(item(5), MovementKind.RECEIVED, 5, Cause(actor="user:1")),
        QuantityChange(item(9, item_id=2), MovementKind.RECEIVED, 2),
        QuantityChange(item(3), MovementKind.FULFILLED, -2, order_id="order-1"),
    ]

    written = [movement for movement, _ in movements_of(changes, {1: Booked(0, 0), 2: Booked(4, 7)}, NOW)]

    assert [(each.item_id, each.revision, each.quantity_after) for each in written] == [(1, 1, 5), (2, 5, 9), (1, 2, 3)]
    assert [(each.actor, each.order_id) for each in written] == [("user:1", ""), ("", ""), ("", "order-1")]


def test_a_change_that_was_not_booked_becomes_a_movement_of_its_own() -> None:
    written = movements_of([QuantityChange(item(9), MovementKind.RECEIVED, 2)], {1: Booked(3, 4)}, NOW)

    assert [(each.kind, each.quantity, each.reason, each.revision) for each, _ in written] == [
        (MovementKind.ADJUSTED, 3, "UPGRADE", 4),
        (MovementKind.RECEIVED, 2, "", 5),
    ]


# --- writers ---


def test_each_change_of_a_quantity_writes_one_movement(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 10)
    inventory.set_quantity(stocked, 8)
    inventory.set_quantity(stocked, 8)
    inventory.reserve(1, 3, order="order-1")
    inventory.confirm("order-1")
    inventory.ship("order-1")
    inventory.release(inventory.reserve(1, 2, order="order-2"))

    found = inventory.movements()

    assert summaries(found) == [("FULFILLED", -3, 5), ("COUNTED", 0, 8), ("COUNTED", -2, 8), ("RECEIVED", 10, 10)]
    assert [each.order_id for each in found] == ["order-1", "", "", ""]
    assert inventory.events("STOCK_MOVED")[-1].data == {
        "item_id": stocked.id,
        "product_id": 1,
        "location": stocked.location,
        "revision": 4,
        "kind": "FULFILLED",
        "quantity": -3,
        "quantity_after": 5,
        "order_id": "order-1",
    }


def test_a_shipment_writes_one_movement_per_location(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2, "A")
    inventory.add_stock(1, 3, "B")
    inventory.reserve_lines("order-1", Line(1, 5))
    inventory.confirm("order-1")
    inventory.ship("order-1")

    found = inventory.movements(MovementFilter(DEFAULT, order_id="order-1"))

    assert sorted((each.location, each.quantity) for each in found) == [("A", -2), ("B", -3)]


def test_a_repeated_or_refused_call_writes_no_movement(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 5, request_id="r")
    inventory.add_stock(1, 5, request_id="r")
    inventory.reserve(1, 4)

    outcomes = at_once([partial(inventory.set_quantity, stocked, 3)])

    assert len(refusals(outcomes)) == 1
    assert summaries(inventory.movements()) == [("RECEIVED", 5, 5)]


def test_the_changes_of_a_process_without_movements_are_booked_by_the_next_change(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 5)
    with inventory.database.write() as tx:
        tx.execute(update(tables.inventory_items).values(quantity=9))

    inventory.set_quantity(stocked, 4)

    assert summaries(inventory.movements()) == [("COUNTED", -5, 4), ("ADJUSTED", 4, 9), ("RECEIVED", 5, 5)]
    assert inventory.movements()[1].reason == "UPGRADE"


def test_concurrent_changes_in_two_processes_leave_no_gap(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    stocked = inventory.add_stock(1, 100)
    calls = [
        call
        for process in (inventory, second_process)
        for number in range(6)
        for call in (partial(process.add_stock, 1, 1), partial(process.set_quantity, stocked, 100 + number))
    ]

    assert refusals(at_once(calls)) == []

    assert len(inventory.movements()) == 1 + len(calls)


def test_a_failed_transaction_leaves_no_movement(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 5)

    def fail(tx: Connection) -> None:
        set_quantity(tx, [SetQuantity(stocked.id, 3)])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inventory.database.transact(fail)

    assert summaries(inventory.movements()) == [("RECEIVED", 5, 5)]


# --- ListMovements ---


@pytest.mark.parametrize("size", [1, 2, 50])
def test_movements_are_filtered_by_every_field(inventory: InventoryDriver, size: int) -> None:
    for product, location in ((1, "A"), (1, "B"), (2, "A")):
        inventory.add_stock(product, 5, location)
    stocked = inventory.add_stock(2, 5, "B")
    inventory.reserve_lines("order-1", Line(1, 1, "A"), Line(2, 1, "B"))
    inventory.confirm("order-1")
    inventory.ship("order-1")
    counted = inventory.set_quantity(stocked, 9).updated_at

    def keys(**values: object) -> set[tuple[int, str, str]]:
        found = inventory.movements(MovementFilter(DEFAULT, **values), size=size)  # type: ignore[arg-type]  # any field
        return {(each.product_id, each.location, each.kind.value[0]) for each in found}

    assert keys(product_id=2) == {(2, "A", "R"), (2, "B", "R"), (2, "B", "F"), (2, "B", "C")}
    assert keys(location="A") == {(1, "A", "R"), (2, "A", "R"), (1, "A", "F")}
    assert keys(product_id=1, location="A", kind=MovementKind.RECEIVED) == {(1, "A", "R")}
    assert keys(order_id="order-1") == {(1, "A", "F"), (2, "B", "F")}
    assert keys(order_id="order-1", product_id=2) == {(2, "B", "F")}
    assert keys(kind=MovementKind.COUNTED) == keys(created_after=counted) == {(2, "B", "C")}
    assert keys(created_before=counted, product_id=2, location="B") == {(2, "B", "R"), (2, "B", "F")}
    assert keys(actor="nobody") == keys(product_id=404) == set()


def test_pages_contain_each_movement_once_while_movements_are_added(inventory: InventoryDriver) -> None:
    for units in range(7):
        inventory.add_stock(1, units)
    before = inventory.movements()

    page = inventory.movements_page(MovementFilter(DEFAULT), size=3)
    found = list(page.rows)
    while page.next_position is not None:
        inventory.add_stock(1, 100)
        page = inventory.movements_page(MovementFilter(DEFAULT), size=3, after=page)
        found += page.rows

    assert found == before


def test_a_page_ends_after_the_rows_that_it_may_read(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movements, "WINDOW_ROWS", 3)
    for units in range(8):
        inventory.add_stock(1, units)
    stocked = inventory.item(inventory.add_stock(1, 1))
    first = MovementFilter(DEFAULT, created_before=stocked.updated_at, kind=MovementKind.COUNTED)

    assert inventory.movements_page(first, size=3).next_position is not None
    assert inventory.movements(first, size=3) == []
    assert len(inventory.movements(size=3)) == 9


def test_movements_of_another_tenant_are_not_listed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)

    assert inventory.movements(MovementFilter("acme", product_id=1)) == []
