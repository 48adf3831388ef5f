"""BatchChangeStock. The driver checks after each test that items, movements and events agree."""

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from inventory_api.api import parse
from inventory_api.domain.commands import TURN_CHANGES, ChangeStock, ItemFilter, StockChange
from inventory_api.domain.errors import (
    BelowReserved,
    ChangesRefused,
    InsufficientStock,
    ItemNotFound,
    LocationsLimit,
    QuantityLimit,
    VersionMismatch,
)
from inventory_api.domain.model import ITEM_QUANTITY_MAX, LOCATIONS_MAX, Item, StockKey
from inventory_api.domain.movements import MovementKind
from inventory_api.domain.stock_changes import ChangedStock, shortage_of_changes
from inventory_api.operations.items import change_stock
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import InvalidInput, ShopError
from shop_common.identity.caller import ANYONE
from shop_protos.inventory.v1 import inventory_pb2 as pb
from testkit.drivers.inventory_api import InventoryDriver, at_once, refusals


def change(kind: MovementKind, quantity: int, product: int = 1, location: str = "A", **values: object) -> StockChange:
    return StockChange(0, product, location, kind, quantity, **values)  # type: ignore[arg-type]  # any field


received = partial(change, MovementKind.RECEIVED)
adjusted = partial(change, MovementKind.ADJUSTED)
counted = partial(change, MovementKind.COUNTED)


def moved(quantity: int, to_location: str, product: int = 1, location: str = "A", **values: object) -> StockChange:
    return change(MovementKind.MOVED, quantity, product, location, to_location=to_location, **values)


def items(inventory: InventoryDriver, product: int) -> list[Item]:
    return list(inventory.items_page(ItemFilter(inventory.caller.tenant, product_id=product), size=10).rows)


def quantities(outcomes: list[ChangedStock | ShopError]) -> list[int | str]:
    return [each.item.quantity if isinstance(each, ChangedStock) else each.reason for each in outcomes]


def test_changes_are_made_in_their_sequence(inventory: InventoryDriver) -> None:
    outcomes = inventory.change_stock(received(10), adjusted(-3), counted(5), received(2, location="B"), adjusted(4))

    assert quantities(outcomes) == [10, 7, 5, 2, 9]
    assert [(each.kind.value, each.quantity, each.quantity_after) for each in inventory.movements()] == [
        ("ADJUSTED", 4, 9),
        ("RECEIVED", 2, 2),
        ("COUNTED", -2, 5),
        ("ADJUSTED", -3, 7),
        ("RECEIVED", 10, 10),
    ]


def test_a_movement_has_the_reason_the_reference_and_the_time_of_its_change(inventory: InventoryDriver) -> None:
    yesterday = datetime(2024, 1, 14, 8, 30, tzinfo=UTC)

    inventory.change_stock(received(1, reason="delivery", reference="note 7", occurred_at=yesterday))

    (movement,) = inventory.movements()
    assert (movement.reason, movement.reference, movement.occurred_at) == ("delivery", "note 7", yesterday)
    (event,) = inventory.events("STOCK_MOVED")
    assert (event.data["reason"], event.data["reference"]) == ("delivery", "note 7")
    assert event.data["occurred_at"] == "2024-01-14T08:30:00.000000Z"


def test_a_refused_change_does_not_affect_the_others(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 5, "A")
    inventory.reserve(1, 4)

    outcomes = inventory.change_stock(
        counted(3),
        adjusted(-2),
        received(ITEM_QUANTITY_MAX),
        received(1, version=stocked.version + 1),
        adjusted(-1, location="B"),
        received(1, location="B", version=1),
        adjusted(-1),
    )

    below, also_below, above, stale, *absent, last = outcomes
    assert isinstance(below, BelowReserved)
    assert below.metadata() == {"id": str(stocked.id), "requested": "3", "reserved": "4", "withheld": "0"}
    assert isinstance(also_below, BelowReserved)
    assert isinstance(above, QuantityLimit)
    assert isinstance(stale, VersionMismatch)
    for each in absent:
        assert isinstance(each, ItemNotFound)
        assert each.metadata() == {"product_id": "1", "location": "B"}
    assert isinstance(last, ChangedStock)
    assert (last.item.quantity, last.item.available_quantity) == (4, 0)
    assert len(items(inventory, 1)) == 1


