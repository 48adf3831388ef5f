"""The life of orders, as operations on both databases."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_api.domain.commands import CancelAbandoned, ChangeStatus
from order_api.domain.errors import IllegalTransition, ReservationExpired
from order_api.domain.model import LEGAL_CHANGES, Order, Status
from order_api.domain.transitions import ConfirmationResult, LostStock
from order_api.operations.cancel_orders import AbandonedOrders, cancel_lost
from order_api.operations.change_status import change_status
from order_api.operations.confirm_order import finish, needs_call
from order_api.store import orders
from shop_common.db.database import Database
from shop_common.errors import ShopError
from testkit.drivers.order_api import at_once, events, new_order, stored

GRACE_SECONDS = 60


def take(database: Database, *steps: ChangeStatus) -> list[Order | ShopError]:
    return database.transact(lambda tx: change_status(tx, steps))


def lose(database: Database, *losses: LostStock) -> None:
    while database.transact(lambda tx: cancel_lost(tx, losses)):
        pass


def cancel_abandoned(database: Database, max_count: int = 100) -> int:
    return AbandonedOrders(database).cancel(CancelAbandoned(GRACE_SECONDS, max_count))


def at(database: Database, status: Status) -> Order:
    """An order in this status."""
    (order,) = stored(database, new_order())
    way = {
        Status.PENDING: [],
        Status.CANCELLED: [Status.CANCELLED],
    }.get(status, [Status.CONFIRMED, Status.PROCESSING, Status.SHIPPED, Status.DELIVERED])
    for step in way[: way.index(status) + 1] if way else []:
        assert isinstance(take(database, ChangeStatus(order.id, step))[0], Order)
    return present(database, order.id)


def present(database: Database, order_id: str) -> Order:
    return database.query(lambda tx: orders.load(tx, [order_id]))[order_id]


def test_every_step_is_legal_or_names_those_that_are(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        for wanted in Status:
            if wanted in LEGAL_CHANGES[status] or wanted is status:
                continue
            (outcome,) = take(database, ChangeStatus(order.id, wanted))
            assert isinstance(outcome, IllegalTransition)
            assert outcome.metadata() == {
                "id": order.id,
                "from": status.value,
                "to": wanted.value,
                "legal": ",".join(LEGAL_CHANGES[status]),
            }
        assert present(database, order.id) == order


def test_the_present_status_again_is_no_step(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        told = events(database, order.id)

        assert take(database, ChangeStatus(order.id, status, reason="again")) == [order]
        assert events(database, order.id) == told


def test_steps_on_one_order_in_one_batch_are_applied_in_turn(database: Database) -> None:
    order = at(database, Status.CONFIRMED)

    processing, shipped, refused = take(
        database,
        ChangeStatus(order.id, Status.PROCESSING),
        ChangeStatus(order.id, Status.SHIPPED, reason="parcel 7"),
        ChangeStatus(order.id, Status.CANCELLED),
    )

    assert isinstance(processing, Order)
    assert processing.status is Status.PROCESSING
    assert isinstance(refused, IllegalTransition)
    assert present(database, order.id) == shipped
    told = [(each["event_type"], each["data"]["version"]) for each in events(database, order.id)]
    assert told[2:] == [("ORDER_PROCESSING", 3), ("ORDER_SHIPPED", 4)]


def test_a_lost_hold_cancels_an_order_that_is_not_confirmed(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        lose(database, LostStock(order.id, released=False))
        expected = Status.CANCELLED if status is Status.PENDING else status
        assert present(database, order.id).status is expected


def test_released_stock_cancels_an_order_that_is_not_shipped(database: Database) -> None:
    for status in Status:
        order = at(database, status)
        lose(database, LostStock(order.id, released=True))
        kept = {Status.SHIPPED, Status.DELIVERED}
        assert present(database, order.id).status is (status if status in kept else Status.CANCELLED)


def test_a_loss_told_again_changes_nothing(database: Database) -> None:
    order = at(database, Status.PENDING)

    lose(database, LostStock(order.id, released=False), LostStock(order.id, released=True))
    lose(database, LostStock(order.id, released=True))

    assert [each["event_type"] for each in events(database, order.id)] == ["ORDER_CREATED", "ORDER_CANCELLED"]


@pytest.mark.parametrize("order_id", ["cart-1182", "", "ü", "\x00", "7877be0e-a72b-4ce1-90a1-b90ecfdffc6b", "A" * 36])
def test_a_loss_of_what_is_no_order_is_passed_over(database: Database, order_id: str) -> None:
    order = at(database, Status.PENDING)

    lose(database, LostStock(order_id, released=True), LostStock(order.id, released=True))

    assert present(database, order.id).status is Status.CANCELLED


def test_only_orders_past_their_grace_are_abandoned_the_oldest_first(database: Database) -> None:
    waiting, recent, old, oldest, confirmed = (
        stored(database, new_order(), reserved_seconds=seconds)[0]
        for seconds in (60, 1 - GRACE_SECONDS, -1 - GRACE_SECONDS, -2 - GRACE_SECONDS, -3 - GRACE_SECONDS)
    )
    take(database, ChangeStatus(confirmed.id, Status.CONFIRMED))

    assert cancel_abandoned(database, max_count=1) == 1
    assert present(database, oldest.id).status is Status.CANCELLED
    assert present(database, old.id).status is Status.PENDING
    assert cancel_abandoned(database) == 1
    assert cancel_abandoned(database) == 0

    statuses = [present(database, order.id).status for order in (waiting, recent, old, confirmed)]
    assert statuses == [Status.PENDING, Status.PENDING, Status.CANCELLED, Status.CONFIRMED]
    assert [each["event_type"] for each in events(database, old.id)] == ["ORDER_CREATED", "ORDER_CANCELLED"]


def test_a_loss_is_told_to_who_confirms_though_its_event_was_faster(database: Database) -> None:
    order = at(database, Status.PENDING)
    step = ChangeStatus(order.id, Status.CONFIRMED)
    assert database.query(lambda tx: needs_call(tx, [step])) == [True]
    lose(database, LostStock(order.id, released=False))

    refusal = ReservationExpired(order.id)
    assert database.transact(lambda tx: finish(tx, [ConfirmationResult(step, refusal)])) == [refusal]
    assert present(database, order.id).version == 2


def test_steps_at_once_happen_once(database: Database) -> None:
    order = at(database, Status.CONFIRMED)

    def step(number: int) -> None:
        if number % 3:
            take(database, ChangeStatus(order.id, Status.CANCELLED))
        else:
            lose(database, LostStock(order.id, released=True))

    at_once(9, step)

    told = [(each["event_type"], each["data"]["version"]) for each in events(database, order.id)]
    assert told[2:] == [("ORDER_CANCELLED", 3)]


class _Model:
    """What became of one order: its statuses, one after the other."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.statuses = [Status.PENDING]

    def step(self, status: Status) -> None:
        if status in LEGAL_CHANGES[self.statuses[-1]]:
            self.statuses.append(status)

    def lose(self, *, released: bool) -> None:
        if released or self.statuses[-1] is Status.PENDING:
            self.step(Status.CANCELLED)

    def abandon(self) -> None:
        if self.statuses[-1] is Status.PENDING:
            self.step(Status.CANCELLED)


