"""The stock follows the cumulative targets of orders, in any order of the events, and after any crash between turns."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete

from inventory_api.api import consumer
from inventory_api.domain import order_targets
from inventory_api.domain.model import Allocation, Line, OrderKey, Reservation, State
from inventory_api.domain.order_targets import OrderTargets, Totals
from inventory_api.operations.reservations import reach_targets, turns
from inventory_api.store import tables
from inventory_api.store.reservations import by_order
from shop_common.events.consumer import Event
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import InventoryDriver, at_once, empty

NOW = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
ORDER = "01930d4a-5f1c-7b22-8a40-5e9d8c3b1f10"
STOCK = 40


def reservation(state: State, *units: int, expires_at: datetime | None = None) -> Reservation:
    allocations = tuple(Allocation(item, f"L{item}", count) for item, count in enumerate(units, 1))
    id_ = "01930d4a-5f1d-7c02-a1f7-d06b3e5c8a21"
    return Reservation(DEFAULT, "", id_, 1, sum(units), ORDER, state, NOW, expires_at, allocations)


def decide(kept: int, shipped: int, *reservations: Reservation) -> order_targets.Decision:
    order = OrderTargets(ORDER, version=4, ordered={1: 10}, targets={1: Totals(kept, shipped)})
    return order_targets.decide(order, {1: Totals(10, 0)}, reservations, NOW)


def order_event(event_type: str, version: int, units: Mapping[int, tuple[int, int, int]]) -> Event:
    """Return an event of the order. `units` are the ordered, kept and shipped units by product."""
    data = {
        "id": ORDER,
        "version": version,
        "items": [{"product_id": product, "quantity": ordered} for product, (ordered, _, _) in units.items()],
        "targets": [
            {"product_id": product, "kept": kept, "shipped": shipped} for product, (_, kept, shipped) in units.items()
        ],
    }
    return Event(event_type, ORDER, f"event-{version}", data, NOW, None, "order-events", 0, version)


# --- decisions ---


def test_a_reservation_is_split_into_what_is_shipped_what_is_released_and_the_rest() -> None:
    decision = decide(7, 4, reservation(State.CONFIRMED, 6, 4))

    (split,) = decision.splits
    assert [part.quantity for part in split.parts] == [4, 3, 3]
    assert [[(each.item_id, each.quantity) for each in part.allocations] for part in split.parts] == [
        [(1, 4)], [(1, 2), (2, 1)], [(2, 3)],
    ]  # fmt: skip
    shipped, released, _ = split.parts
    assert decision.changes == {shipped.id: State.FULFILLED, released.id: State.RELEASED}
    assert decision.applied == {1: Totals(7, 4)}
    assert len({part.id for part in split.parts} | {split.reservation.id}) == 4


def test_a_reservation_that_is_shipped_as_a_whole_is_not_split() -> None:
    whole = reservation(State.CONFIRMED, 10)

    decision = decide(10, 10, whole)

    assert (decision.splits, decision.changes) == ([], {whole.id: State.FULFILLED})


def test_a_held_reservation_is_released_but_not_shipped() -> None:
    decision = decide(8, 5, reservation(State.HELD, 10, expires_at=NOW + timedelta(minutes=1)))

    (split,) = decision.splits
    assert [part.state for part in split.parts] == [State.HELD, State.HELD]
    assert list(decision.changes.values()) == [State.RELEASED]
    assert decision.applied == {1: Totals(8, 0)}


def test_a_due_reservation_expires_instead_of_being_released() -> None:
    due = reservation(State.HELD, 10, expires_at=NOW)

    assert decide(8, 0, due).changes == {due.id: State.EXPIRED}
    assert decide(10, 0, due).changes == {}


def test_targets_that_are_not_possible_are_refused() -> None:
    for units in ((5, 6, 0), (5, 3, 4), (5, 3, -1)):
        with pytest.raises(ValueError, match="not possible"):
            consumer._targets(order_event("ORDER_SHIPPED", 2, {1: units}))


# --- the stock, on both databases ---


def confirmed_order(inventory: InventoryDriver, units: Mapping[int, int]) -> None:
    """Add stock of each product at two locations, and reserve and confirm these units for the order."""
    for product in units:
        inventory.add_stock(product, STOCK // 2, "A")
        inventory.add_stock(product, STOCK // 2, "B")
    inventory.reserve_lines(ORDER, *(Line(product, count) for product, count in units.items()))
    inventory.confirm(ORDER)


def stock(inventory: InventoryDriver, product: int) -> tuple[int, int]:
    """Return the quantity and the reserved quantity of the product, over all locations."""
    with inventory.database.read() as tx:
        rows = tx.execute(tables.inventory_items.select().where(tables.inventory_items.c.product_id == product)).all()
    return sum(row.quantity for row in rows), sum(row.reserved_quantity for row in rows)


def test_half_is_shipped_and_the_other_half_is_cancelled(inventory: InventoryDriver) -> None:
    confirmed_order(inventory, {1: 30})

    inventory.change_order(ORDER, 4, ordered={1: 30}, targets={1: (30, 15)})
    assert stock(inventory, 1) == (STOCK - 15, 15)
    inventory.change_order(ORDER, 5, ordered={1: 30}, targets={1: (15, 15)})

    assert stock(inventory, 1) == (STOCK - 15, 0)
    kinds = [event.type for event in inventory.events() if event.type not in ("STOCK_UPDATED", "STOCK_MOVED")][2:]
    assert kinds == ["STOCK_RESERVATION_CHANGED", "STOCK_FULFILLED", "STOCK_RELEASED"]
    assert all(event.data["order_version"] in (4, 5) for event in inventory.events("STOCK_FULFILLED", "STOCK_RELEASED"))


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[int, int], list[dict[int, tuple[int, int]]], list[int]]:
    """Draw ordered units, the targets of each version, and the sequence in which their events are delivered.

    The last version is delivered at least once. Earlier ones may be lost, late and repeated.
    """
    ordered = {product: draw(st.integers(1, 12)) for product in (1, 2)}
    kept, shipped = dict(ordered), dict.fromkeys(ordered, 0)
    versions = []
    for _ in range(draw(st.integers(1, 6))):
        for product in ordered:
            kept[product] -= draw(st.integers(0, kept[product] - shipped[product]))
            shipped[product] += draw(st.integers(0, kept[product] - shipped[product]))
        versions.append({product: (kept[product], shipped[product]) for product in ordered})
    delivered = draw(st.lists(st.integers(0, len(versions) - 1), max_size=8))
    position = draw(st.integers(0, len(delivered)))
    return ordered, versions, [*delivered[:position], len(versions) - 1, *delivered[position:]]


def test_the_stock_agrees_with_the_newest_targets_after_any_history(inventory: InventoryDriver) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(histories())
    def check(history: tuple[dict[int, int], list[dict[int, tuple[int, int]]], list[int]]) -> None:
        ordered, versions, delivered = history
        empty(inventory.database)
        confirmed_order(inventory, ordered)

        for number in delivered:
            assert inventory.change_order(ORDER, 4 + number, ordered=ordered, targets=versions[number]) == {}

        for product, (kept, shipped) in versions[-1].items():
            assert stock(inventory, product) == (STOCK - shipped, kept - shipped)
        inventory.check_consistency()

    check()


def test_a_crash_between_two_turns_ships_nothing_twice(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach_targets, "TURN_RESERVATIONS", 1)
    confirmed_order(inventory, {1: 5, 2: 5})
    event = order_event("ORDER_SHIPPED", 4, {1: (5, 5, 3), 2: (5, 5, 5)})

    assert inventory.database.transact(lambda tx: consumer.fulfil(tx, [event]))
    assert sum(stock(inventory, product)[0] for product in (1, 2)) > 2 * STOCK - 8  # only some units so far
    # The process dies here. The event is delivered again, to another process.
    while inventory.database.transact(lambda tx: consumer.fulfil(tx, [event])):
        pass

    assert [stock(inventory, product) for product in (1, 2)] == [(STOCK - 3, 2), (STOCK - 5, 0)]


def test_a_repeat_after_the_last_turn_changes_nothing(inventory: InventoryDriver) -> None:
    confirmed_order(inventory, {1: 5})
    targets = {1: (5, 2)}
    inventory.change_order(ORDER, 4, ordered={1: 5}, targets=targets)
    before = len(inventory.events())

    assert inventory.change_order(ORDER, 4, ordered={1: 5}, targets=targets) == {}

    assert (len(inventory.events()), stock(inventory, 1)) == (before, (STOCK - 2, 3))


def test_a_newer_event_makes_up_for_one_that_was_set_aside(inventory: InventoryDriver) -> None:
    confirmed_order(inventory, {1: 5})

    inventory.change_order(ORDER, 6, ordered={1: 5}, targets={1: (5, 5)})
    inventory.change_order(ORDER, 5, ordered={1: 5}, targets={1: (5, 2)})  # sent again from the dead letters

    assert stock(inventory, 1) == (STOCK - 5, 0)


def test_a_repeat_after_the_reservations_were_purged_changes_nothing(inventory: InventoryDriver) -> None:
    confirmed_order(inventory, {1: 5})
    inventory.change_order(ORDER, 4, ordered={1: 5}, targets={1: (5, 5)})
    with inventory.database.write() as tx:
        tx.execute(delete(tables.stock_reservations))
        tx.execute(
            delete(tables.outbox.table).where(tables.outbox.table.c.type.not_in(["STOCK_UPDATED", "STOCK_MOVED"]))
        )

    assert inventory.change_order(ORDER, 4, ordered={1: 5}, targets={1: (5, 5)}) == {}

    assert stock(inventory, 1) == (STOCK - 5, 0)


def test_two_processes_that_handle_the_same_events_ship_each_unit_once(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    confirmed_order(inventory, {1: 12, 2: 12})
    ordered = {1: 12, 2: 12}

    outcomes = at_once(
        [
            partial(
                process.change_order, ORDER, version, ordered=ordered, targets=dict.fromkeys(ordered, (12, version))
            )
            for version in (4, 5, 6, 7)
            for process in (inventory, second_process)
        ]
    )

    assert outcomes == [{}] * 8
    assert [stock(inventory, product) for product in ordered] == [(STOCK - 7, 5)] * 2


def test_a_confirmation_that_meets_a_split_confirms_the_parts(
    inventory: InventoryDriver, second_process: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory.add_stock(1, 10)
    inventory.reserve(1, 10, order=ORDER)
    unreleased = by_order.unreleased
    calls: list[int] = []

    def split_after_the_first_read(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, list[str]]:
        ids = unreleased(tx, orders)
        if not calls:
            calls.append(1)
            second_process.change_order(ORDER, 2, ordered={1: 10}, targets={1: (6, 0)})
        return ids

    if inventory.database.is_sqlite:
        second_process.change_order(ORDER, 2, ordered={1: 10}, targets={1: (6, 0)})  # one writer: no interleaving
    else:
        monkeypatch.setattr(by_order, "unreleased", split_after_the_first_read)

    kept = inventory.confirm(ORDER)

    assert [(each.quantity, each.state) for each in kept] == [(6, State.CONFIRMED)]
    assert stock(inventory, 1) == (10, 6)


def test_units_that_were_not_reserved_are_reported_as_missing_once(inventory: InventoryDriver) -> None:
    confirmed_order(inventory, {1: 5})
    inventory.add_stock(2, 5)
    inventory.reserve(2, 4, order="other")

    missing = inventory.change_order(ORDER, 4, ordered={1: 5, 2: 4}, targets={1: (5, 5), 2: (4, 4)})

    assert missing == {2: 4}
    assert inventory.change_order(ORDER, 4, ordered={1: 5, 2: 4}, targets={1: (5, 5), 2: (4, 4)}) == {}
    assert stock(inventory, 2) == (5, 4)


def test_a_shipment_that_a_process_without_targets_has_handled_is_not_repeated(inventory: InventoryDriver) -> None:
    confirmed_order(inventory, {1: 5})
    inventory.ship(ORDER)

    assert inventory.change_order(ORDER, 4, ordered={1: 5}, targets={1: (5, 5)}) == {}

    assert stock(inventory, 1) == (STOCK - 5, 0)


def test_a_final_order_keeps_no_reservation(inventory: InventoryDriver) -> None:
    confirmed_order(inventory, {1: 5})
    inventory.reserve(1, 3, order=ORDER)  # with the id of the order, but not by it

    inventory.change_order(ORDER, 4, ordered={1: 5}, targets={1: (2, 2)})

    assert stock(inventory, 1) == (STOCK - 2, 0)


def test_an_order_with_many_reservations_is_changed_in_turns(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach_targets, "TURN_RESERVATIONS", 2)
    products = range(1, 6)
    confirmed_order(inventory, dict.fromkeys(products, 2))
    turns_taken = 0
    event = order_event("ORDER_CANCELLED", 4, dict.fromkeys(products, (2, 0, 0)))

    while inventory.database.transact(lambda tx: consumer.release(tx, [event])):
        turns_taken += 1

    assert turns_taken == 2
    assert [stock(inventory, product) for product in products] == [(STOCK, 0)] * 5
    assert turns.TURN_RESERVATIONS == 100