def test_a_change_of_the_expected_version_is_made_once(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 5, "A")

    first, second = inventory.change_stock(counted(6, version=stocked.version), counted(7, version=stocked.version))

    assert quantities([first, second]) == [6, "VERSION_MISMATCH"]


def test_atomic_changes_are_made_together(inventory: InventoryDriver) -> None:
    outcomes = inventory.change_stock(received(5), adjusted(-5), received(2, 2), is_atomic=True)

    assert quantities(outcomes) == [5, 0, 2]


def test_a_refused_atomic_call_changes_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")

    with pytest.raises(ChangesRefused) as refused:
        inventory.change_stock(received(5, 2), adjusted(-6), is_atomic=True, request_id="r")

    assert refused.value.metadata() == {
        "id": str(items(inventory, 1)[0].id),
        "requested": "-1",
        "reserved": "0",
        "withheld": "0",
        "change": "1",
        "change_reason": "BELOW_RESERVED",
    }
    assert items(inventory, 2) == []
    assert quantities(inventory.change_stock(received(5, 2), is_atomic=True, request_id="r")) == [5]


def test_a_repeated_call_makes_only_the_changes_that_were_refused(inventory: InventoryDriver) -> None:
    first = inventory.change_stock(received(5), adjusted(-2, 2), received(1), request_id="r")
    inventory.add_stock(2, 3, "A")

    again = inventory.change_stock(received(5), adjusted(-2, 2), received(1), request_id="r")

    assert quantities(first) == [5, "ITEM_NOT_FOUND", 6]
    assert quantities(again) == [6, 1, 6]
    assert quantities(inventory.change_stock(received(5), adjusted(-2, 2), request_id="r")) == [6, 1]


def test_a_repeated_atomic_call_changes_nothing(inventory: InventoryDriver) -> None:
    first, again = (
        inventory.change_stock(received(5), received(1, 2), is_atomic=True, request_id="r") for _ in range(2)
    )

    assert quantities(first) == quantities(again) == [5, 1]
    with pytest.raises(RequestIdReused):
        inventory.change_stock(received(5), received(2, 2), is_atomic=True, request_id="r")


def test_a_request_id_with_another_change_at_the_same_place_is_refused(inventory: InventoryDriver) -> None:
    inventory.change_stock(received(5), received(1, 2), request_id="r")

    outcomes = inventory.change_stock(received(5), received(1, 2, reason="delivery"), request_id="r")

    assert quantities(outcomes) == [5, "REQUEST_ID_REUSED"]


def test_due_reservations_make_room_for_a_change(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 5, "B")
    expired = inventory.reserve(1, 8)
    inventory.make_due(expired)

    outcomes = inventory.change_stock(adjusted(-2), adjusted(-3), counted(0, location="B"))

    assert quantities(outcomes) == [3, 0, 0]
    assert inventory.stored_state(expired) == "EXPIRED"


def test_more_due_reservations_than_one_transaction_may_expire_refuse_a_change(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_stock, "DUE_EXPIRED_MAX", 1)
    inventory.add_stock(1, 5, "A")
    inventory.make_due(inventory.reserve(1, 2), inventory.reserve(1, 2))

    outcomes = inventory.change_stock(counted(1), received(1, 2), counted(9))

    assert quantities(outcomes) == ["CONTENTION", 1, 9]
    assert quantities(inventory.change_stock(counted(0))) == [0]


def test_units_that_nobody_can_free_are_not_counted_as_missing() -> None:
    now = datetime(2024, 1, 15, tzinfo=UTC)
    request = ChangeStock((adjusted(-ITEM_QUANTITY_MAX), adjusted(-ITEM_QUANTITY_MAX), adjusted(-9, location="B")))
    stock = {
        each.stock_key: each
        for each in (
            Item("default", 1, 1, "A", 5, 3, 1, now, now),
            Item("default", 2, 1, "B", 5, 0, 1, now, now),
        )
    }

    assert shortage_of_changes(request, request.changes, stock) == {StockKey("default", 1, "A"): 3}


