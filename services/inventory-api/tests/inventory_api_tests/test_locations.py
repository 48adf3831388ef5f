"""The properties of locations, and the stock at inactive ones."""

from datetime import datetime, timedelta
from functools import partial

import pytest

from inventory_api.domain.commands import LocationFilter
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import AllocationPolicy, Line, Location, State, Strategy
from inventory_api.operations.items import availability
from shop_common.api.paging import PageRequest
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import InvalidInput
from shop_common.identity.caller import Caller
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import InventoryDriver, at_once, deadline, refusals

ANOTHER = Caller("user:2", frozenset(), "2", "another")

# --- properties ---


def test_a_location_that_was_never_set_has_default_values(inventory: InventoryDriver) -> None:
    location = inventory.update_location("A", region="north")

    assert (location.is_active, location.priority, location.region, location.labels) == (True, 0, "north", ())


def test_properties_that_are_absent_do_not_change(inventory: InventoryDriver) -> None:
    first = inventory.update_location("A", is_active=False, priority=3, region="north", labels=(("k", "v"),))

    second = inventory.update_location("A", priority=4)

    assert (second.is_active, second.priority, second.region, second.labels) == (False, 4, "north", (("k", "v"),))
    assert isinstance(first.updated_at, datetime)
    assert isinstance(second.updated_at, datetime)
    assert second.updated_at >= first.updated_at
    assert inventory.update_location("A", labels=()).labels == ()


def test_a_repeated_change_is_made_once(inventory: InventoryDriver) -> None:
    inventory.update_location("A", priority=1, request_id="r")
    changed = inventory.update_location("A", priority=2)

    assert inventory.update_location("A", priority=1, request_id="r") == changed
    with pytest.raises(RequestIdReused):
        inventory.update_location("A", priority=3, request_id="r")


