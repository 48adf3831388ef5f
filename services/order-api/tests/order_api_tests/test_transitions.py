"""The status changes that requests and events cause, without a database."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product

import pytest

from order_api.domain.commands import ChangeStatus
from order_api.domain.errors import IllegalTransition, OrderNotFound, ReservationExpired, ReservationReleased
from order_api.domain.model import LEGAL_CHANGES, Order, OrderItem, OrderKey, Status
from order_api.domain.transitions import ConfirmationResult, LostStock, Transition, change, confirm
from order_api.inventory import InventoryUnavailable
from shop_common.errors import Contention

ORDER = OrderKey("default", "o")
NOW = datetime(2024, 1, 1, tzinfo=UTC)


def order(status: Status) -> Order:
    items = (OrderItem(1, 7, 2, Decimal(1)), OrderItem(2, 7, 1, Decimal(1)), OrderItem(3, 8, 1, Decimal(1)))
    return Order("default", "o", 1, Decimal(4), "USD", status, "", NOW, 1, NOW, NOW, items)


def command(status: Status) -> ChangeStatus:
    return ChangeStatus("o", status, "because")


@pytest.mark.parametrize(("present", "requested"), list(product(Status, Status)))
def test_only_legal_changes_are_made(present: Status, requested: Status) -> None:
    transition = change(order(present), command(requested))

    if present is requested:
        assert transition == Transition()
    elif requested in LEGAL_CHANGES[present]:
        assert transition == Transition(requested, "because")
    else:
        assert transition.status is None
        assert isinstance(transition.refusal, IllegalTransition)


def test_an_unknown_order_is_refused() -> None:
    assert isinstance(change(None, command(Status.CANCELLED)).refusal, OrderNotFound)
    assert isinstance(confirm(None, ConfirmationResult(command(Status.CONFIRMED), {})).refusal, OrderNotFound)


def test_an_order_is_confirmed_when_all_of_its_units_are_confirmed() -> None:
    result = ConfirmationResult(command(Status.CONFIRMED), {7: 3, 8: 1, 9: 5})

    assert confirm(order(Status.PENDING), result) == Transition(Status.CONFIRMED, "because")


@pytest.mark.parametrize("units", [{7: 2, 8: 1}, {7: 3}, {}])
def test_an_order_with_too_few_confirmed_units_is_cancelled_and_refused_as_released(units: dict[int, int]) -> None:
    transition = confirm(order(Status.PENDING), ConfirmationResult(command(Status.CONFIRMED), units))

    assert transition.status is Status.CANCELLED
    assert isinstance(transition.refusal, ReservationReleased)


def test_an_order_with_lost_stock_is_cancelled_unless_it_is_cancelled_already() -> None:
    lost = ReservationExpired("o")
    result = ConfirmationResult(command(Status.CONFIRMED), lost)

    transition = confirm(order(Status.PENDING), result)
    assert (transition.status, transition.refusal) == (Status.CANCELLED, lost)
    assert confirm(order(Status.CANCELLED), result) == Transition(refusal=lost)


def test_any_other_failure_changes_nothing() -> None:
    error = InventoryUnavailable("no response")

    assert confirm(order(Status.PENDING), ConfirmationResult(command(Status.CONFIRMED), error)) == Transition(
        refusal=error
    )


def test_an_order_that_changed_during_the_call_is_a_conflict() -> None:
    before = order(Status.PENDING)
    result = ConfirmationResult(command(Status.CONFIRMED), {7: 3, 8: 1}, before.version)

    assert confirm(before, result).status is Status.CONFIRMED
    transition = confirm(replace(before, version=before.version + 1), result)
    assert transition.status is None
    assert isinstance(transition.refusal, Contention)


def test_an_order_that_was_created_after_the_read_is_a_conflict() -> None:
    transition = confirm(order(Status.PENDING), ConfirmationResult(command(Status.CONFIRMED), None))

    assert transition.status is None
    assert isinstance(transition.refusal, Contention)


@pytest.mark.parametrize("status", list(Status))
def test_released_stock_cancels_orders_before_shipping_and_expired_stock_only_pending_ones(status: Status) -> None:
    released, expired = LostStock(ORDER, released=True), LostStock(ORDER, released=False)

    assert released.cancels(status) is (status in {Status.PENDING, Status.CONFIRMED, Status.PROCESSING})
    assert expired.cancels(status) is (status is Status.PENDING)