def test_a_product_has_at_most_500_locations(inventory: InventoryDriver) -> None:
    changes = [received(1, location=f"L{number}") for number in range(LOCATIONS_MAX + 1)]

    outcomes = inventory.change_stock(*changes)

    assert quantities(outcomes[:-1]) == [1] * LOCATIONS_MAX
    assert isinstance(outcomes[-1], LocationsLimit)


def test_a_large_call_runs_in_turns(inventory: InventoryDriver) -> None:
    changes = [received(1, product) for product in range(1, 2 * TURN_CHANGES + 2)]

    outcomes = inventory.change_stock(*changes, request_id="r")

    assert quantities(outcomes) == [1] * len(changes)
    written = {each.created_at for each in inventory.movements()}
    assert len(written) == 3
    assert quantities(inventory.change_stock(*changes, request_id="r")) == [1] * len(changes)
    assert len(inventory.movements()) == len(changes)


def test_concurrent_changes_of_two_processes_do_not_deadlock(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    products = range(1, 9)
    calls = [
        call
        for process in (inventory, second_process)
        for _ in range(4)
        for call in (
            partial(process.change_stock, *(received(1, each) for each in products)),
            partial(process.change_stock, *(received(1, each) for each in reversed(products)), is_atomic=True),
            partial(process.add_stock, 1, 1, "A"),
            partial(process.add_stock, 8, 1, "A"),
        )
    ]

    outcomes = at_once(calls)

    assert refusals(outcomes) == []
    assert [inventory.available(each) for each in products] == [24, *[16] * 6, 24]


# --- moves ---


def test_a_move_is_two_movements(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")

    for _ in range(2):
        (outcome,) = inventory.change_stock(moved(3, "B", reason="full"), request_id="r")

        assert isinstance(outcome, ChangedStock)
        assert outcome.target is not None
        assert (outcome.item.location, outcome.item.quantity) == ("A", 2)
        assert (outcome.target.location, outcome.target.quantity) == ("B", 3)

    assert [(each.location, each.kind.value, each.quantity, each.reason) for each in inventory.movements()] == [
        ("B", "MOVED", 3, "full"),
        ("A", "MOVED", -3, "full"),
        ("A", "RECEIVED", 5, ""),
    ]


@pytest.mark.parametrize("is_atomic", [False, True])
def test_a_refused_move_leaves_no_item_at_its_target(inventory: InventoryDriver, is_atomic: bool) -> None:
    stocked = inventory.add_stock(1, 5, "A")
    inventory.reserve(1, 3)

    if is_atomic:
        with pytest.raises(ChangesRefused):
            inventory.change_stock(moved(3, "B"), is_atomic=True)
    else:
        short, absent, stale = inventory.change_stock(
            moved(3, "B"), moved(1, "B", location="C"), moved(1, "B", version=stocked.version + 1)
        )
        assert isinstance(short, InsufficientStock)
        assert short.metadata() == {"product_id": "1", "requested": "3", "available": "2", "location": "A"}
        assert isinstance(absent, ItemNotFound)
        assert isinstance(stale, VersionMismatch)

    assert [each.location for each in items(inventory, 1)] == ["A"]


def test_a_move_expires_due_reservations_and_empties_an_inactive_location(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    expired = inventory.reserve(1, 4)
    inventory.make_due(expired)
    inventory.update_location("A", is_active=False)

    outcomes = inventory.change_stock(moved(5, "B"))

    assert quantities(outcomes) == [0]
    assert inventory.stored_state(expired) == "EXPIRED"
    assert inventory.available(1) == 5


def test_a_chain_of_moves_is_made_in_its_sequence(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")

    outcomes = inventory.change_stock(
        moved(5, "B"), moved(5, "C", location="B"), moved(2, "A", location="C"), is_atomic=True
    )

    assert quantities(outcomes) == [0, 0, 3]
    assert {each.location: each.quantity for each in items(inventory, 1)} == {"A": 2, "B": 0, "C": 3}


def test_concurrent_moves_in_both_directions_beside_reservations_do_not_deadlock(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    for product in (1, 2):
        inventory.add_stock(product, 100, "A")
        inventory.add_stock(product, 100, "B")
    calls = [
        call
        for number, process in enumerate((inventory, second_process) * 4)
        for call in (
            partial(process.change_stock, moved(5, "B"), moved(5, "B", product=2), moved(1, f"N{number % 3}")),
            partial(process.change_stock, moved(1, "B", product=2), moved(1, "B"), is_atomic=True),
            partial(process.change_stock, moved(1, "A", product=2, location="B"), moved(1, "A", location="B")),
            partial(process.add_stock, 1, 1, "N1"),
            partial(process.reserve, 1, 1, order=f"order-{number}"),
            partial(process.reserve, 2, 1, order=f"order-{number}"),
        )
    ]

    outcomes = at_once(calls)

    assert refusals(outcomes) == []
    changed = [each for outcome in outcomes if isinstance(outcome, list) for each in outcome]
    assert all(isinstance(each, ChangedStock) for each in changed)
    assert sum(each.quantity for each in items(inventory, 1)) == 208
    assert {each.location: each.quantity for each in items(inventory, 2)} == {"A": 60, "B": 140}


# --- parsing ---


def parsed(*changes: pb.StockChange, atomic: bool = False) -> list[StockChange | InvalidInput]:
    request = pb.BatchChangeStockRequest(changes=changes, atomic=atomic, request_id="r")
    return parse.change_stock(request, ANYONE, None)[1]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (pb.StockChange(product_id=1), ["change"]),
        (pb.StockChange(received=1), ["product_id"]),
        (pb.StockChange(product_id=1, received=0), ["received"]),
        (pb.StockChange(product_id=1, adjusted=0), ["adjusted"]),
        (pb.StockChange(product_id=1, adjusted=-ITEM_QUANTITY_MAX - 1), ["adjusted"]),
        (pb.StockChange(product_id=1, counted=-1), ["counted"]),
        (pb.StockChange(product_id=1, move=pb.StockMove()), ["move.quantity", "move.to_location"]),
        (
            pb.StockChange(product_id=1, location="A", move=pb.StockMove(to_location="A", quantity=1)),
            ["move.to_location"],
        ),
        (pb.StockChange(product_id=1, counted=1, version=0), ["version"]),
        (pb.StockChange(product_id=1, counted=1, location="a b"), ["location"]),
        (pb.StockChange(product_id=1, counted=1, reason="UPGRADE"), ["reason"]),
        (pb.StockChange(product_id=1, counted=1, reference="r" * 65), ["reference"]),
    ],
)
def test_an_invalid_change_refuses_only_itself_unless_the_call_is_atomic(
    change: pb.StockChange, fields: list[str]
) -> None:
    valid = pb.StockChange(product_id=1, received=1)

    first, refused, last = parsed(valid, change, valid)

    assert isinstance(refused, InvalidInput)
    assert [each.field for each in refused.violations] == fields
    assert isinstance(first, StockChange)
    assert isinstance(last, StockChange)
    assert (first.number, last.number) == (0, 2)
    with pytest.raises(InvalidInput) as of_call:
        parsed(valid, change, atomic=True)
    assert [each.field for each in of_call.value.violations] == [f"changes[1].{field}" for field in fields]


@pytest.mark.parametrize(("count", "atomic"), [(0, False), (5_001, False), (401, True)])
def test_a_call_has_a_limited_number_of_changes(count: int, atomic: bool) -> None:
    with pytest.raises(InvalidInput):
        parsed(*[pb.StockChange(product_id=1, received=1)] * count, atomic=atomic)


def test_the_time_of_a_change_is_read() -> None:
    change = pb.StockChange(product_id=1, received=1)
    change.occurred_at.FromDatetime(datetime(2024, 1, 15, tzinfo=UTC) + timedelta(seconds=1))

    (found,) = parsed(change)

    assert isinstance(found, StockChange)
    assert found.occurred_at == datetime(2024, 1, 15, 0, 0, 1, tzinfo=UTC)
