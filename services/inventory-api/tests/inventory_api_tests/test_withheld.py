"""Withheld units. The driver checks after each test that items, withholdings, movements and events agree."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import ModuleType

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import IntegrityError

from inventory_api.api import parse, render
from inventory_api.domain.commands import ItemFilter, PastItemQuestion, StockChange, VerifyRequest
from inventory_api.domain.errors import (
    BelowReserved,
    InsufficientStock,
    InsufficientWithheld,
    WithholdingDisabled,
    WithholdingsLimit,
)
from inventory_api.domain.model import ITEM_QUANTITY_MAX as MAX
from inventory_api.domain.model import WITHHOLDINGS_MAX, Item, ItemKey
from inventory_api.domain.movements import MovementKind
from inventory_api.domain.stock_changes import ChangedStock
from inventory_api.domain.verification import Mismatch, MismatchKind
from inventory_api.operations.coalescing import Operations
from inventory_api.operations.items import change_stock
from inventory_api.operations.items.record_movements import record_movements
from inventory_api.store import items, tables, withholdings
from shop_common.db.database import Database
from shop_common.errors import InvalidInput, ShopError
from shop_common.identity.caller import ANYONE
from shop_protos.inventory.v1 import inventory_pb2 as pb
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver, at_once, deadline, refusals


def change(kind: MovementKind, quantity: int, location: str = "A", **values: object) -> StockChange:
    return StockChange(0, 1, location, kind, quantity, **values)  # type: ignore[arg-type]  # any field


def withheld(quantity: int, reason: str = "DAMAGED", location: str = "A", **values: object) -> StockChange:
    return change(MovementKind.WITHHELD, quantity, location, reason=reason, **values)


def withhold(inventory: InventoryDriver, quantity: int, reason: str = "DAMAGED") -> Item:
    (outcome,) = inventory.change_stock(withheld(quantity, reason))
    assert isinstance(outcome, ChangedStock)
    return outcome.item


def test_withheld_units_stay_in_the_stock_but_are_not_available(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10, "A")

    withhold(inventory, 3)
    withhold(inventory, 2, "QUALITY_CONTROL")
    after = withhold(inventory, -1)

    assert (after.quantity, after.withheld_quantity, after.available_quantity) == (10, 4, 6)
    assert after.version == item.version + 3
    assert inventory.item(item).withholdings == (("DAMAGED", 2), ("QUALITY_CONTROL", 2))
    (listed,) = inventory.items_page(ItemFilter(inventory.caller.tenant), size=10).rows
    assert listed.withholdings == (("DAMAGED", 2), ("QUALITY_CONTROL", 2))
    assert inventory.available(1) == 6
    (product,) = inventory.availability(1, by_location=True).products
    assert (product.available_quantity, product.withheld_quantity) == (6, 4)
    assert [(each.available_quantity, each.withheld_quantity) for each in product.locations] == [(6, 4)]
    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(1, 7)
    assert refused.value.available == 6


def test_each_withholding_writes_a_movement_and_its_events(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10, "A")

    inventory.change_stock(withheld(3, reference="check 7"))

    movement = inventory.movements()[0]
    assert (movement.kind, movement.quantity, movement.quantity_after) == (MovementKind.WITHHELD, 0, 10)
    assert (movement.withheld, movement.withheld_after) == (3, 3)
    assert (movement.reason, movement.reference) == ("DAMAGED", "check 7")
    moved = inventory.events("STOCK_MOVED")[-1].data
    assert (moved["withheld"], moved["withheld_after"]) == (3, 3)
    assert inventory.events("STOCK_UPDATED")[-1].data["withheld_quantity"] == 3


def test_more_than_the_withheld_units_of_a_reason_are_not_given_back(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10, "A")
    withhold(inventory, 3)
    withhold(inventory, 2, "SAFETY_STOCK")

    (refused,) = inventory.change_stock(withheld(-3, "SAFETY_STOCK"))

    assert isinstance(refused, InsufficientWithheld)
    assert refused.metadata() == {
        "product_id": "1",
        "location": "A",
        "withheld_reason": "SAFETY_STOCK",
        "requested": "3",
        "withheld": "2",
    }


def test_only_free_units_are_withheld_moved_and_taken_out(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10, "A")
    inventory.reserve(1, 4)
    withhold(inventory, 3)

    outcomes = inventory.change_stock(
        withheld(4),
        change(MovementKind.MOVED, 4, to_location="B"),
        change(MovementKind.COUNTED, 6),
        change(MovementKind.ADJUSTED, -4),
        withheld(1, location="C"),
    )

    assert [each.reason if isinstance(each, ShopError) else None for each in outcomes] == [
        "INSUFFICIENT_STOCK",
        "INSUFFICIENT_STOCK",
        "BELOW_RESERVED",
        "BELOW_RESERVED",
        "ITEM_NOT_FOUND",
    ]
    more, _, counted, *_ = refusals(outcomes)
    assert more.metadata()["available"] == "3"
    numbers = {"id": str(item.id), "requested": "6", "reserved": "4", "withheld": "3"}
    assert counted.metadata() == numbers
    with pytest.raises(BelowReserved) as below:
        inventory.set_quantity(item, 6)
    assert below.value.metadata() == numbers
    assert inventory.set_quantity(item, 7).available_quantity == 0


def test_withheld_units_stay_when_reserved_ones_are_shipped(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10, "A")
    inventory.reserve(1, 7)
    withhold(inventory, 3)
    inventory.confirm()

    inventory.ship("order-1")

    left = inventory.item(item)
    assert (left.quantity, left.withheld_quantity, left.available_quantity) == (3, 3, 0)


@pytest.mark.parametrize("kind", [MovementKind.WITHHELD, MovementKind.COUNTED])
def test_due_units_are_free_to_be_withheld_and_to_be_missing(inventory: InventoryDriver, kind: MovementKind) -> None:
    inventory.add_stock(1, 10, "A")
    withhold(inventory, 2)
    held = inventory.reserve(1, 8)
    inventory.make_due(held)

    (outcome,) = inventory.change_stock(withheld(8) if kind is MovementKind.WITHHELD else change(kind, 2))

    assert isinstance(outcome, ChangedStock)
    assert outcome.item.available_quantity == 0


def test_a_refused_return_of_units_does_not_hide_a_shortage(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10, "A")
    withhold(inventory, 5)
    inventory.make_due(inventory.reserve(1, 5))

    refused, made = inventory.change_stock(withheld(-5, "SAFETY_STOCK"), withheld(5))

    assert isinstance(refused, InsufficientWithheld)
    assert isinstance(made, ChangedStock)


def test_atomic_changes_withhold_all_or_nothing(inventory: InventoryDriver) -> None:
    inventory.change_stock(change(MovementKind.RECEIVED, 5), withheld(2), is_atomic=True)

    with pytest.raises(ShopError) as refused:
        inventory.change_stock(withheld(3), withheld(1), is_atomic=True)

    assert refused.value.metadata()["change_reason"] == "INSUFFICIENT_STOCK"
    assert inventory.available(1) == 3


def test_a_repeated_withholding_has_one_effect(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")

    outcomes = [inventory.change_stock(withheld(2), withheld(-1), request_id="r") for _ in range(2)]

    assert [each.item.withheld_quantity for made in outcomes for each in made if isinstance(each, ChangedStock)] == [
        2,
        1,
        1,
        1,
    ]


def test_an_item_has_a_limited_number_of_reasons(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 100, "A")
    inventory.change_stock(*(withheld(1, f"R{number}") for number in range(WITHHOLDINGS_MAX)))

    one_more, known = inventory.change_stock(withheld(1, "ONE_MORE"), withheld(1, "R0"))

    assert isinstance(one_more, WithholdingsLimit)
    assert one_more.metadata() == {"product_id": "1", "location": "A", "limit": str(WITHHOLDINGS_MAX)}
    assert isinstance(known, ChangedStock)
    assert isinstance(inventory.change_stock(withheld(-1, "R1"), withheld(1, "ONE_MORE"))[1], ChangedStock)


def test_withheld_units_of_an_earlier_time_are_known(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5, "A")
    withhold(inventory, 2)
    withhold(inventory, 1)
    last, before, first = (each.created_at for each in inventory.movements())

    def at(when: object) -> tuple[int, int]:
        question = PastItemQuestion(ItemKey(item.tenant, item.id), when)  # type: ignore[arg-type]  # a time
        past = inventory.operations.get_past_item(question, deadline=deadline())
        return past.quantity, past.withheld_quantity

    assert at(last) == (5, 3)
    if before < last:
        assert at(before) == (5, 2)
    if first < before:
        assert at(before - timedelta(microseconds=1)) == (5, 0)


def test_the_last_units_are_either_withheld_or_reserved(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    item = inventory.add_stock(1, 12, "A")
    calls: list[Callable[[], object]] = []
    for number, process in enumerate([inventory, second_process] * 8):
        calls.append(partial(process.reserve, 1, 1, order=f"order-{number}"))
        calls.append(partial(withhold_or_raise, process, 1))
        calls.append(partial(withhold_or_raise, process, -1))

    outcomes = at_once(calls)

    assert {type(each) for each in refusals(outcomes)} <= {InsufficientStock, InsufficientWithheld}
    after = inventory.item(item)
    reserved = sum(not isinstance(each, ShopError) for each in outcomes[::3])
    held_back = sum(not isinstance(each, ShopError) for each in outcomes[1::3])
    given_back = sum(not isinstance(each, ShopError) for each in outcomes[2::3])
    assert (after.reserved_quantity, after.withheld_quantity) == (reserved, held_back - given_back)
    assert after.available_quantity == 12 - reserved - held_back + given_back >= 0


def withhold_or_raise(inventory: InventoryDriver, quantity: int) -> None:
    (outcome,) = inventory.change_stock(withheld(quantity))
    if isinstance(outcome, ShopError):
        raise outcome


def test_the_database_refuses_to_reserve_withheld_units(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5, "A")
    withhold(inventory, 3)

    with pytest.raises(IntegrityError), inventory.database.write() as tx:
        tx.execute(text("UPDATE inventory_items SET reserved_quantity = 3 WHERE id = :id"), {"id": item.id})


def test_withholding_can_be_switched_off(database: Database) -> None:
    operations = Operations(database, ttl_seconds=TTL_SECONDS, on_fatal=lambda *_: None, withholding=False)
    inventory = InventoryDriver(database, operations)
    try:
        inventory.add_stock(1, 5, "A")
        with pytest.raises(WithholdingDisabled):
            inventory.change_stock(change(MovementKind.COUNTED, 6), withheld(1))

        assert inventory.available(1) == 5
    finally:
        operations.close()


def verify(inventory: InventoryDriver) -> list[Mismatch]:
    request = VerifyRequest(0, 1000, True, caller=inventory.caller)
    return list(inventory.operations.verify_stock(request, deadline=deadline()).mismatches)


def test_verification_repairs_a_wrong_counter_of_withheld_units(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5, "A")
    withhold(inventory, 3)
    assert not verify(inventory)
    with inventory.database.write() as tx:
        table = tables.inventory_items
        tx.execute(update(table).where(table.c.id == item.id).values(withheld_quantity=2))

    (found,) = verify(inventory)

    assert (found.kind, found.item.id) == (MismatchKind.WITHHELD_QUANTITY, item.id)
    assert (found.expected, found.actual, found.repaired) == (3, 2, True)
    assert not verify(inventory)


def test_verification_reports_a_lost_withholding(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5, "A")
    withhold(inventory, 3)
    table = tables.stock_withholdings
    with inventory.database.write() as tx:
        tx.execute(delete(table).where(table.c.item_id == item.id))

    (found,) = verify(inventory)

    assert (found.kind, found.expected, found.actual, found.repaired) == (
        MismatchKind.WITHHELD_QUANTITY,
        0,
        3,
        False,
    )
    with inventory.database.write() as tx:
        tx.execute(table.insert(), {"tenant": item.tenant, "item_id": item.id, "reason": "DAMAGED", "quantity": 3})


@pytest.mark.parametrize(
    ("module", "name"),
    [(change_stock, "record_movements"), (items, "save_counters"), (withholdings, "save")],
    ids=["no movement", "the counter is left", "no withholding"],
)
def test_verification_finds_what_a_wrong_build_leaves_out(
    database: Database, operations: Operations, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    inventory = InventoryDriver(database, operations)  # whose consistency is not checked after the test
    item = inventory.add_stock(1, 5, "A")
    monkeypatch.setattr(module, name, lambda *_: [])

    inventory.change_stock(withheld(3))

    found = verify(inventory)
    assert [(each.kind, each.item.id) for each in found] == [(MismatchKind.WITHHELD_QUANTITY, item.id)]


def test_verification_finds_a_movement_that_a_wrong_build_writes_twice(
    database: Database, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = InventoryDriver(database, operations)  # whose consistency is not checked after the test
    inventory.add_stock(1, 5, "A")
    monkeypatch.setattr(
        change_stock, "record_movements", lambda tx, made, now: record_movements(tx, [*made, *made], now)
    )

    inventory.change_stock(withheld(3))

    (found,) = verify(inventory)
    assert (found.kind, found.expected, found.actual) == (MismatchKind.WITHHELD_QUANTITY, 6, 3)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (pb.StockChange(product_id=1, withheld=pb.StockWithholding(quantity=1)), "withheld.reason"),
        (pb.StockChange(product_id=1, withheld=pb.StockWithholding(reason="a b", quantity=1)), "withheld.reason"),
        (pb.StockChange(product_id=1, withheld=pb.StockWithholding(reason="UPGRADE", quantity=1)), "withheld.reason"),
        (pb.StockChange(product_id=1, withheld=pb.StockWithholding(reason="A")), "withheld.quantity"),
        (
            pb.StockChange(product_id=1, withheld=pb.StockWithholding(reason="A", quantity=MAX + 1)),
            "withheld.quantity",
        ),
        (pb.StockChange(product_id=1, reason="A", withheld=pb.StockWithholding(reason="A", quantity=1)), "reason"),
    ],
)
def test_an_invalid_withholding_names_its_field(change: pb.StockChange, field: str) -> None:
    _, (invalid,) = parse.change_stock(pb.BatchChangeStockRequest(changes=[change]), ANYONE, None)

    assert isinstance(invalid, InvalidInput)
    assert [each.field for each in invalid.violations] == [field]


def test_a_withholding_is_parsed_and_rendered(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5, "A")
    message = pb.StockChange(product_id=1, location="A", withheld=pb.StockWithholding(reason="DAMAGED", quantity=2))
    command, _ = parse.change_stock(pb.BatchChangeStockRequest(changes=[message]), ANYONE, None)

    inventory.change_stock(*command.changes)

    shown = render.item(inventory.item(item))
    assert (shown.withheld_quantity, shown.available_quantity) == (2, 3)
    assert list(shown.withholdings) == [pb.Withholding(reason="DAMAGED", quantity=2)]
