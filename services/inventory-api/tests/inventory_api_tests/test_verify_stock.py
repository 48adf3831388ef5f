"""VerifyStock names damage exactly, and repairs it where there is one right answer."""

import pytest
from sqlalchemy import delete, select, update
from structlog.testing import capture_logs

from inventory_api.domain.commands import VerifyRequest
from inventory_api.domain.model import Item, Reservation, State
from inventory_api.domain.verification import MismatchKind
from inventory_api.operations import verify_stock
from inventory_api.operations.verify_stock import StockVerification, Verified
from inventory_api.store import tables, verification
from shop_common.identity.caller import Caller
from testkit.drivers.inventory_api import InventoryDriver, deadline

ALLOCATIONS, RESERVED_QUANTITY = MismatchKind.ALLOCATIONS, MismatchKind.RESERVED_QUANTITY


def verify(inventory: InventoryDriver, after: int = 0, count: int = 1000, *, repair: bool = False) -> Verified:
    request = VerifyRequest(after, count, repair, caller=inventory.caller)
    return inventory.operations.verify_stock(request, deadline=deadline())


def named(verified: Verified) -> list[tuple[MismatchKind, int, str, int, int, bool]]:
    return [
        (each.kind, each.item.id, each.reservation_id, each.expected, each.actual, each.repaired)
        for each in verified.mismatches
    ]


def set_reserved(inventory: InventoryDriver, item: Item, units: int) -> None:
    """Damage the counter of an item."""
    with inventory.database.write() as tx:
        table = tables.inventory_items
        tx.execute(update(table).where(table.c.id == item.id).values(reserved_quantity=units))


def lose_allocation(inventory: InventoryDriver, reservation: Reservation, item: Item) -> None:
    with inventory.database.write() as tx:
        table = tables.reservation_allocations
        tx.execute(delete(table).where(table.c.reservation_id == reservation.id, table.c.item_id == item.id))


def test_sound_stock_has_no_mismatches(inventory: InventoryDriver) -> None:
    items = [inventory.add_stock(1, 5), inventory.add_stock(1, 5, "B"), inventory.add_stock(2, 5)]
    inventory.reserve(1, 8, order="split")
    due, released, _ = (inventory.reserve(2, 1, order=order) for order in ("due", "released", "shipped"))
    inventory.make_due(due)
    inventory.release(released)
    inventory.confirm("shipped")
    inventory.ship("shipped")

    assert verify(inventory, repair=True) == Verified(len(items), 0, [])


