"""Releases by BatchChangeStock. The driver checks after each test that items, movements and events agree."""

from functools import partial

import pytest
from sqlalchemy import update

from inventory_api.api import parse
from inventory_api.domain.commands import StockChange
from inventory_api.domain.errors import BelowReserved, ChangesRefused, InsufficientStock
from inventory_api.domain.model import Item, Line, OrderKey, Reservation, ReservationKey, State
from inventory_api.domain.movements import MovementKind
from inventory_api.domain.shortage import ReservedUnits, choose_to_release
from inventory_api.domain.stock_changes import ChangedStock
from inventory_api.operations.items import change_stock, release_shortfall
from inventory_api.store import tables
from shop_common.db.idempotency import RequestIdReused
from shop_common.db.sql import now
from shop_common.errors import Contention, InvalidInput, ShopError
from shop_common.identity.caller import ANYONE
from shop_protos.inventory.v1 import inventory_pb2 as pb
from testkit.drivers.inventory_api import InventoryDriver, at_once, refusals

# --- the choice ---


def reserved(order: str, units: int) -> ReservedUnits:
    return ReservedUnits(ReservationKey("t", f"reservation of {order}"), OrderKey("t", "", order), units)


def choice(missing: int, *of_item: ReservedUnits, unreleasable: str = "") -> list[str]:
    chosen = choose_to_release(missing, of_item, {OrderKey("t", "", order) for order in unreleasable})
    return [each.order.order_id for each in chosen]


def test_as_few_reservations_are_chosen_in_their_sequence_as_have_the_missing_units() -> None:
    of_item = reserved("a", 2), reserved("b", 5), reserved("c", 1)

    assert choice(1, *of_item) == ["a"]
    assert choice(2, *of_item) == ["a"]
    assert choice(3, *of_item) == choice(7, *of_item) == ["a", "b"]
    assert choice(8, *of_item) == ["a", "b", "c"]


def test_reservations_of_unreleasable_orders_are_passed_over() -> None:
    of_item = reserved("a", 2), reserved("b", 5), reserved("b", 1), reserved("c", 3)

    assert choice(5, *of_item, unreleasable="b") == ["a", "c"]
    assert choice(6, *of_item, unreleasable="b") == []


def test_none_is_chosen_if_all_have_fewer_units() -> None:
    assert choice(9, reserved("a", 2), reserved("b", 5)) == []
    assert choice(1) == []


# --- the stock, on both databases ---


def counted(units: int, product: int = 1, location: str = "A", **values: object) -> StockChange:
    given: dict[str, object] = {"release_shortfall": True} | values
    return StockChange(0, product, location, MovementKind.COUNTED, units, **given)  # type: ignore[arg-type]  # any field


def adjusted(units: int, product: int = 1, location: str = "A", **values: object) -> StockChange:
    given: dict[str, object] = {"release_shortfall": True} | values
    return StockChange(0, product, location, MovementKind.ADJUSTED, units, **given)  # type: ignore[arg-type]  # any field


def item_of(outcome: ChangedStock | ShopError) -> Item:
    assert isinstance(outcome, ChangedStock)
    return outcome.item


def states(inventory: InventoryDriver, *reservations: Reservation) -> list[State]:
    return [inventory.stored_state(each) for each in reservations]


def counters(inventory: InventoryDriver, item: Item) -> tuple[int, int]:
    stored = inventory.item(item)
    return stored.quantity, stored.reserved_quantity


def test_a_count_releases_held_reservations_before_confirmed_ones_and_the_newest_first(
    inventory: InventoryDriver,
) -> None:
    stocked = inventory.add_stock(1, 10, "A")
    old_held, old_confirmed, new_confirmed, new_held = (
        inventory.reserve(1, 2, order=order) for order in ("old held", "old confirmed", "new confirmed", "new held")
    )
    for order in ("new confirmed", "old confirmed"):
        inventory.confirm(order)
    everything = old_confirmed, new_confirmed, old_held, new_held

    (refused,) = inventory.change_stock(counted(7, release_shortfall=False))
    assert isinstance(refused, BelowReserved)
    expected = [State.CONFIRMED, State.CONFIRMED, State.HELD, State.HELD]
    # Each count needs one more reservation than the one before.
    for position, (count, reserved_after) in enumerate([(7, 6), (5, 4), (2, 2), (0, 0)]):
        (outcome,) = inventory.change_stock(counted(count))

        expected[[3, 2, 1, 0][position]] = State.RELEASED
        assert states(inventory, *everything) == expected
        assert counters(inventory, stocked) == (count, reserved_after)
        assert (item_of(outcome).quantity, item_of(outcome).reserved_quantity) == (count, reserved_after)
    assert [event.data["order_id"] for event in inventory.events("STOCK_RELEASED")] == [
        "new held", "old held", "new confirmed", "old confirmed",
    ]  # fmt: skip
    # order-api would ignore a release with the version of an order.
    assert not any("order_version" in event.data for event in inventory.events("STOCK_RELEASED"))


