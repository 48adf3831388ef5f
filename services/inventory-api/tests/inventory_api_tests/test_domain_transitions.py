"""State changes of reservations and their effects on items, without a database."""

from datetime import UTC, datetime, timedelta

import pytest

from inventory_api.domain import transitions
from inventory_api.domain.errors import ReservationExpired, ReservationNotFound, ReservationReleased
from inventory_api.domain.model import Allocation, Item, Reservation, State
from shop_common.api.command import Cause
from shop_common.identity.tenant import DEFAULT

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER, EARLIER = NOW + timedelta(seconds=1), NOW - timedelta(seconds=1)


def item(id_: int, quantity: int, reserved: int) -> Item:
    return Item(DEFAULT, id_, 1, f"L{id_}", quantity, reserved, 5, EARLIER, EARLIER)


def reservation(
    id_: str, state: State = State.HELD, *, expires_at: datetime | None = LATER, parts: dict[int, int] | None = None
) -> Reservation:
    allocations = tuple(Allocation(item_id, f"L{item_id}", units) for item_id, units in (parts or {1: 2}).items())
    quantity = sum(allocation.quantity for allocation in allocations)
    return Reservation(
        DEFAULT,
        "",
        id_,
        1,
        quantity,
        "order-1",
        state,
        EARLIER,
        None if state is State.CONFIRMED else expires_at,
        allocations,
    )


def confirm(
    *reservations: Reservation, has_expired: bool = False, has_released: bool = False
) -> transitions.Confirmation:
    return transitions.confirm("order-1", reservations, has_expired=has_expired, has_released=has_released, now=NOW)


def apply(
    changes: transitions.StateChanges, *reservations: Reservation, items: list[Item] | None = None
) -> transitions.Effect:
    stock = {each.id: each for each in items or [item(1, 10, 4)]}
    causes = {"a": Cause("trace-a", "user:7")}
    return transitions.apply(changes, {each.id: each for each in reservations}, stock, NOW, causes)


def test_confirming_an_order_changes_its_held_reservations_only() -> None:
    confirmation = confirm(reservation("a"), reservation("b", State.CONFIRMED), reservation("c", State.FULFILLED))

    assert confirmation == transitions.Confirmation({"a": State.CONFIRMED})


def test_a_due_reservation_refuses_the_order_and_expires() -> None:
    confirmation = confirm(reservation("a", expires_at=NOW), reservation("b"))

    assert confirmation.changes == {"a": State.EXPIRED}
    assert isinstance(confirmation.refusal, ReservationExpired)


@pytest.mark.parametrize("has_expired", [True, False])
def test_an_expired_reservation_refuses_the_order(has_expired: bool) -> None:
    others = () if has_expired else (reservation("b", State.EXPIRED),)

    confirmation = confirm(reservation("a"), *others, has_expired=has_expired)

    assert confirmation.changes == {}
    assert isinstance(confirmation.refusal, ReservationExpired)


@pytest.mark.parametrize("has_released", [True, False])
def test_an_order_with_nothing_but_released_reservations_is_refused(has_released: bool) -> None:
    reservations = () if has_released else (reservation("a", State.RELEASED),)

    confirmation = confirm(*reservations, has_released=has_released)

    assert confirmation.changes == {}
    assert isinstance(confirmation.refusal, ReservationReleased)


def test_an_order_without_reservations_is_not_found() -> None:
    assert isinstance(confirm().refusal, ReservationNotFound)


def test_releasing_changes_active_reservations_and_expires_due_ones() -> None:
    reservations = [
        reservation("held"),
        reservation("due", expires_at=NOW),
        reservation("confirmed", State.CONFIRMED),
        *(reservation(state, state) for state in (State.EXPIRED, State.RELEASED, State.FULFILLED)),
    ]

    changes = transitions.release(reservations, NOW)

    assert changes == {"held": State.RELEASED, "due": State.EXPIRED, "confirmed": State.RELEASED}


def test_only_confirmed_reservations_are_fulfilled() -> None:
    changes = transitions.fulfil([reservation(state, state) for state in State])

    assert changes == {State.CONFIRMED.value: State.FULFILLED}


def test_only_due_reservations_expire() -> None:
    reservations = [reservation(state, state, expires_at=EARLIER) for state in State]

    assert transitions.expire([*reservations, reservation("running")], NOW) == {State.HELD.value: State.EXPIRED}


def test_confirming_does_not_change_the_item_and_removes_the_expiry() -> None:
    effect = apply({"a": State.CONFIRMED}, reservation("a"))

    assert effect.items == {}
    assert (effect.reservations["a"].state, effect.reservations["a"].expires_at) == (State.CONFIRMED, None)
    assert [(message.type, message.traceparent) for message in effect.messages] == [
        ("STOCK_RESERVATION_CONFIRMED", "trace-a")
    ]


@pytest.mark.parametrize("state", [State.RELEASED, State.EXPIRED])
def test_releasing_and_expiring_free_the_units_at_each_item(state: State) -> None:
    effect = apply(
        {"a": state}, reservation("a", parts={1: 2, 2: 3}), items=[item(1, 10, 4), item(2, 10, 3), item(3, 1, 1)]
    )

    changed = {each.id: (each.quantity, each.reserved_quantity, each.version) for each in effect.items.values()}
    assert changed == {1: (10, 2, 5), 2: (10, 0, 5)}
    assert len(effect.messages) == 1


def test_fulfilling_subtracts_the_units_and_adds_one_version_per_item() -> None:
    effect = apply(
        {"a": State.FULFILLED, "b": State.FULFILLED},
        reservation("a", State.CONFIRMED),
        reservation("b", State.CONFIRMED),
    )

    (changed,) = effect.items.values()
    assert (changed.quantity, changed.reserved_quantity, changed.version) == (6, 0, 6)
    assert [message.type for message in effect.messages] == ["STOCK_FULFILLED", "STOCK_FULFILLED", "STOCK_UPDATED"]
