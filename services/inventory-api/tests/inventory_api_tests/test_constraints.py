"""The constraints of the database reject impossible rows."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from inventory_api.store import tables
from shop_common.db.database import Database

NOW = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
ITEM = {
    "product_id": 1,
    "location": "A",
    "quantity": 5,
    "reserved_quantity": 2,
    "version": 1,
    "created_at": NOW,
    "updated_at": NOW,
}
RESERVATION = {
    "id": "018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b11",
    "product_id": 1,
    "quantity": 2,
    "order_id": "order-1",
    "state": "HELD",
    "created_at": NOW,
    "expires_at": NOW,
}
ALLOCATION = {"reservation_id": RESERVATION["id"], "item_id": 1, "quantity": 2}


def write(database: Database, table: Table, row: dict[str, Any], **other: Any) -> None:
    with database.write() as tx:
        tx.execute(insert(table), [{**row, **other}])


@pytest.mark.parametrize(
    "wrong",
    [{"reserved_quantity": -1}, {"reserved_quantity": 6}, {"quantity": 1}, {"quantity": -1, "reserved_quantity": -1}],
    ids=["negative reserved", "reserved above quantity", "quantity below reserved", "negative quantity"],
)
def test_an_item_cannot_have_impossible_numbers(database: Database, wrong: dict[str, int]) -> None:
    write(database, tables.inventory_items, ITEM)

    with pytest.raises(IntegrityError):
        write(database, tables.inventory_items, ITEM, location="B", **wrong)
    with pytest.raises(IntegrityError), database.write() as tx:
        tx.execute(update(tables.inventory_items).values(wrong))


def test_a_product_has_one_item_per_location(database: Database) -> None:
    write(database, tables.inventory_items, ITEM)
    write(database, tables.inventory_items, ITEM, location="B")
    write(database, tables.inventory_items, ITEM, product_id=2)

    with pytest.raises(IntegrityError):
        write(database, tables.inventory_items, ITEM)


@pytest.mark.parametrize(
    "wrong",
    [{"quantity": 0}, {"quantity": -1}, {"state": "SOLD"}, {"state": ""}, {"expires_at": None}],
    ids=["zero", "negative", "unknown state", "no state", "held without expiry"],
)
def test_a_reservation_cannot_have_impossible_values(database: Database, wrong: dict[str, Any]) -> None:
    write(database, tables.stock_reservations, RESERVATION)

    with pytest.raises(IntegrityError):
        write(database, tables.stock_reservations, RESERVATION, id="018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b12", **wrong)
    with pytest.raises(IntegrityError), database.write() as tx:
        tx.execute(update(tables.stock_reservations).values(wrong))


def test_a_reservation_is_active_while_it_is_held_or_confirmed(database: Database) -> None:
    write(database, tables.stock_reservations, RESERVATION)
    active = {}
    for state in ("HELD", "CONFIRMED", "EXPIRED", "RELEASED", "FULFILLED"):
        with database.write() as tx:
            tx.execute(update(tables.stock_reservations).values(state=state))
            active[state] = bool(tx.execute(select(tables.stock_reservations.c.is_active)).scalar_one())

    assert active == {"HELD": True, "CONFIRMED": True, "EXPIRED": False, "RELEASED": False, "FULFILLED": False}


def test_an_allocation_has_units_an_item_and_a_reservation(database: Database) -> None:
    write(database, tables.inventory_items, ITEM, id=1)
    write(database, tables.inventory_items, ITEM, id=2, location="B")
    write(database, tables.stock_reservations, RESERVATION)
    write(database, tables.reservation_allocations, ALLOCATION)

    with pytest.raises(IntegrityError):
        write(database, tables.reservation_allocations, ALLOCATION, item_id=2, quantity=0)
    with pytest.raises(IntegrityError):
        write(database, tables.reservation_allocations, ALLOCATION, item_id=3)
    with pytest.raises(IntegrityError):
        write(database, tables.reservation_allocations, ALLOCATION)
    with pytest.raises(IntegrityError):
        write(
            database, tables.reservation_allocations, ALLOCATION, reservation_id="018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b12"
        )


def test_allocations_are_deleted_with_their_reservation(database: Database) -> None:
    write(database, tables.inventory_items, ITEM, id=1)
    write(database, tables.stock_reservations, RESERVATION)
    write(database, tables.reservation_allocations, ALLOCATION)

    with database.write() as tx:
        tx.execute(tables.stock_reservations.delete())

    with database.read() as tx:
        assert tx.execute(select(tables.reservation_allocations)).all() == []
