"""Status changes of orders, as operations on both databases."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_api.domain.commands import CancelAbandoned, ChangeStatus
from order_api.domain.errors import IllegalTransition, ReservationExpired
from order_api.domain.model import LEGAL_CHANGES, Order, OrderKey, Status
from order_api.domain.transitions import ConfirmationResult, LostStock
from order_api.operations.cancel_orders import AbandonedOrders, cancel_lost
from order_api.operations.change_status import change_status
from order_api.operations.confirm_order import finish, needs_call
from order_api.store import orders
from shop_common.db.database import Database
from shop_common.errors import ShopError
from testkit.drivers.order_api import at_once, events, new_order, stored

GRACE_SECONDS = 60


def change(database: Database, *commands: ChangeStatus) -> list[Order | ShopError]:
    return database.transact(lambda tx: change_status(tx, commands))


def lose(database: Database, *losses: LostStock) -> None:
    while database.transact(lambda tx: cancel_lost(tx, losses)):
        pass


def cancel_abandoned(database: Database, max_count: int = 100) -> int:
    return AbandonedOrders(database).cancel(CancelAbandoned(GRACE_SECONDS, max_count))


def at(database: Database, status: Status) -> Order:
    """An order in this status."""
    (order,) = stored(database, new_order())
    path = {
        Status.PENDING: [],
        Status.CANCELLED: [Status.CANCELLED],
    }.get(status, [Status.CONFIRMED, Status.PROCESSING, Status.SHIPPED, Status.DELIVERED])
    for each in path[: path.index(status) + 1] if path else []:
        assert isinstance(change(database, ChangeStatus(order.id, each))[0], Order)
    return load(database, order.id)


def load(database: Database, order_id: str) -> Order:
    key = OrderKey("default", order_id)
    return database.query(lambda tx: orders.load(tx, [key]))[key]


def test_an_illegal_change_is_refused_with_the_legal_ones(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        for requested in Status:
            if requested in LEGAL_CHANGES[status] or requested is status:
                continue
            (outcome,) = change(database, ChangeStatus(order.id, requested))
            assert isinstance(outcome, IllegalTransition)
            assert outcome.metadata() == {
                "id": order.id,
                "from": status.value,
                "to": requested.value,
                "legal": ",".join(LEGAL_CHANGES[status]),
            }
        assert load(database, order.id) == order


def test_a_change_to_the_present_status_changes_nothing(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        before = events(database, order.id)

        assert change(database, ChangeStatus(order.id, status, reason="again")) == [order]
        assert events(database, order.id) == before


def test_changes_of_one_order_in_one_batch_are_made_in_sequence(database: Database) -> None:
    order = at(database, Status.CONFIRMED)

    processing, shipped, refused = change(
        database,
        ChangeStatus(order.id, Status.PROCESSING),
        ChangeStatus(order.id, Status.SHIPPED, reason="parcel 7"),
        ChangeStatus(order.id, Status.CANCELLED),
    )

    assert isinstance(processing, Order)
    assert processing.status is Status.PROCESSING
    assert isinstance(refused, IllegalTransition)
    assert load(database, order.id) == shipped
    emitted = [(each["event_type"], each["data"]["version"]) for each in events(database, order.id)]
    assert emitted[2:] == [("ORDER_PROCESSING", 3), ("ORDER_SHIPPED", 4)]


def test_expired_stock_cancels_an_order_that_is_not_confirmed(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        lose(database, LostStock(order.key, released=False))
        expected = Status.CANCELLED if status is Status.PENDING else status
        assert load(database, order.id).status is expected


def test_released_stock_cancels_an_order_that_is_not_shipped(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        lose(database, LostStock(order.key, released=True))
        kept = {Status.SHIPPED, Status.DELIVERED}
        assert load(database, order.id).status is (status if status in kept else Status.CANCELLED)


def test_a_repeated_loss_changes_nothing(database: Database) -> None:
    order = at(database, Status.PENDING)

    lose(database, LostStock(order.key, released=False), LostStock(order.key, released=True))
    lose(database, LostStock(order.key, released=True))

    assert [each["event_type"] for each in events(database, order.id)] == ["ORDER_CREATED", "ORDER_CANCELLED"]


@pytest.mark.parametrize("order_id", ["cart-1182", "", "ü", "\x00", "7877be0e-a72b-4ce1-90a1-b90ecfdffc6b", "A" * 36])
def test_a_loss_of_an_unknown_order_is_ignored(database: Database, order_id: str) -> None:
    order = at(database, Status.PENDING)

    lose(database, LostStock(OrderKey("default", order_id), released=True), LostStock(order.key, released=True))

    assert load(database, order.id).status is Status.CANCELLED


def test_only_orders_past_their_grace_are_cancelled_oldest_first(database: Database) -> None:
    waiting, recent, old, oldest, confirmed = (
        stored(database, new_order(), reserved_seconds=seconds)[0]
        for seconds in (60, 1 - GRACE_SECONDS, -1 - GRACE_SECONDS, -2 - GRACE_SECONDS, -3 - GRACE_SECONDS)
    )
    change(database, ChangeStatus(confirmed.id, Status.CONFIRMED))

    assert cancel_abandoned(database, max_count=1) == 1
    assert load(database, oldest.id).status is Status.CANCELLED
    assert load(database, old.id).status is Status.PENDING
    assert cancel_abandoned(database) == 1
    assert cancel_abandoned(database) == 0

    statuses = [load(database, order.id).status for order in (waiting, recent, old, confirmed)]
    assert statuses == [Status.PENDING, Status.PENDING, Status.CANCELLED, Status.CONFIRMED]
    assert [each["event_type"] for each in events(database, old.id)] == ["ORDER_CREATED", "ORDER_CANCELLED"]


def test_a_confirmation_is_refused_when_the_event_of_the_loss_came_first(database: Database) -> None:
    order = at(database, Status.PENDING)
    command = ChangeStatus(order.id, Status.CONFIRMED)
    assert database.query(lambda tx: needs_call(tx, [command])) == [True]
    lose(database, LostStock(order.key, released=False))

    refusal = ReservationExpired(order.id)
    assert database.transact(lambda tx: finish(tx, [ConfirmationResult(command, refusal)])) == [refusal]
    assert load(database, order.id).version == 2


def test_of_concurrent_cancellations_one_takes_effect(database: Database) -> None:
    order = at(database, Status.CONFIRMED)

    def cancel(number: int) -> None:
        if number % 3:
            change(database, ChangeStatus(order.id, Status.CANCELLED))
        else:
            lose(database, LostStock(order.key, released=True))

    at_once(9, cancel)

    emitted = [(each["event_type"], each["data"]["version"]) for each in events(database, order.id)]
    assert emitted[2:] == [("ORDER_CANCELLED", 3)]


class _Model:
    """The statuses of one order, in sequence."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.statuses = [Status.PENDING]

    def change(self, status: Status) -> None:
        if status in LEGAL_CHANGES[self.statuses[-1]]:
            self.statuses.append(status)

    def lose(self, *, released: bool) -> None:
        if released or self.statuses[-1] is Status.PENDING:
            self.change(Status.CANCELLED)

    def abandon(self) -> None:
        if self.statuses[-1] is Status.PENDING:
            self.change(Status.CANCELLED)