def test_a_change_that_leaves_enough_units_releases_none(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10, "A")
    inventory.reserve(1, 4)

    more, fewer, least = inventory.change_stock(counted(12), adjusted(-2), counted(4))

    assert [item_of(each).quantity for each in (more, fewer, least)] == [12, 10, 4]
    assert inventory.events("STOCK_RELEASED") == []


def test_withheld_units_cannot_serve_reservations(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 10, "A")
    inventory.change_stock(StockChange(0, 1, "A", MovementKind.WITHHELD, 3, reason="DAMAGED"))
    held = inventory.reserve(1, 4)

    (refused,) = inventory.change_stock(counted(2))
    (outcome,) = inventory.change_stock(adjusted(-4))

    assert isinstance(refused, BelowReserved)
    assert refused.metadata()["withheld"] == "3"
    assert (item_of(outcome).quantity, item_of(outcome).withheld_quantity) == (6, 3)
    assert counters(inventory, stocked) == (6, 0)
    assert states(inventory, held) == [State.RELEASED]


def test_a_repeat_releases_no_more(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 10, "A")
    first, second = (inventory.reserve(1, 5, order=order) for order in ("first", "second"))

    once, again = (inventory.change_stock(adjusted(-2), request_id="count") for _ in range(2))

    assert once == again
    assert counters(inventory, stocked) == (8, 5)
    assert states(inventory, first, second) == [State.HELD, State.RELEASED]
    (other,) = inventory.change_stock(adjusted(-2, release_shortfall=False), request_id="count")
    assert isinstance(other, RequestIdReused)


def test_a_change_without_the_flag_has_the_fingerprint_from_before_the_flag() -> None:
    without = counted(0, release_shortfall=False)

    assert without.content == (
        ("product_id", "1"), ("location", "A"), ("kind", "COUNTED"), ("quantity", "0"),
    )  # fmt: skip
    assert counted(0).content == (*without.content, ("release_shortfall", "True"))


def test_a_reservation_of_two_items_frees_the_units_of_both(inventory: InventoryDriver) -> None:
    at_a, at_b = inventory.add_stock(1, 6, "A"), inventory.add_stock(1, 6, "B")
    alone = inventory.reserve(1, 2, location="A", order="alone")
    of_both = inventory.reserve(1, 9, order="both")
    assert {part.location for part in of_both.allocations} == {"A", "B"}

    # The first change is of an item of which the second change frees units.
    outcomes = inventory.change_stock(
        StockChange(0, 1, "B", MovementKind.RECEIVED, 4), counted(3), StockChange(0, 1, "B", MovementKind.RECEIVED, 1)
    )

    assert [item_of(each).quantity for each in outcomes] == [10, 3, 11]
    assert (counters(inventory, at_a), counters(inventory, at_b)) == ((3, 2), (11, 0))
    assert states(inventory, alone, of_both) == [State.HELD, State.RELEASED]


def test_none_is_released_if_those_that_may_be_released_do_not_suffice(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 12, "A")
    for order in ("shipped", "changed", "free"):
        inventory.reserve(1, 4, order=order)
        inventory.confirm(order)
    inventory.change_order("shipped", 4, ordered={1: 4}, targets={1: (4, 1)})
    inventory.add_stock(1, 2, "A")
    inventory.add(5, Line(1, 2), ordered={1: 4}, order="changed", confirmed=True)
    # 13 units are left: 3 for the order that has shipped a unit, 6 for the one that is being changed, and 4.
    assert counters(inventory, stocked) == (13, 13)

    (refused,) = inventory.change_stock(counted(8))
    assert isinstance(refused, BelowReserved)
    assert (refused.metadata()["requested"], refused.metadata()["reserved"]) == ("8", "13")
    assert inventory.events("STOCK_RELEASED") == []
    (outcome,) = inventory.change_stock(counted(9))

    assert item_of(outcome).reserved_quantity == 9
    assert [event.data["order_id"] for event in inventory.events("STOCK_RELEASED")] == ["free"]


def test_due_reservations_expire_before_others_are_released(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 6, "A")
    due, held = (inventory.reserve(1, 3, order=order) for order in ("due", "held"))
    inventory.make_due(due)

    inventory.change_stock(counted(3))
    assert states(inventory, due, held) == [State.EXPIRED, State.HELD]
    inventory.change_stock(counted(2))

    assert states(inventory, due, held) == [State.EXPIRED, State.RELEASED]


def test_a_reservation_that_was_set_aside_is_not_released(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 2, "A")
    broken = inventory.reserve(1, 2)
    table = tables.stock_reservations
    with inventory.database.write() as tx:
        tx.execute(update(table).where(table.c.id == broken.id).values(set_aside_at=now(tx)))

    (refused,) = inventory.change_stock(counted(0))

    assert isinstance(refused, BelowReserved)
    assert states(inventory, broken) == [State.HELD]