_actions = st.one_of(st.sampled_from(Status), st.sampled_from(["expired", "released", "abandoned", "commit"]))


@given(history=st.lists(st.tuples(st.integers(0, 2), _actions), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_is_that_of_a_small_model(database: Database, history: Sequence[tuple[int, Status | str]]) -> None:
    """Orders go as the table of legal steps says, their versions count the steps, and each step is told of once."""
    placed = stored(database, *(new_order() for _ in range(3)), reserved_seconds=-GRACE_SECONDS - 1)
    models = [_Model(order) for order in placed]
    steps: list[ChangeStatus] = []
    for number, action in history:
        model = models[number]
        if isinstance(action, Status):
            steps.append(ChangeStatus(model.order.id, action))
            model.step(action)
            continue
        take(database, *steps)
        steps.clear()
        if action == "abandoned":
            cancel_abandoned(database)
            for each in models:
                each.abandon()
        elif action != "commit":
            lose(database, LostStock(model.order.id, released=action == "released"))
            model.lose(released=action == "released")
    take(database, *steps)

    told = [each["data"] for each in events(database)]
    for model in models:
        order = present(database, model.order.id)
        assert (order.status, order.version) == (model.statuses[-1], len(model.statuses))
        of_order = [(data["status"], data["version"]) for data in told if data["id"] == order.id]
        assert of_order == [(status, number + 1) for number, status in enumerate(model.statuses)]
