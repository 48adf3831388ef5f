"""BatchChangeStock. The driver checks after each test that items, movements and events agree."""

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from inventory_api.api import parse
from inventory_api.domain.commands import TURN_CHANGES, ItemFilter, StockChange
from inventory_api.domain.errors import (
    BelowReserved,
    ChangesRefused,
    ItemNotFound,
    LocationsLimit,
    QuantityLimit,
    VersionMismatch,
)
from inventory_api.domain.model import ITEM_QUANTITY_MAX, LOCATIONS_MAX, Item
from inventory_api.domain.movements import MovementKind
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


def items(inventory: InventoryDriver, product: int) -> list[Item]:
    return list(inventory.items_page(ItemFilter(inventory.caller.tenant, product_id=product), size=10).rows)


def quantities(outcomes: list[Item | ShopError]) -> list[int | str]:
    return [each.quantity if isinstance(each, Item) else each.reason for each in outcomes]


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
    assert below.metadata() == {"id": str(stocked.id), "requested": "3", "reserved": "4"}
    assert isinstance(also_below, BelowReserved)
    assert isinstance(above, QuantityLimit)
    assert isinstance(stale, VersionMismatch)
    for each in absent:
        assert isinstance(each, ItemNotFound)
        assert each.metadata() == {"product_id": "1", "location": "B"}
    assert isinstance(last, Item)
    assert (last.quantity, last.available_quantity) == (4, 0)
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
