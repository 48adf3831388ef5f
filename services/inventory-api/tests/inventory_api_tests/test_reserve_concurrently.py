"""Many buyers reserve the same stock at the same time, in one process and in two."""

from functools import partial

from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import Line
from shop_common.errors import ShopError
from testkit.drivers.inventory_api import InventoryDriver, at_once, refusals


def test_the_last_unit_goes_to_one_of_a_hundred_buyers(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)

    outcomes = at_once([partial(inventory.reserve, 1, 1, order=f"order-{buyer}") for buyer in range(100)])

    refused = refusals(outcomes)
    assert len(refused) == 99
    assert all(isinstance(each, InsufficientStock) and each.available == 0 for each in refused)
    assert inventory.available(1) == 0
    assert len(inventory.events("STOCK_RESERVED")) == 1


def test_the_last_unit_goes_to_one_buyer_of_two_processes(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    inventory.add_stock(1, 1)

    outcomes = at_once(
        [
            partial(process.reserve, 1, 1, order=f"order-{number}-{buyer}")
            for buyer in range(25)
            for number, process in enumerate((inventory, second_process))
        ]
    )

    assert len(refusals(outcomes)) == 49
    assert all(isinstance(each, InsufficientStock) for each in refusals(outcomes))
    assert len(inventory.events("STOCK_RESERVED")) == 1


def test_concurrent_buyers_of_several_units_get_each_unit_once(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    inventory.add_stock(1, 40, "A")
    inventory.add_stock(1, 23, "B")

    outcomes = at_once(
        [
            partial(process.reserve, 1, 3, order=f"order-{number}-{buyer}")
            for buyer in range(15)
            for number, process in enumerate((inventory, second_process))
        ]
    )

    assert len(outcomes) - len(refusals(outcomes)) == 63 // 3
    assert inventory.available(1) == 0


def test_orders_with_the_same_products_in_opposite_order_do_not_deadlock(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    for product in range(1, 7):
        inventory.add_stock(product, 100)
    forth = [Line(product, 1) for product in range(1, 7)]
    calls = [
        partial(process.reserve_lines, f"order-{number}-{buyer}", *lines)
        for buyer in range(8)
        for number, (process, lines) in enumerate(((inventory, forth), (second_process, forth[::-1])))
    ]

    outcomes = at_once(calls)

    assert refusals(outcomes) == []
    assert [inventory.available(product) for product in range(1, 7)] == [84] * 6


def test_a_due_reservations_units_go_to_one_of_many_buyers_while_the_reaper_runs(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    inventory.add_stock(1, 1)
    for round_number in range(5):
        due = inventory.reserve(1, 1, order=f"due-{round_number}")
        inventory.make_due(due)

        def reserve(process: InventoryDriver, order: str) -> object:
            return process.reserve(1, 1, order=order)

        def expire(process: InventoryDriver) -> object:
            return process.expire()

        *expired, first, second, third, fourth = at_once(
            [
                partial(expire, inventory),
                partial(expire, second_process),
                partial(reserve, inventory, "a"),
                partial(reserve, second_process, "b"),
                partial(reserve, inventory, "c"),
                partial(reserve, second_process, "d"),
            ]
        )

        winners = [each for each in (first, second, third, fourth) if not isinstance(each, ShopError)]
        assert len(winners) == 1
        assert not refusals(expired)
        expirations = inventory.events("STOCK_RESERVATION_EXPIRED")
        assert [event.data["reservation_id"] for event in expirations].count(due.id) == 1
        inventory.cancel("a", "b", "c", "d")
