"""ExtendReservations moves the expiry of the held reservations of an order to a later time, up to 7 days in all."""

from dataclasses import replace
from datetime import timedelta

import pytest

from inventory_api.domain.errors import ExtensionLimit, ReservationExpired, ReservationNotFound, ReservationReleased
from inventory_api.domain.model import HELD_SECONDS_MAX, Line, Reservation, State
from shop_common.identity.caller import Caller
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver

USER = Caller("user:7", frozenset({"stock.reserve"}), "7")


def expiry(reservation: Reservation) -> float:
    """Return the seconds from the creation of the reservation to its expiry."""
    assert reservation.expires_at is not None
    return (reservation.expires_at - reservation.created_at).total_seconds()


def test_all_held_reservations_of_an_order_expire_later(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.add_stock(2, 5)
    held = inventory.reserve_lines("order-1", Line(1, 2), Line(2, 3))
    other = inventory.reserve(1, 1, order="order-2")

    extended = inventory.extend(2 * TTL_SECONDS)

    assert sorted(each.id for each in held) == [each.id for each in extended]
    assert all(2 * TTL_SECONDS <= expiry(each) < 3 * TTL_SECONDS for each in extended)
    assert [inventory.reservation(each) for each in extended] == extended
    assert inventory.reservation(other) == other
    events = inventory.events("STOCK_RESERVATION_EXTENDED")
    assert sorted(event.data["reservation_id"] for event in events) == [each.id for each in extended]


def test_an_expiry_never_becomes_earlier(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)

    assert inventory.extend(1) == [held]
    assert inventory.events("STOCK_RESERVATION_EXTENDED") == []


def test_a_reservation_is_held_for_at_most_seven_days_in_all(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)

    with pytest.raises(ExtensionLimit) as refused:
        inventory.extend(HELD_SECONDS_MAX)

    latest = held.created_at + timedelta(seconds=HELD_SECONDS_MAX)
    assert refused.value.metadata()["latest"].startswith(latest.strftime("%Y-%m-%dT%H:%M:%S"))
    assert inventory.reservation(held) == held
    (extended,) = inventory.extend(HELD_SECONDS_MAX - 3600)
    assert HELD_SECONDS_MAX - 3600 <= expiry(extended) <= HELD_SECONDS_MAX


def test_confirmed_reservations_are_returned_unchanged(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.reserve(1, 2)
    confirmed = inventory.confirm()

    assert inventory.extend(HELD_SECONDS_MAX) == confirmed


@pytest.mark.parametrize("reaped", [False, True])
def test_an_order_that_has_expired_is_not_extended(inventory: InventoryDriver, reaped: bool) -> None:
    inventory.add_stock(1, 5)
    due, held = inventory.reserve(1, 2), inventory.reserve(1, 1)
    inventory.make_due(due)
    if reaped:
        inventory.expire()

    with pytest.raises(ReservationExpired):
        inventory.extend(3600)

    assert (inventory.state(due), inventory.reservation(held)) == (State.EXPIRED, held)


def test_an_order_that_was_released_or_is_unknown_is_not_extended(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    inventory.release(inventory.reserve(1, 2))

    with pytest.raises(ReservationReleased):
        inventory.extend(3600)
    with pytest.raises(ReservationNotFound):
        inventory.extend(3600, "unknown")


def test_a_caller_extends_its_own_reservations_only(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)

    for caller in (USER, replace(USER, tenant="acme")):
        with pytest.raises(ReservationNotFound):
            inventory.calling_as(caller).extend(3600)

    assert inventory.reservation(held) == held


def test_an_extended_reservation_expires_at_its_new_time(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 5)
    held = inventory.reserve(1, 2)
    inventory.extend(3600)
    assert inventory.expire() == 0

    inventory.make_due(held)

    assert inventory.expire() == 1
