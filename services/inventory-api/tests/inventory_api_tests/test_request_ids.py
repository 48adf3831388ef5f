"""A repeated request_id has one effect and returns the same resource."""

from functools import partial

import pytest
from sqlalchemy import func, select

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import Line, Reservation, State
from inventory_api.store import tables
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import ShopError
from testkit.drivers.inventory_api import InventoryDriver, at_once, deadline, refusals


def stored_keys(inventory: InventoryDriver) -> int:
    with inventory.database.read() as tx:
        return tx.execute(select(func.count()).select_from(tables.idempotency_keys.table)).scalar_one()


def test_a_repeated_request_returns_the_same_reservation(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)

    first = inventory.reserve_lines("order-1", Line(1, 2), Line(1, 2), request_id="r")
    again = inventory.reserve_lines("order-1", Line(1, 2), Line(1, 2), request_id="r")

    assert again == first
    assert inventory.available(1) == 6
    assert len(inventory.events("STOCK_RESERVED")) == 1


def test_a_repeated_request_for_several_products_returns_the_same_order(inventory: InventoryDriver) -> None:
    for product in (1, 2, 3):
        inventory.add_stock(product, 1)
    lines = [Line(3, 1), Line(1, 1), Line(2, 1)]

    assert inventory.reserve_lines("o", *lines, request_id="r") == inventory.reserve_lines("o", *lines, request_id="r")


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
def test_a_request_id_with_other_content_is_refused(inventory: InventoryDriver, other: OrderLines) -> None:
    inventory.add_stock(1, 10)
    inventory.reserve(1, 1, request_id="r")

    with pytest.raises(RequestIdReused):
        inventory.operations.reserve(other, deadline=deadline())

    assert inventory.available(1) == 9


def test_the_same_request_id_may_be_used_for_two_methods(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10, request_id="r")
    inventory.set_quantity(item, 20, request_id="r")
    inventory.reserve(1, 1, request_id="r")

    assert inventory.available(1) == 19


def test_a_repeat_after_release_returns_released_and_reserves_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    inventory.release(inventory.reserve(1, 1, request_id="r"))

    assert inventory.reserve(1, 1, request_id="r").state is State.RELEASED
    assert inventory.available(1) == 1


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_repeat_after_expiry_returns_expired_and_reserves_nothing(
    inventory: InventoryDriver, is_stored: bool
) -> None:
    inventory.add_stock(1, 1)
    inventory.make_due(inventory.reserve(1, 1, request_id="r"))
    if is_stored:
        inventory.expire()

    assert inventory.reserve(1, 1, request_id="r").state is State.EXPIRED
    assert inventory.available(1) == 1


def test_a_repeat_after_confirmation_returns_confirmed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    inventory.reserve(1, 1, request_id="r")
    (kept,) = inventory.confirm()

    assert inventory.reserve(1, 1, request_id="r") == kept


def test_sixteen_concurrent_repeats_in_two_processes_create_one_reservation(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    inventory.add_stock(1, 100)

    def reserve(process: InventoryDriver) -> Reservation:
        return process.reserve(1, 1, request_id="r")

    held = at_once([partial(reserve, process) for process in (inventory, second_process) for _ in range(8)])

    assert refusals(held) == []
    assert len({each.id for each in held if isinstance(each, Reservation)}) == 1
    assert inventory.available(1) == 99


def test_of_two_concurrent_contents_with_one_request_id_one_is_refused(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    inventory.add_stock(1, 100)

    outcomes = at_once(
        [
            partial(process.reserve, 1, 1 + number, request_id="r")
            for number, process in enumerate((inventory, second_process) * 4)
        ]
    )

    assert len(refusals(outcomes)) == 7
    assert all(isinstance(each, RequestIdReused) for each in refusals(outcomes))
    assert len(inventory.events("STOCK_RESERVED")) == 1


def test_one_batch_call_may_contain_a_request_id_twice(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    order = OrderLines("order-1", (Line(1, 1),), None, request_id="r")
    other = OrderLines("order-1", (Line(1, 2),), None, request_id="r")

    first, twin, reused = inventory.operations._reserve.submit_many([order, order, other], deadline=deadline())

    assert first == twin
    assert isinstance(reused, RequestIdReused)
    assert inventory.available(1) == 9


def test_a_refusal_stores_no_key_and_a_repeat_is_decided_again(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    with pytest.raises(InsufficientStock):
        inventory.reserve(1, 2, request_id="r")
    assert stored_keys(inventory) == 0

    inventory.add_stock(1, 1)

    assert inventory.reserve(1, 2, request_id="r").state is State.HELD
    assert stored_keys(inventory) == 1


def test_a_refused_order_does_not_delete_the_keys_of_its_batch(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    orders = [OrderLines(f"order-{n}", (Line(1, 1),), None, request_id=f"r-{n}") for n in range(3)]

    outcomes = inventory.operations._reserve.submit_many(orders, deadline=deadline())
    repeated = inventory.operations._reserve.submit_many(orders, deadline=deadline())

    successes = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, ShopError)]
    assert successes == [0]
    assert repeated[0] == outcomes[0]
    assert stored_keys(inventory) == 1


def test_a_repeated_addition_adds_once_and_returns_the_item_as_it_is_now(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, request_id="r")
    inventory.add_stock(1, 2)

    assert inventory.add_stock(1, 5, request_id="r").quantity == 7
    with pytest.raises(RequestIdReused):
        inventory.add_stock(1, 6, request_id="r")
    assert len(inventory.events("STOCK_UPDATED")) == 2


def test_a_repeated_change_takes_effect_once_although_the_version_has_changed(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    changed = inventory.set_quantity(item, 8, version=item.version, request_id="r")

    assert inventory.set_quantity(item, 8, version=item.version, request_id="r") == changed
    with pytest.raises(RequestIdReused):
        inventory.set_quantity(item, 9, version=item.version, request_id="r")
    assert changed.version == item.version + 1