def test_concurrent_changes_of_different_properties_all_count(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    calls = [
        partial(process.update_location, name, **change)
        for name in ("A", "B", "C")
        for process, change in ((inventory, {"region": "north"}), (second_process, {"labels": (("k", "v"),)}))
    ]

    assert refusals(at_once(calls)) == []

    assert [(each.region, each.labels) for each in listed(inventory)] == [("north", (("k", "v"),))] * 3


def test_locations_are_listed_in_pages_by_tenant(inventory: InventoryDriver) -> None:
    for name in ("C", "A", "B"):
        inventory.update_location(name, priority=1)
    inventory.calling_as(ANOTHER).update_location("A", priority=2)

    assert [each.location for each in listed(inventory)] == ["A", "B", "C"]
    assert {each.priority for each in listed(inventory)} == {1}


def listed(inventory: InventoryDriver) -> list[Location]:
    """All locations of the default tenant, read in pages of two."""
    found: list[Location] = []
    after = None
    while True:
        request = PageRequest("locations", LocationFilter(DEFAULT), after, 2)
        page = inventory.operations.list_locations(request, deadline=deadline())
        found += page.rows
        after = page.next_position
        if after is None:
            return found


# --- inactive locations ---


def test_nothing_is_reserved_at_an_inactive_location(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 3, "B")
    inventory.update_location("A", is_active=False)

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(1, 4)
    with pytest.raises(InsufficientStock):
        inventory.reserve(1, 1, location="A")

    assert refused.value.available == 3
    assert [part.location for part in inventory.reserve(1, 3).allocations] == ["B"]
    assert [inventory.available(1, where) for where in (None, "A", "B")] == [0, 0, 0]
    assert (inventory.item(item).quantity, inventory.item(item).available_quantity) == (5, 0)
    inventory.update_location("A", is_active=True)
    assert inventory.reserve(1, 5).quantity == 5


def test_reservations_at_an_inactive_location_do_not_change(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 5, "A")
    shipped = inventory.reserve(1, 2, order="shipped")
    released = inventory.reserve(1, 1, order="released")
    inventory.update_location("A", is_active=False)

    inventory.confirm("shipped")
    inventory.ship("shipped")
    inventory.release(released)

    assert inventory.stored_state(shipped) is State.FULFILLED
    assert inventory.add_stock(1, 1, "A").available_quantity == 0
    assert inventory.set_quantity(item, 2).quantity == 2


def test_due_reservations_at_an_inactive_location_do_not_cover_a_shortage(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 5, "B")
    due = [inventory.reserve(1, 5, location=where) for where in ("A", "B")]
    inventory.make_due(*due)
    inventory.update_location("A", is_active=False)

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(1, 6)
    assert refused.value.available == 5

    assert [part.location for part in inventory.reserve(1, 5).allocations] == ["B"]


def test_an_inactive_location_of_another_tenant_changes_nothing(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.calling_as(ANOTHER).update_location("A", is_active=False)

    assert inventory.available(1) == 5
    assert inventory.reserve_lines("order-1", Line(1, 5, "A"))


# --- policies ---


def test_a_policy_takes_units_by_the_priority_of_the_locations(inventory: InventoryDriver) -> None:
    for name, priority in (("A", 1), ("B", 3), ("C", 2)):
        inventory.add_stock(1, 5, name)
        inventory.update_location(name, priority=priority)
    policy = AllocationPolicy(Strategy.PRIORITY)

    (reservation,) = inventory.reserve_lines("order-1", Line(1, 7, policy=policy))

    assert {part.location: part.quantity for part in reservation.allocations} == {"B": 5, "C": 2}


def test_due_reservations_free_the_units_that_a_policy_needs(inventory: InventoryDriver) -> None:
    """Older due reservations at a location that the policy excludes do not help, so they stay as they are."""
    for name in ("A", "B"):
        inventory.add_stock(1, 20, name)
    useless = [inventory.reserve(1, 1, location="A") for _ in range(20)]
    useful = inventory.reserve(1, 20, location="B")
    inventory.make_due(*useless, ago_seconds=60)
    inventory.make_due(useful)
    policy = AllocationPolicy(excluded_locations=("A",), max_locations=1)

    (reservation,) = inventory.reserve_lines("order-1", Line(1, 15, policy=policy))

    assert [part.location for part in reservation.allocations] == ["B"]
    assert inventory.stored_state(useful) is State.EXPIRED
    assert {inventory.stored_state(each) for each in useless} == {State.HELD}


def test_a_repeat_with_another_policy_is_refused(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20, "A")
    line = Line(1, 2, policy=AllocationPolicy(max_locations=1))
    first = inventory.reserve_lines("order-1", line, request_id="r")

    assert inventory.reserve_lines("order-1", line, request_id="r") == first
    with pytest.raises(RequestIdReused):
        inventory.reserve_lines("order-1", Line(1, 2), request_id="r")


# --- availability ---


def test_the_stock_of_many_products_is_read_in_the_order_of_the_request(inventory: InventoryDriver) -> None:
    for product in (1, 2, 3):
        inventory.add_stock(product, 10 * product, "A")
    inventory.add_stock(1, 7, "B")
    inventory.reserve(2, 4)

    read = inventory.availability(3, 99, 1, 2)

    assert [(each.product_id, each.available_quantity, each.reserved_quantity) for each in read.products] == [
        (3, 30, 0),
        (99, 0, 0),
        (1, 17, 0),
        (2, 16, 4),
    ]
    assert {each.locations for each in read.products} == {()}


def test_the_stock_is_shown_by_location(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "B")
    inventory.add_stock(1, 7, "A")
    inventory.reserve(1, 2, location="A")
    inventory.update_location("B", is_active=False)

    (found,) = inventory.availability(1, by_location=True).products

    assert (found.available_quantity, found.reserved_quantity) == (5, 2)
    assert [(each.location, each.available_quantity, each.reserved_quantity) for each in found.locations] == [
        ("A", 5, 2),
        ("B", 0, 0),
    ]


def test_the_next_release_is_the_earliest_expiry_of_a_held_reservation(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20, "A")
    inventory.add_stock(2, 20, "A")
    inventory.make_due(inventory.reserve(1, 3, order="due"))
    inventory.reserve(1, 1, order="confirmed", ttl=10)
    inventory.confirm("confirmed")
    inventory.reserve(1, 1, ttl=600)
    next_one = inventory.reserve(1, 1, ttl=300)

    read = inventory.availability(1, 2)

    first, second = read.products
    assert first.next_release_at == next_one.expires_at
    assert (first.available_quantity, first.reserved_quantity) == (17, 3)
    assert second.next_release_at is None
    assert abs(read.read_at - next_one.created_at) < timedelta(hours=1)


def test_units_of_due_reservations_over_several_locations_are_available(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 5, "B")
    inventory.make_due(inventory.reserve(1, 8))

    (found,) = inventory.availability(1, by_location=True).products

    assert (found.available_quantity, found.reserved_quantity, found.next_release_at) == (10, 0, None)
    assert [(each.available_quantity, each.reserved_quantity) for each in found.locations] == [(5, 0), (5, 0)]


def test_products_with_too_many_items_are_refused(inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "ITEMS_MAX", 2)
    for where in ("A", "B"):
        inventory.add_stock(1, 1, where)

    assert inventory.availability(1).products[0].available_quantity == 2
    with pytest.raises(InvalidInput) as refused:
        inventory.availability(1, 2)
    assert [each.field for each in refused.value.violations] == ["product_ids"]


def test_another_tenant_reads_its_own_stock_only(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    another = inventory.calling_as(ANOTHER)

    assert another.availability(1).products[0].available_quantity == 0