def test_a_counter_that_is_off_by_one_is_named_and_repaired_on_request(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    other = inventory.add_stock(2, 5)
    inventory.reserve(1, 3)
    inventory.reserve(2, 2, order="order-2")
    set_reserved(inventory, item, 4)
    set_reserved(inventory, other, 0)

    with capture_logs() as logged:
        assert named(verify(inventory)) == [
            (RESERVED_QUANTITY, item.id, "", 3, 4, False),
            (RESERVED_QUANTITY, other.id, "", 2, 0, False),
        ]
    assert [(line["item"], line["expected"], line["actual"]) for line in logged] == [(item.id, 3, 4), (other.id, 2, 0)]

    repaired = verify(inventory, repair=True)

    assert named(repaired) == [
        (RESERVED_QUANTITY, item.id, "", 3, 4, True),
        (RESERVED_QUANTITY, other.id, "", 2, 0, True),
    ]
    assert verify(inventory).mismatches == []


def test_a_lost_allocation_is_named_and_restored_on_request(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 9)
    inventory.reserve(1, 2, order="sound")
    lost = inventory.reserve(1, 3, order="lost")
    lose_allocation(inventory, lost, item)

    assert named(verify(inventory)) == [(ALLOCATIONS, item.id, lost.id, 3, 0, False)]
    assert named(verify(inventory, repair=True)) == [(ALLOCATIONS, item.id, lost.id, 3, 0, True)]
    assert verify(inventory).mismatches == []
    assert inventory.reservation(lost).allocations == lost.allocations


def test_a_lost_allocation_and_a_wrong_counter_are_both_repaired(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 9)
    lost = inventory.reserve(1, 3)
    lose_allocation(inventory, lost, item)
    set_reserved(inventory, item, 7)

    assert named(verify(inventory, repair=True)) == [
        (ALLOCATIONS, item.id, lost.id, 3, 0, True),
        (RESERVED_QUANTITY, item.id, "", 3, 7, True),
    ]
    assert verify(inventory).mismatches == []


def test_a_lost_part_of_a_split_reservation_is_reported_only(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    other = inventory.add_stock(1, 5, "B")
    split = inventory.reserve(1, 8)
    lose_allocation(inventory, split, other)

    expected = [(ALLOCATIONS, other.id, split.id, 8, 5, False), (RESERVED_QUANTITY, other.id, "", 0, 3, False)]
    assert named(verify(inventory, repair=True)) == expected

    with inventory.database.write() as tx:  # restore the row by hand, for the consistency check after the test
        tx.execute(
            tables.reservation_allocations.insert().values(reservation_id=split.id, item_id=other.id, quantity=3)
        )
    assert verify(inventory).mismatches == []


def test_a_reservation_that_ended_before_the_lock_is_not_restored(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 9)
    lost = inventory.reserve(1, 3)
    lose_allocation(inventory, lost, item)
    table = tables.stock_reservations

    with inventory.database.write() as tx:
        wrong = verification.wrong_allocations(tx, item.id)
        tx.execute(update(table).where(table.c.id == lost.id).values(state=State.RELEASED))
        left = verification.lock_wrong_allocations(tx, wrong)
        tx.execute(update(table).where(table.c.id == lost.id).values(state=State.HELD))

    assert [each.reservation_id for each in wrong] == [lost.id]
    assert left == []
    verify(inventory, repair=True)


def test_a_deleted_movement_is_named(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    inventory.add_stock(1, 2)
    inventory.add_stock(1, 3)
    table = tables.stock_movements
    with inventory.database.write() as tx:
        of_second = (table.c.item_id == item.id, table.c.revision == 2)
        (lost,) = tx.execute(select(table).where(*of_second)).all()
        tx.execute(delete(table).where(*of_second))

    found = named(verify(inventory, repair=True))

    assert found == [(MismatchKind.MOVEMENTS, item.id, "", 3, 2, False)]
    with inventory.database.write() as tx:  # for the consistency check after the test
        tx.execute(table.insert().values(lost._asdict()))
    assert verify(inventory).mismatches == []


def test_a_quantity_that_changed_without_a_movement_is_named(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    table = tables.inventory_items
    quantity = update(table).where(table.c.id == item.id)
    with inventory.database.write() as tx:
        tx.execute(quantity.values(quantity=6))

    found = named(verify(inventory, repair=True))

    assert found == [(MismatchKind.QUANTITY, item.id, "", 5, 6, False)]
    with inventory.database.write() as tx:
        tx.execute(quantity.values(quantity=5))


def test_a_movement_whose_quantity_was_changed_is_named(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    table = tables.stock_movements
    with inventory.database.write() as tx:
        tx.execute(update(table).where(table.c.item_id == item.id).values(quantity=4))

    found = named(verify(inventory))

    assert found == [(MismatchKind.QUANTITY, item.id, "", 4, 5, False)]
    with inventory.database.write() as tx:
        tx.execute(update(table).where(table.c.item_id == item.id).values(quantity=5))


def test_a_call_verifies_a_part_and_returns_where_the_next_one_starts(inventory: InventoryDriver) -> None:
    items = [inventory.add_stock(product, 5) for product in range(1, 6)]
    inventory.reserve(5, 1)
    set_reserved(inventory, items[4], 2)

    first = verify(inventory, count=2)
    second = verify(inventory, first.next_after_id, 2)
    last = verify(inventory, second.next_after_id, 2, repair=True)

    assert (first, second) == (Verified(2, items[1].id, []), Verified(2, items[3].id, []))
    assert (last.count, last.next_after_id, len(last.mismatches)) == (1, 0, 1)


def test_a_call_with_many_mismatches_ends_early(inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [inventory.add_stock(product, 5) for product in range(1, 4)]
    for item in items:
        set_reserved(inventory, item, 1)
    monkeypatch.setattr(verify_stock, "MISMATCHES_MAX", 2)

    first = verify(inventory, repair=True)
    second = verify(inventory, first.next_after_id, repair=True)

    assert (first.count, first.next_after_id, len(first.mismatches)) == (2, items[1].id, 2)
    assert (second.count, second.next_after_id, len(second.mismatches)) == (1, 0, 1)


def test_a_repair_has_a_row_in_the_audit_log(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5)
    set_reserved(inventory, item, 1)
    audited = StockVerification(inventory.database, tables.audit_log)
    operator = Caller("operator", frozenset({"maintenance"}))

    for repair in (False, True, True):
        audited.run(VerifyRequest(0, 10, repair, caller=operator))

    log = tables.audit_log.table
    with inventory.database.read() as tx:
        written = tx.execute(select(log.c.caller, log.c.method, log.c.resources)).all()
    assert [tuple(row) for row in written] == [("operator", "VerifyStock", f'["{item.id}"]')]
