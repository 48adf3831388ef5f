"""Reserving stock: how many units, from which locations, and when it is refused."""

import pytest

from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import Line, State
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver, deadline


def test_reserved_units_are_unavailable_until_the_reservation_expires(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 10)

    held = inventory.reserve(1, 4)

    assert held.state is State.HELD
    assert held.expires_at is not None
    assert (held.expires_at - held.created_at).total_seconds() == TTL_SECONDS
    assert inventory.reservation(held) == held
    found = inventory.item(item)
    assert (found.quantity, found.reserved_quantity, found.available_quantity) == (10, 4, 6)
    assert inventory.available(1) == 6


def test_a_request_may_set_its_own_ttl(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)

    held = inventory.reserve(1, 1, ttl=1.5)

    assert held.expires_at is not None
    assert (held.expires_at - held.created_at).total_seconds() == 1.5


def test_all_units_can_be_reserved_and_not_one_more(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 3)
    inventory.reserve(1, 3)

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(1, 1)

    assert refused.value.metadata() == {"product_id": "1", "requested": "1", "available": "0"}


def test_two_lines_of_one_product_are_summed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve_lines("order-1", Line(1, 6), Line(1, 6))
    (held,) = inventory.reserve_lines("order-1", Line(1, 5), Line(1, 5))

    assert (refused.value.requested, refused.value.available) == (12, 10)
    assert held.quantity == 10


def test_an_order_gets_all_of_its_products_or_none(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    inventory.add_stock(2, 1)

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve_lines("order-1", Line(1, 10), Line(2, 2))

    assert (refused.value.product_id, refused.value.requested, refused.value.available) == (2, 2, 1)
    assert (inventory.available(1), inventory.available(2)) == (10, 1)
    assert inventory.events("STOCK_RESERVED") == []


def test_an_order_has_one_reservation_and_one_event_per_product(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    inventory.add_stock(2, 10)

    held = inventory.reserve_lines("order-1", Line(2, 1), Line(1, 2), Line(2, 3))

    assert [(each.product_id, each.quantity) for each in held] == [(2, 4), (1, 2)]
    stock_reserved = inventory.events("STOCK_RESERVED")
    assert [event.data["reservation_id"] for event in stock_reserved] == [each.id for each in held]
    assert [event.key for event in stock_reserved] == ["2", "1"]


def test_an_unknown_product_is_refused_with_zero_available(inventory: InventoryDriver) -> None:
    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(404, 1)

    assert refused.value.metadata() == {"product_id": "404", "requested": "1", "available": "0"}
    assert inventory.available(404) == 0


def test_a_line_that_names_a_location_takes_nothing_from_another(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 2, "B")

    with pytest.raises(InsufficientStock) as refused:
        inventory.reserve(1, 3, location="B")
    held = inventory.reserve(1, 2, location="B")

    assert (refused.value.available, refused.value.metadata()["location"]) == (2, "B")
    assert [(part.location, part.quantity) for part in held.allocations] == [("B", 2)]
    assert (inventory.available(1, "A"), inventory.available(1, "B"), inventory.available(1, "C")) == (5, 0, 0)


def test_a_line_too_large_for_one_location_is_split(inventory: InventoryDriver) -> None:
    for location, units in (("A", 3), ("B", 7), ("C", 5)):
        inventory.add_stock(1, units, location)

    held = inventory.reserve(1, 11)

    assert {part.location: part.quantity for part in held.allocations} == {"B": 7, "C": 4}
    assert [inventory.available(1, location) for location in "ABC"] == [3, 0, 1]
    assert len(inventory.events("STOCK_RESERVED")) == 1


def test_a_line_that_fits_one_location_takes_the_one_with_the_fewest_units(inventory: InventoryDriver) -> None:
    for location, units in (("A", 100), ("B", 6), ("C", 5)):
        inventory.add_stock(1, units, location)

    held = inventory.reserve(1, 6)

    assert [part.location for part in held.allocations] == ["B"]


def test_lines_with_a_location_are_allocated_before_those_without(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5, "A")
    inventory.add_stock(1, 5, "B")

    (held,) = inventory.reserve_lines("order-1", Line(1, 5), Line(1, 5, "A"))

    assert {part.location: part.quantity for part in held.allocations} == {"A": 5, "B": 5}


def test_an_event_continues_the_trace_of_its_call(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1)
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    inventory.operations.reserve(OrderLines("order-1", (Line(1, 1),), traceparent=traceparent), deadline=deadline())

    assert [event.traceparent for event in inventory.events("STOCK_RESERVED")] == [traceparent]
