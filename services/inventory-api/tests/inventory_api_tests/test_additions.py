"""ReserveAdditions reserves units for a change that may or may not follow. The events of the order decide."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inventory_api.domain.errors import (
    InsufficientStock,
    ReservationExpired,
    ReservationNotFound,
    ReservationReleased,
)
from inventory_api.domain.model import Line, Reservation, State
from inventory_api.store import order_effects, tables
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError
from testkit.drivers.inventory_api import InventoryDriver, at_once, empty, order_key

OTHER_CHANGE = "01930d4a-5f1d-7c02-a1f7-d06b3e5c8a98"


def stock(inventory: InventoryDriver, product: int) -> tuple[int, int]:
    """Return the quantity and the reserved quantity of the product."""
    with inventory.database.read() as tx:
        rows = tx.execute(tables.inventory_items.select().where(tables.inventory_items.c.product_id == product)).all()
    return sum(row.quantity for row in rows), sum(row.reserved_quantity for row in rows)


def confirmed(inventory: InventoryDriver, units: int = 3) -> Reservation:
    inventory.add_stock(1, 20)
    inventory.reserve(1, units)
    (reservation,) = inventory.confirm()
    return reservation


def additions(inventory: InventoryDriver) -> int:
    key = order_key("order-1")
    with inventory.database.write() as tx:
        return len(order_effects.lock(tx, [key], now(tx))[key].additions)


def test_units_are_added_to_a_held_order_until_the_others_expire(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    held = inventory.reserve(1, 3)

    (added,) = inventory.add(2, Line(1, 2), Line(1, 3), ordered={1: 3})

    assert (added.state, added.quantity, added.expires_at) == (State.HELD, 5, held.expires_at)
    assert stock(inventory, 1) == (20, 8)
    assert [each.quantity for each in inventory.confirm()] == [3, 5]
    inventory.check_consistency()
    inventory.check_events_against_contract()


def test_units_are_added_to_a_confirmed_order_without_expiry(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 1, "A")

    added = inventory.add(3, Line(1, 2), Line(2, 1, "A"), ordered={1: 3}, confirmed=True)

    assert [(each.state, each.expires_at) for each in added] == [(State.CONFIRMED, None)] * 2
    kinds = [event.type for event in inventory.events("STOCK_RESERVED", "STOCK_RESERVATION_CONFIRMED")]
    assert kinds[-4:] == ["STOCK_RESERVED"] * 2 + ["STOCK_RESERVATION_CONFIRMED"] * 2
    inventory.check_consistency()
    inventory.check_events_against_contract()


def test_all_lines_are_added_or_none(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 1)

    with pytest.raises(InsufficientStock) as refused:
        inventory.add(3, Line(1, 2), Line(2, 2), ordered={1: 3}, confirmed=True)

    assert refused.value.metadata() == {"product_id": "2", "requested": "2", "available": "1"}
    assert [stock(inventory, product) for product in (1, 2)] == [(20, 3), (1, 0)]
    assert additions(inventory) == 0


def test_a_repeat_returns_the_same_reservations(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    call = partial(inventory.add, 3, Line(1, 2), ordered={1: 3}, confirmed=True)

    results = at_once([call] * 4)

    assert results == [results[0]] * 4
    assert (stock(inventory, 1), additions(inventory)) == ((20, 5), 1)
    with pytest.raises(Contention):
        inventory.add(3, Line(1, 1), ordered={1: 3}, change_id=OTHER_CHANGE)


def test_an_order_without_stock_gets_no_more(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    with pytest.raises(ReservationNotFound):
        inventory.add(2, Line(1, 1), ordered={1: 1})
    held = inventory.reserve(1, 3)
    inventory.make_due(held)
    for _ in range(2):
        with pytest.raises(ReservationExpired):
            inventory.add(2, Line(1, 1), ordered={1: 3})
        inventory.expire()
    inventory.release(inventory.reserve(1, 3, order="order-2"))
    with pytest.raises(ReservationReleased):
        inventory.add(2, Line(1, 1), ordered={1: 3}, order="order-2")


def test_an_event_with_the_added_units_keeps_them(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add(3, Line(1, 2), ordered={1: 3}, confirmed=True)

    inventory.change_order("order-1", 3, ordered={1: 5}, targets={1: (5, 0)})

    assert (stock(inventory, 1), additions(inventory)) == ((20, 5), 0)
    inventory.change_order("order-1", 4, ordered={1: 5}, targets={1: (4, 4)})
    assert stock(inventory, 1) == (16, 0)


@pytest.mark.parametrize("version", [3, 4])
def test_an_event_without_the_added_units_releases_these_and_no_others(
    inventory: InventoryDriver, version: int
) -> None:
    kept = confirmed(inventory)
    (added,) = inventory.add(3, Line(1, 2), ordered={1: 3}, confirmed=True)

    inventory.change_order("order-1", version, ordered={1: 3}, targets={1: (3, 0)})

    assert (inventory.state(kept), inventory.state(added)) == (State.CONFIRMED, State.RELEASED)
    assert (stock(inventory, 1), additions(inventory)) == ((20, 3), 0)
    (event,) = inventory.events("STOCK_RELEASED")
    assert event.data["order_version"] == version
    with pytest.raises(Contention):  # a late call
        inventory.add(3, Line(1, 2), ordered={1: 3}, confirmed=True)


def test_an_event_of_a_lower_version_leaves_the_added_units_alone(inventory: InventoryDriver) -> None:
    kept = confirmed(inventory)
    (added,) = inventory.add(4, Line(1, 2), ordered={1: 3}, confirmed=True)

    inventory.change_order("order-1", 3, ordered={1: 3}, targets={1: (2, 1)})

    assert (inventory.state(kept), inventory.state(added)) == (State.REPLACED, State.CONFIRMED)
    assert (stock(inventory, 1), additions(inventory)) == ((19, 3), 1)
    inventory.change_order("order-1", 4, ordered={1: 5}, targets={1: (4, 1)})
    assert (stock(inventory, 1), inventory.state(added)) == ((19, 3), State.CONFIRMED)


def test_added_units_that_expired_were_never_kept(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    held = inventory.reserve(1, 3)
    (added,) = inventory.add(2, Line(1, 2), ordered={1: 3})
    inventory.make_due(added)
    with pytest.raises(ReservationExpired):
        inventory.add(2, Line(1, 2), ordered={1: 3})

    inventory.change_order("order-1", 3, ordered={1: 3}, targets={1: (3, 0)})

    assert inventory.stored_state(held) is State.HELD
    assert inventory.state(added) is State.EXPIRED


def test_a_cancellation_releases_all(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add(3, Line(1, 2), ordered={1: 3}, confirmed=True)

    inventory.change_order("order-1", 3, ordered={1: 3}, targets={1: (0, 0)})

    assert (stock(inventory, 1), additions(inventory)) == ((20, 0), 0)


def test_a_product_that_was_not_added_after_all_is_released(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 5)
    inventory.add(3, Line(2, 2), ordered={1: 3}, confirmed=True)

    inventory.change_order("order-1", 4, ordered={1: 3}, targets={1: (3, 0)})

    assert [stock(inventory, product) for product in (1, 2)] == [(20, 3), (5, 0)]
    assert inventory.events("STOCK_RELEASED")[0].data["product_id"] == 2


def test_a_reduction_is_measured_from_the_units_before_the_change(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 5)
    inventory.add(3, Line(2, 2), ordered={1: 3}, confirmed=True)

    inventory.change_order("order-1", 3, ordered={1: 3, 2: 2}, targets={1: (1, 0), 2: (2, 0)})

    assert [stock(inventory, product) for product in (1, 2)] == [(20, 1), (5, 2)]


def test_a_late_event_does_not_know_the_added_product(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 5)
    inventory.add(3, Line(2, 2), ordered={1: 3}, confirmed=True)
    inventory.change_order("order-1", 2, ordered={1: 3}, targets={1: (3, 0)})

    inventory.change_order("order-1", 3, ordered={1: 3, 2: 2}, targets={1: (0, 0), 2: (2, 0)})

    assert [stock(inventory, product) for product in (1, 2)] == [(20, 0), (5, 2)]
    inventory.check_consistency()


def test_the_added_product_of_a_change_that_was_given_up_is_released_after_a_late_event(
    inventory: InventoryDriver,
) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 5)
    inventory.add(3, Line(2, 2), ordered={1: 3}, confirmed=True)
    inventory.change_order("order-1", 2, ordered={1: 3}, targets={1: (2, 0)})

    inventory.change_order("order-1", 3, ordered={1: 3}, targets={1: (2, 0)})

    assert [stock(inventory, product) for product in (1, 2)] == [(20, 2), (5, 0)]


def test_two_changes_add_a_product_around_a_late_event(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 5)
    inventory.add(3, Line(2, 2), ordered={1: 3}, confirmed=True)
    inventory.change_order("order-1", 2, ordered={1: 3}, targets={1: (3, 0)})
    inventory.add(4, Line(2, 1), ordered={1: 3, 2: 2}, change_id=OTHER_CHANGE, confirmed=True)

    inventory.change_order("order-1", 4, ordered={1: 3, 2: 3}, targets={1: (3, 0), 2: (3, 0)})

    assert [stock(inventory, product) for product in (1, 2)] == [(20, 3), (5, 3)]


def test_the_previous_release_forgets_the_added_product(inventory: InventoryDriver) -> None:
    confirmed(inventory)
    inventory.add_stock(2, 5)
    inventory.add(3, Line(2, 2), ordered={1: 3}, confirmed=True)
    key = order_key("order-1")
    with inventory.database.write() as tx:
        effects = order_effects.lock(tx, [key], now(tx))[key]
        totals = {product: total for product, total in effects.totals.items() if product == 1}
        order_effects.save(tx, {key: replace(effects, totals=totals)}, now(tx))

    inventory.change_order("order-1", 3, ordered={1: 3, 2: 2}, targets={1: (0, 0), 2: (2, 0)})

    assert [stock(inventory, product) for product in (1, 2)] == [(20, 0), (5, 2)]


def test_an_extension_meets_an_addition(inventory: InventoryDriver, second_process: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    inventory.reserve(1, 3, ttl=60)

    outcomes = at_once(
        [
            partial(inventory.extend, 3600),
            partial(second_process.add, 2, Line(1, 2), ordered={1: 3}),
        ]
    )

    assert not any(isinstance(outcome, ShopError) for outcome in outcomes)
    with inventory.database.read() as tx:
        rows = tx.execute(tables.stock_reservations.select()).all()
    assert len({row.expires_at for row in rows}) == 1


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int, bool, bool]]:
    """Draw changes of an order: more or fewer units, and whether the change is stored and its event delivered."""
    return draw(
        st.lists(
            st.tuples(st.sampled_from(["add", "cancel", "ship"]), st.integers(1, 3), st.booleans(), st.booleans()),
            max_size=8,
        )
    )


def test_the_stock_follows_any_history_of_changes(inventory: InventoryDriver) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(histories())
    def check(history: list[tuple[str, int, bool, bool]]) -> None:
        empty(inventory.database)
        confirmed(inventory)
        ordered, kept, shipped, version = 3, 3, 0, 2
        late = []
        for kind, units, is_stored, is_delivered in history:
            if kind == "add":
                try:
                    inventory.add(version + 1, Line(1, units), ordered={1: ordered}, confirmed=True)
                except InsufficientStock:
                    continue
                if is_stored:
                    ordered, kept = ordered + units, kept + units
            elif kind == "cancel":
                kept -= min(units, kept - shipped - 1)
            else:
                shipped += min(units, kept - shipped - 1)
            version += 1
            event = (version, {1: ordered}, {1: (kept, shipped)})
            if is_delivered:
                inventory.change_order("order-1", event[0], ordered=event[1], targets=event[2])
            else:
                late.append(event)
        inventory.change_order("order-1", version + 1, ordered={1: ordered}, targets={1: (kept, shipped)})
        for number, before, targets in late:
            inventory.change_order("order-1", number, ordered=before, targets=targets)

        assert stock(inventory, 1) == (20 - shipped, kept - shipped)
        assert additions(inventory) == 0
        inventory.check_consistency()

    check()
