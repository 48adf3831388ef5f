"""The stock gets back the returned units of orders, each of them once."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial

import pytest
from sqlalchemy import Connection, select

from inventory_api.api import consumer
from inventory_api.domain import order_targets
from inventory_api.domain.commands import StockChange
from inventory_api.domain.model import ITEM_QUANTITY_MAX, WITHHOLDINGS_MAX, ProductKey
from inventory_api.domain.movements import MovementKind
from inventory_api.domain.order_targets import OrderTargets, Place, Totals
from inventory_api.operations import restock
from inventory_api.store import items, tables, withholdings
from shop_common.events.consumer import Event
from testkit.drivers.inventory_api import InventoryDriver, at_once

NOW = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
ORDER = "01930d4a-5f1c-7b22-8a40-5e9d8c3b1f10"
SHIPPED = Totals(5, 5)
DAMAGED = Place("A", "DAMAGED")


def targets(*restocked: tuple[str | Place, int]) -> dict[int, Totals]:
    return {1: SHIPPED._replace(restocked=tuple((placed(where), units) for where, units in restocked))}


def placed(where: str | Place) -> Place:
    return Place(where) if isinstance(where, str) else where


def shipped_order(inventory: InventoryDriver) -> None:
    """Add 10 units of product 1 at A, and ship 5 of them."""
    inventory.add_stock(1, 10, "A")
    inventory.reserve(1, 5, order=ORDER)
    inventory.confirm(ORDER)
    inventory.change_order(ORDER, 4, ordered={1: 5}, targets={1: SHIPPED})


def change(inventory: InventoryDriver, version: int, *restocked: tuple[str | Place, int]) -> dict[int, int]:
    return inventory.change_order(ORDER, version, ordered={1: 5}, targets=targets(*restocked))


def quantities(inventory: InventoryDriver) -> dict[str, int]:
    stored = tables.inventory_items
    with inventory.database.read() as tx:
        return {row.location: row.quantity for row in tx.execute(select(stored.c.location, stored.c.quantity))}


def shelves(inventory: InventoryDriver) -> dict[str, tuple[int, tuple[tuple[str, int], ...]]]:
    """Return the quantity and the withholdings of the product at each location."""
    with inventory.database.write() as tx:
        found = withholdings.with_withholdings(tx, items.lock_products(tx, [ProductKey(inventory.caller.tenant, 1)]))
    return {item.location: (item.quantity, item.withholdings) for item in found}


def withheld(units: int, reason: str) -> StockChange:
    return StockChange(0, 1, "A", MovementKind.WITHHELD, units, reason=reason)


def returned_event(*returned: Mapping[str, object]) -> Event:
    data = {
        "id": ORDER,
        "version": 5,
        "items": [{"product_id": 1, "quantity": 5}],
        "targets": [{"product_id": 1, "kept": 5, "shipped": 5, "returned": list(returned)}],
    }
    return Event("ORDER_RETURNED", ORDER, "event-5", data, NOW, None, "order-events", 0, 5)


# --- decisions ---


def test_only_the_difference_to_the_restocked_units_is_restocked() -> None:
    order = OrderTargets(ORDER, version=5, ordered={1: 5}, targets=targets(("A", 3), ("B", 2)))

    assert order_targets.to_restock(order, targets()) == {(1, Place("A")): 3, (1, Place("B")): 2}
    assert order_targets.to_restock(order, targets(("A", 1), ("B", 2))) == {(1, Place("A")): 2}
    assert order_targets.to_restock(order, targets(("A", 4), ("B", 2))) == {}


def test_restocked_units_are_not_forgotten_when_targets_come_without_them() -> None:
    order = OrderTargets(ORDER, version=6, ordered={1: 5}, targets={1: SHIPPED})

    assert order_targets.final_totals(order, targets(("A", 3))) == targets(("A", 3))


@pytest.mark.parametrize(
    "returned",
    [
        {"treatment": "WITHHOLD", "location": "A", "quantity": 1},
        {"treatment": "WITHHOLD", "location": "A", "withholding_reason": "two words", "quantity": 1},
        {"treatment": "WITHHOLD", "location": "A", "withholding_reason": "OPENING", "quantity": 1},
        {"treatment": "WITHHOLD", "location": "A", "withholding_reason": "DAMAGED", "quantity": 6},
        {"treatment": "RESTOCK", "location": "A", "withholding_reason": "DAMAGED", "quantity": 1},
        {"treatment": "REPAIR", "location": "A", "quantity": 1},
        {"treatment": "RESTOCK", "location": "not a location", "quantity": 1},
        {"treatment": "RESTOCK", "location": "A", "quantity": 0},
        {"treatment": "RESTOCK", "location": "A", "quantity": 6},
    ],
)
def test_returned_units_that_are_not_possible_are_refused(returned: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not possible"):
        consumer._targets(returned_event(returned))


def test_discarded_units_have_no_effect_on_the_stock() -> None:
    event = returned_event(
        {"treatment": "DISCARD", "quantity": 2}, {"treatment": "RESTOCK", "location": "A", "quantity": 1}
    )

    assert consumer._targets(event).targets == targets(("A", 1))


# --- the stock, on both databases ---


def test_returned_units_are_added_where_they_came_back(inventory: InventoryDriver) -> None:
    shipped_order(inventory)
    event = returned_event(
        {"treatment": "RESTOCK", "location": "A", "quantity": 1},
        {"treatment": "RESTOCK", "location": "B", "quantity": 2},
    )
    before = len(inventory.events())

    while inventory.database.transact(lambda tx: consumer.handlers()["ORDER_RETURNED"](tx, [event])):
        pass

    assert quantities(inventory) == {"A": 6, "B": 2}
    emitted = inventory.events()[before:]
    assert [each.type for each in emitted] == ["STOCK_UPDATED", "STOCK_UPDATED", "STOCK_MOVED", "STOCK_MOVED"]
    moved = [each.data for each in emitted if each.type == "STOCK_MOVED"]
    assert [(each["kind"], each["location"], each["quantity"], each["order_id"]) for each in moved] == [
        ("RETURNED", "A", 1, ORDER),
        ("RETURNED", "B", 2, ORDER),
    ]
    inventory.check_consistency()


def test_late_and_repeated_returns_are_restocked_once(inventory: InventoryDriver) -> None:
    shipped_order(inventory)

    for version, restocked in ((6, (("A", 3),)), (5, (("A", 1),)), (6, (("A", 3),)), (7, (("A", 3), ("B", 1)))):
        assert change(inventory, version, *restocked) == {}

    assert quantities(inventory) == {"A": 8, "B": 1}


def test_an_older_process_that_omits_the_returns_does_not_cause_a_second_restocking(inventory: InventoryDriver) -> None:
    shipped_order(inventory)

    change(inventory, 5, ("A", 3))
    change(inventory, 6)
    change(inventory, 7, ("A", 3))

    assert quantities(inventory) == {"A": 8}


def test_a_confirmation_with_retake_does_not_cause_a_second_restocking(inventory: InventoryDriver) -> None:
    shipped_order(inventory)
    change(inventory, 5, ("A", 3))

    inventory.retake(ORDER, version=6)
    change(inventory, 7, ("A", 3))

    assert quantities(inventory) == {"A": 8}


def test_a_return_also_makes_up_for_a_shipment_whose_event_is_missing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10, "A")
    inventory.reserve(1, 5, order=ORDER)
    inventory.confirm(ORDER)

    change(inventory, 5, ("A", 2))
    inventory.change_order(ORDER, 4, ordered={1: 5}, targets={1: SHIPPED})

    assert quantities(inventory) == {"A": 7}
    inventory.check_consistency()


def test_a_crash_between_two_turns_restocks_nothing_twice(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restock, "TURN_ITEMS", 1)
    shipped_order(inventory)
    event = returned_event(*({"treatment": "RESTOCK", "location": each, "quantity": 1} for each in "ABC"))

    def handle(tx: Connection) -> bool | None:
        return consumer.handlers()["ORDER_RETURNED"](tx, [event])

    assert inventory.database.transact(handle)
    assert quantities(inventory) == {"A": 6}
    # The process ends here. The event is delivered again, to another process.
    while inventory.database.transact(handle):
        pass

    assert quantities(inventory) == {"A": 6, "B": 1, "C": 1}


def test_two_processes_that_handle_the_same_returns_restock_each_unit_once(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    shipped_order(inventory)

    outcomes = at_once(
        [
            partial(change, process, version, ("A", version - 4), ("B", 1))
            for version in (5, 6, 7)
            for process in (inventory, second_process)
        ]
    )

    assert outcomes == [{}] * 6
    assert quantities(inventory) == {"A": 8, "B": 1}
    inventory.check_consistency()


def test_units_that_an_item_cannot_take_are_reported_and_not_tried_again(inventory: InventoryDriver) -> None:
    shipped_order(inventory)
    inventory.add_stock(1, ITEM_QUANTITY_MAX - 1, "B")
    order = OrderTargets(ORDER, version=5, ordered={1: 5}, targets=targets(("A", 1), ("B", 2)))

    reached = inventory.reach(order)

    (errors,) = [each for turn in reached for each in turn.not_restocked.values()]
    assert [error.reason for error in errors] == ["QUANTITY_LIMIT"]
    assert quantities(inventory) == {"A": 6, "B": ITEM_QUANTITY_MAX - 1}
    assert [turn.has_more for turn in reached] == [True, False]


def test_damaged_units_are_in_stock_again_but_withheld_and_in_one_movement(inventory: InventoryDriver) -> None:
    shipped_order(inventory)
    event = returned_event(
        {"treatment": "WITHHOLD", "location": "A", "withholding_reason": "DAMAGED", "quantity": 2},
        {"treatment": "RESTOCK", "location": "A", "quantity": 1},
        {"treatment": "WITHHOLD", "location": "B", "withholding_reason": "STAINED", "quantity": 1},
    )
    before = len(inventory.events())

    for _ in range(2):  # the event is delivered twice
        while inventory.database.transact(lambda tx: consumer.handlers()["ORDER_RETURNED"](tx, [event])):
            pass

    assert shelves(inventory) == {"A": (8, (("DAMAGED", 2),)), "B": (1, (("STAINED", 1),))}
    moved = [each.data for each in inventory.events()[before:] if each.type == "STOCK_MOVED"]
    assert [(each["kind"], each["quantity"], each.get("withheld"), each.get("reason")) for each in moved] == [
        ("RETURNED", 2, 2, "DAMAGED"),
        ("RETURNED", 1, 0, None),
        ("RETURNED", 1, 1, "STAINED"),
    ]
    assert inventory.available(1) == 6
    inventory.check_consistency()


def test_late_and_repeated_returns_are_withheld_once(inventory: InventoryDriver) -> None:
    shipped_order(inventory)

    for version, restocked in (
        (6, ((DAMAGED, 2), ("A", 1))),
        (5, ((DAMAGED, 1),)),
        (6, ((DAMAGED, 2), ("A", 1))),
        (7, ()),  # an older process omits the returns
        (8, ((DAMAGED, 3), ("A", 1))),
    ):
        assert change(inventory, version, *restocked) == {}

    assert shelves(inventory) == {"A": (9, (("DAMAGED", 3),))}
    inventory.check_consistency()


def test_a_withheld_return_adds_to_the_units_that_were_withheld_before(inventory: InventoryDriver) -> None:
    shipped_order(inventory)
    inventory.change_stock(withheld(1, "DAMAGED"), withheld(1, "SAFETY_STOCK"))

    change(inventory, 5, (DAMAGED, 2))
    assert shelves(inventory) == {"A": (7, (("DAMAGED", 3), ("SAFETY_STOCK", 1)))}
    inventory.change_stock(withheld(-3, "DAMAGED"))

    assert shelves(inventory) == {"A": (7, (("SAFETY_STOCK", 1),))}
    inventory.check_consistency()


def test_a_crash_between_two_turns_withholds_nothing_twice(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restock, "TURN_ITEMS", 1)
    shipped_order(inventory)
    event = returned_event(
        *(
            {"treatment": "WITHHOLD", "location": "A", "withholding_reason": reason, "quantity": 1}
            for reason in ("DAMAGED", "STAINED")
        )
    )

    def handle(tx: Connection) -> bool | None:
        return consumer.handlers()["ORDER_RETURNED"](tx, [event])

    assert inventory.database.transact(handle)
    assert shelves(inventory) == {"A": (6, (("DAMAGED", 1),))}
    # The process ends here; the event is delivered again, to another one.
    while inventory.database.transact(handle):
        pass

    assert shelves(inventory) == {"A": (7, (("DAMAGED", 1), ("STAINED", 1)))}


def test_two_processes_that_handle_the_same_returns_withhold_each_unit_once(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    shipped_order(inventory)

    outcomes = at_once(
        [
            partial(change, process, version, (DAMAGED, version - 4), ("A", 1))
            for version in (5, 6, 7)
            for process in (inventory, second_process)
        ]
    )

    assert outcomes == [{}] * 6
    assert shelves(inventory) == {"A": (9, (("DAMAGED", 3),))}
    inventory.check_consistency()


def test_units_that_cannot_be_withheld_for_one_more_reason_are_reported_and_not_added(
    inventory: InventoryDriver,
) -> None:
    shipped_order(inventory)
    inventory.add_stock(1, WITHHOLDINGS_MAX, "A")
    reasons = [f"R{number}" for number in range(WITHHOLDINGS_MAX)]
    inventory.change_stock(*(withheld(1, reason) for reason in reasons))
    order = OrderTargets(ORDER, version=5, ordered={1: 5}, targets=targets((DAMAGED, 1), (Place("A", "R0"), 1)))

    reached = inventory.reach(order)

    (errors,) = [each for turn in reached for each in turn.not_restocked.values()]
    assert [error.reason for error in errors] == ["WITHHOLDINGS_LIMIT"]
    assert shelves(inventory) == {"A": (26, tuple(sorted({**dict.fromkeys(reasons, 1), "R0": 2}.items())))}
    inventory.check_consistency()


def test_the_audit_log_has_the_items_of_a_return(inventory: InventoryDriver) -> None:
    shipped_order(inventory)
    event = returned_event(
        {"treatment": "RESTOCK", "location": "A", "quantity": 1}, {"treatment": "DISCARD", "quantity": 1}
    )
    handle = consumer.handlers(tables.audit_log)["ORDER_RETURNED"]

    for _ in range(2):  # the event is delivered twice
        while inventory.database.transact(lambda tx: handle(tx, [event])):
            pass

    log = tables.audit_log.table
    with inventory.database.read() as tx:
        rows = tx.execute(select(log.c.caller, log.c.request_id, log.c.resources)).all()
        (item_id,) = tx.execute(select(tables.inventory_items.c.id)).scalars()
    assert [tuple(row) for row in rows] == [("event:ORDER_RETURNED", "event-5", f'["{item_id}"]')]
