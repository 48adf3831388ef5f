"""The gauges of held reservations."""

import pytest
from prometheus_client import REGISTRY

from inventory_api.domain.commands import StockChange
from inventory_api.domain.model import ITEM_QUANTITY_MAX
from inventory_api.domain.movements import MovementKind
from inventory_api.operations.held_reservations import HeldReservationsCollector
from inventory_api.store import withholdings
from inventory_api.store.reservations import counts
from inventory_api.store.reservations.counts import ReservationCounts
from shop_common.db.database import FORCE_INDEX_PLANS
from testkit.drivers.inventory_api import InventoryDriver
from testkit.eventually import eventually

WAIT_SECONDS = 60


def count(inventory: InventoryDriver) -> ReservationCounts:
    return inventory.database.query(counts.count, FORCE_INDEX_PLANS)


def test_held_reservations_are_counted_as_running_or_due(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    for number in range(3):
        inventory.reserve(1, 1, order=f"running-{number}")
    inventory.make_due(inventory.reserve(1, 1, order="late"))
    inventory.reserve(1, 1, order="confirmed")
    inventory.confirm("confirmed")
    inventory.release(inventory.reserve(1, 1, order="released"))

    assert count(inventory) == ReservationCounts(running=3, due=1, set_aside=0)

    inventory.expire()

    assert count(inventory) == ReservationCounts(running=3, due=0, set_aside=0)


def withheld(units: int, reason: str) -> StockChange:
    return StockChange(0, 1, "A", MovementKind.WITHHELD, units, reason=reason)


def test_no_number_of_withheld_units_is_too_large(inventory: InventoryDriver) -> None:
    assert inventory.database.query(withholdings.count_units, FORCE_INDEX_PLANS) == 0
    inventory.add_stock(1, ITEM_QUANTITY_MAX, "A")
    inventory.change_stock(withheld(ITEM_QUANTITY_MAX, "DAMAGED"))

    assert inventory.database.query(withholdings.count_units, FORCE_INDEX_PLANS) == ITEM_QUANTITY_MAX


def test_a_count_stops_at_its_limit(inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory.add_stock(1, 20)
    for number in range(5):
        inventory.reserve(1, 1, order=f"running-{number}")
    monkeypatch.setattr(counts, "COUNTED_MAX", 4)

    assert count(inventory) == ReservationCounts(running=4, due=0, set_aside=0)


def test_the_gauges_are_set_at_once(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20, "A")
    inventory.reserve(1, 1)
    inventory.change_stock(withheld(5, "DAMAGED"), withheld(3, "SAFETY_STOCK"), withheld(-1, "DAMAGED"))
    collector = HeldReservationsCollector(inventory.database)
    collector.start()
    try:
        eventually(lambda: REGISTRY.get_sample_value("shop_holds", {"state": "running"}) == 1, WAIT_SECONDS)
        eventually(lambda: REGISTRY.get_sample_value("shop_withheld_units") == 7, WAIT_SECONDS)
    finally:
        collector.stop()
    assert REGISTRY.get_sample_value("shop_holds", {"state": "due"}) == 0