def test_a_refused_atomic_call_releases_none(inventory: InventoryDriver) -> None:
    stocked = inventory.add_stock(1, 5, "A")
    held = inventory.reserve(1, 5)

    with pytest.raises(ChangesRefused):
        inventory.change_stock(counted(0), adjusted(-1, product=2), is_atomic=True)

    assert states(inventory, held) == [State.HELD]
    assert counters(inventory, stocked) == (5, 5)
    inventory.change_stock(counted(0), adjusted(1, product=2), is_atomic=True)
    assert states(inventory, held) == [State.RELEASED]


def test_more_reservations_than_are_read_first_are_released(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_shortfall, "_FIRST_READ", 2)
    stocked = inventory.add_stock(1, 30, "A")
    confirmed, held = ([inventory.reserve(1, 1, order=f"{kind}-{n}") for n in range(15)] for kind in ("c", "h"))
    for reservation in confirmed:
        inventory.confirm(reservation.order_id)

    inventory.change_stock(counted(6))

    assert counters(inventory, stocked) == (6, 6)
    assert set(states(inventory, *held, *confirmed[6:])) == {State.RELEASED}
    assert set(states(inventory, *confirmed[:6])) == {State.CONFIRMED}


def test_one_transaction_releases_a_limited_number(inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_stock, "RELEASED_MAX", 3)
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(2, 5, "A")
    for product in (1, 2):
        for number in range(5):
            inventory.reserve(product, 1, order=f"{product}-{number}")
    changes = counted(3), counted(3, product=2), counted(1, product=2)

    first, contended, too_many = inventory.change_stock(*changes, request_id="r")
    assert item_of(first).quantity == 3
    assert isinstance(contended, Contention)
    assert isinstance(too_many, Contention)
    # The repeat makes the second change, and its limit counts only that one.
    _, second, again = inventory.change_stock(*changes, request_id="r")
    assert item_of(second).quantity == 3
    assert isinstance(again, Contention)
    _, _, third = inventory.change_stock(*changes, request_id="r")
    assert item_of(third).quantity == 1
    # Alone, a change that needs more is refused for good.
    inventory.add_stock(3, 4, "A")
    for number in range(4):
        inventory.reserve(3, 1, order=f"3-{number}")
    (refused,) = inventory.change_stock(counted(0, product=3))

    assert isinstance(refused, BelowReserved)
    assert len(inventory.events("STOCK_RELEASED")) == 6


@pytest.mark.parametrize("kind", ["received", "move", "withheld"])
def test_only_a_count_and_an_adjustment_can_release(kind: str) -> None:
    changes = {
        "received": pb.StockChange(received=1),
        "move": pb.StockChange(move=pb.StockMove(to_location="B", quantity=1)),
        "withheld": pb.StockChange(withheld=pb.StockWithholding(reason="DAMAGED", quantity=1)),
    }
    change = changes[kind]
    change.MergeFrom(pb.StockChange(product_id=1, release_shortfall=True))

    _, (outcome,) = parse.change_stock(pb.BatchChangeStockRequest(changes=[change]), ANYONE, None)

    assert isinstance(outcome, InvalidInput)
    assert "release_shortfall" in str(outcome)


def test_buyers_and_corrections_at_once_neither_lose_nor_invent_a_unit(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    at_a, at_b = inventory.add_stock(1, 60, "A"), inventory.add_stock(1, 20, "B")
    other = inventory.add_stock(2, 100, "A")
    first = [inventory.reserve(1, 6, order=f"first-{number}") for number in range(9)]
    for reservation in first[:3]:
        inventory.confirm(reservation.order_id)

    def buy(process: InventoryDriver, order: str) -> list[Reservation]:
        bought = process.reserve_lines(order, Line(2, 1), Line(1, 3))
        process.confirm(order)
        return bought

    calls = [
        call
        for number, process in enumerate((inventory, second_process) * 5)
        for call in (
            partial(process.change_stock, adjusted(-5)),
            partial(process.change_stock, adjusted(-1, location="B"), adjusted(-1, product=2), is_atomic=True),
            partial(buy, process, f"order-{number}"),
            partial(process.reserve, 1, 2, order=f"held-{number}"),
            partial(process.release, first[number % 9]),
            process.expire,
        )
    ]

    outcomes = at_once(calls)

    # A buyer may find no units, or lose them to a correction before the order is confirmed.
    assert {each.reason for each in refusals(outcomes)} <= {InsufficientStock.reason, "RESERVATION_RELEASED"}
    # There are always enough reservations to release, so each correction was made.
    assert inventory.item(at_a).quantity == 60 - 10 * 5
    assert inventory.item(at_b).quantity == 20 - 10
    assert inventory.item(other).quantity == 100 - 10
    for product in (1, 2):
        assert inventory.available(product) >= 0