_actions = st.one_of(st.sampled_from(Status), st.sampled_from(["expired", "released", "abandoned", "commit"]))


@given(history=st.lists(st.tuples(st.integers(0, 2), _actions), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_agrees_with_the_model(database: Database, history: Sequence[tuple[int, Status | str]]) -> None:
    """All changes are legal, the version counts the changes, and each change has one event."""
    created = stored(database, *(new_order() for _ in range(3)), reserved_seconds=-GRACE_SECONDS - 1)
    models = [_Model(order) for order in created]
    commands: list[ChangeStatus] = []
    for number, action in history:
        model = models[number]
        if isinstance(action, Status):
            commands.append(ChangeStatus(model.order.id, action))
            model.change(action)
            continue
        change(database, *commands)
        commands.clear()
        if action == "abandoned":
            cancel_abandoned(database)
            for each in models:
                each.abandon()
        elif action != "commit":
            lose(database, LostStock(model.order.key, released=action == "released"))
            model.lose(released=action == "released")
    change(database, *commands)

    emitted = [each["data"] for each in events(database)]
    for model in models:
        order = load(database, model.order.id)
        assert (order.status, order.version) == (model.statuses[-1], len(model.statuses))
        of_order = [(data["status"], data["version"]) for data in emitted if data["id"] == order.id]
        assert of_order == [(status, number + 1) for number, status in enumerate(model.statuses)]
