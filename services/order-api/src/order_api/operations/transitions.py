"""Steps of orders from one status to the next. docs/states.md draws them.

Every step is decided on the locked row. So each happens at most once, with one event, and events follow the order
in which the steps were taken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeGuard, TypeVar

from sqlalchemy import Connection, literal_column, select

from order_api.domain.commands import Step
from order_api.domain.model import (
    CANCELLABLE,
    LEGAL_STEPS,
    LINES_MAX,
    IllegalTransition,
    Order,
    OrderNotFound,
    ReservationReleased,
    Status,
    quantities,
)
from order_api.store import orders, tables
from order_api.store.orders import Locked
from shop_common.api.valid import UUID_PATTERN
from shop_common.batching.coalesced import Sizes
from shop_common.db.database import Database
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError

_orders = tables.orders

_Request = TypeVar("_Request")

TURN_LINES = 1_000
"""Of the orders that one transaction cancels, where nobody waits for them all: some 20 ms of work."""

_TURN = Sizes[str](of=str, read=orders.count_lines, most=LINES_MAX)

_LOST = {
    "RESERVATION_EXPIRED": "its hold on stock had expired when it was to be confirmed",
    "RESERVATION_RELEASED": "its stock had been released when it was to be confirmed",
    "RESERVATION_NOT_FOUND": "no stock was held for it when it was to be confirmed",
}
"""The refusals after which an order can never be confirmed, and what they are called in its status_reason."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A step to CONFIRMED, and what inventory-api said: the confirmed units of each product, or why there are none.

    None: it was not asked, since the order was not PENDING.
    """

    step: Step
    answer: Mapping[int, int] | ShopError | None


@dataclass(frozen=True, slots=True)
class Loss:
    """Stock of an order is gone: released by someone, or else its hold ran out."""

    order_id: str
    released: bool
    traceparent: str | None = None

    @property
    def reason(self) -> str:
        """The status_reason of an order that it cancels."""
        return "its stock was released" if self.released else "its hold on stock expired"

    def cancels(self, status: Status) -> bool:
        """Whether an order in this status is lost with its stock."""
        return status is Status.PENDING or (self.released and status in CANCELLABLE)


@dataclass(frozen=True, slots=True)
class AbandonedRequest:
    """Cancel what is PENDING so long after its hold has ended, at most so many."""

    grace_seconds: float
    max_count: int


def set_status(tx: Connection, steps: Sequence[Step]) -> list[Order | ShopError]:
    """Take orders to their new status; to CONFIRMED leads `finish_confirming`, once inventory-api has been asked.

    Steps on one order are applied in turn. The present status again is no step: the same answer, no event. Refuses
    with OrderNotFound and IllegalTransition. Emits the event of the new status.
    """
    return _each_in_turn(tx, steps, lambda step: step, _take)


def _take(locked: Locked, step: Step) -> Order:
    return locked.move(step.order_id, step.status, step.reason, step.traceparent)


def to_be_asked(tx: Connection, steps: Sequence[Step]) -> list[bool]:
    """Which steps to CONFIRMED inventory-api has to be asked about: the order PENDING, and the step no repeat."""
    claims = [step.claim() for step in steps]
    repeats = tables.idempotency_keys.find(tx, [claim.key for claim in claims if claim])
    present = orders.statuses(tx, (step.order_id for step in steps))
    return [
        present.get(step.order_id) is Status.PENDING and not (claim and claim.key in repeats)
        for step, claim in zip(steps, claims, strict=True)
    ]


def finish_confirming(tx: Connection, asked: Sequence[Asked]) -> list[Order | ShopError]:
    """Take PENDING orders to CONFIRMED where inventory-api has confirmed all of their lines.

    Where stock is lost, an order still PENDING is cancelled here, and what was lost is the refusal. Any other failure
    of inventory-api changes nothing and is the answer. Repeatable. Emits ORDER_CONFIRMED or ORDER_CANCELLED.
    """
    outcomes = _each_in_turn(tx, asked, lambda each: each.step, _confirm)
    # Where the event of the loss was faster and has cancelled the order, the loss is still what the caller is told.
    return [
        each.answer if isinstance(outcome, IllegalTransition) and _is_lost(each.answer) else outcome
        for each, outcome in zip(asked, outcomes, strict=True)
    ]


def _confirm(locked: Locked, asked: Asked) -> Order | ShopError:
    step, answer = asked.step, asked.answer
    if answer is None:
        # Another transaction created it after we read and before we locked.
        return Contention(f"order {step.order_id} was created a moment ago; try again")
    if not isinstance(answer, ShopError):
        wanted = quantities(locked.orders[step.order_id].items)
        if all(answer.get(product_id, 0) >= quantity for product_id, quantity in wanted.items()):
            return locked.move(step.order_id, Status.CONFIRMED, step.reason, step.traceparent)
        # Of what was released, inventory-api says nothing. What it has confirmed is released by the event.
        answer = ReservationReleased(step.order_id)
    if _is_lost(answer):
        locked.move(step.order_id, Status.CANCELLED, _LOST[answer.reason], step.traceparent)
    return answer


def _is_lost(answer: object) -> TypeGuard[ShopError]:
    return isinstance(answer, ShopError) and answer.reason in _LOST


def _each_in_turn(
    tx: Connection,
    requests: Sequence[_Request],
    step_of: Callable[[_Request], Step],
    take: Callable[[Locked, _Request], Order | ShopError],
) -> list[Order | ShopError]:
    """Take each step that is legal and not taken yet; repeats of a request_id are answered with the order as it is."""
    claimed = tables.idempotency_keys.claim(tx, requests, [step_of(request).claim() for request in requests])
    replayed = orders.get(tx, [claim.resources[0] for claim in claimed.replays])
    locked = orders.lock(tx, (step_of(request).order_id for request in claimed.new))
    outcomes: list[Order | ShopError] = []
    for request in claimed.new:
        step = step_of(request)
        order = locked.orders.get(step.order_id)
        if order is None:
            outcomes.append(OrderNotFound(step.order_id))
        elif order.status is step.status:
            outcomes.append(order)
        elif step.status not in LEGAL_STEPS[order.status]:  # failpoint: order-status-check
            outcomes.append(IllegalTransition(order.id, order.status, step.status))
        else:
            outcomes.append(take(locked, request))
    locked.save(tx)
    return claimed.settle(tx, replayed=replayed, new=outcomes)


def cancel_lost(tx: Connection, losses: Sequence[Loss]) -> bool:
    """Cancel orders whose stock is gone: by expiry if PENDING, by release if not shipped yet. Repeatable.

    A bounded number of them: returns whether there are more, for another transaction. Ids that are no order's are
    passed over: ReserveStock has users of its own, who name orders as they like. Emits ORDER_CANCELLED.
    """
    ours = [loss for loss in losses if UUID_PATTERN.match(loss.order_id)]
    # Most events of an order find it cancelled by the first of them, or were caused by its cancellation. An order
    # never comes back into a status that it has left, so what is not to be cancelled now never is.
    present = orders.statuses(tx, (loss.order_id for loss in ours))
    lost: dict[str, Loss] = {}
    for loss in ours:
        if loss.order_id in present and loss.cancels(present[loss.order_id]):
            lost.setdefault(loss.order_id, loss)
    turn = _TURN.fitting(tx, list(lost), TURN_LINES)
    locked = orders.lock(tx, turn)
    for order in list(locked.orders.values()):
        loss = lost[order.id]
        if loss.cancels(order.status):
            locked.move(order.id, Status.CANCELLED, loss.reason, loss.traceparent)
    locked.save(tx)
    return len(turn) < len(lost)


class AbandonedOrders:
    """Orders of one database that are PENDING long after their reservations have ended."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cancel(self, request: AbandonedRequest) -> int:
        """Cancel them, the oldest first; return how many.

        This is the last resort for a confirmation that a crash cut off: the event releases what is confirmed for them.
        They are read at once and cancelled in turns, each a transaction of its own. Emits ORDER_CANCELLED.
        """
        ids: Sequence[str] = self._database.query(lambda tx: _abandoned(tx, request))
        cancelled = 0
        while ids:
            taken, pending = self._database.transact(partial(_cancel_abandoned, ids=ids))
            ids, cancelled = ids[taken:], cancelled + pending
        return cancelled


def _abandoned(tx: Connection, request: AbandonedRequest) -> list[str]:
    before = now(tx) - timedelta(seconds=request.grace_seconds)
    found = tx.execute(
        select(_orders.c.id)
        # A literal, as in the index's condition: with a parameter PostgreSQL may come to think that it can't use it.
        .where(_orders.c.status == literal_column("'PENDING'"), _orders.c.reserved_until < before)
        .order_by(_orders.c.reserved_until)
        .limit(request.max_count)
    )
    return list(found.scalars())


def _cancel_abandoned(tx: Connection, ids: Sequence[str]) -> tuple[int, int]:
    """Cancel the first of these that are still PENDING; returns how many it looked at, and how many it cancelled."""
    turn = _TURN.fitting(tx, ids, TURN_LINES)
    locked = orders.lock(tx, turn)
    # What was confirmed or cancelled before the locks were granted is not abandoned any more.
    pending = [order for order in locked.orders.values() if order.status is Status.PENDING]
    for order in pending:
        locked.move(order.id, Status.CANCELLED, "it was not confirmed in time", None)
    locked.save(tx)
    return len(turn), len(pending)
