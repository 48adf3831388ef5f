"""Decides the status change that follows from a request or an event. The caller has locked the order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeGuard

from order_api.domain.commands import ChangeStatus, Reinstate
from order_api.domain.errors import IllegalTransition, NotReinstatable, OrderNotFound, ReservationReleased
from order_api.domain.model import CANCELLABLE, Order, OrderKey, Status
from order_api.domain.units import kept_units, legal_changes, uncancelled_units
from shop_common.errors import Contention, ShopError

NOT_CONFIRMED_IN_TIME = "it was not confirmed in time"
_EXPIRED = "its reservation expired"
_EXPIRED_BEFORE_CONFIRMATION = "its reservation had expired when it was to be confirmed"

_EXPIRY_REASONS = frozenset({NOT_CONFIRMED_IN_TIME, _EXPIRED, _EXPIRED_BEFORE_CONFIRMATION})
"""Each status_reason that an order gets when it is cancelled because its reservation expired. Releases before this one
stored the same words, so never change them."""

_LOST = {
    "RESERVATION_EXPIRED": _EXPIRED_BEFORE_CONFIRMATION,
    "RESERVATION_RELEASED": "its stock had been released when it was to be confirmed",
    "RESERVATION_NOT_FOUND": "no stock was reserved for it when it was to be confirmed",
}
"""The refusals of inventory-api after which an order can never be confirmed. Each value is the new status_reason."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The new status of an order, if it changes, and the refusal that the caller gets, if any."""

    status: Status | None = None
    reason: str = ""
    refusal: ShopError | None = None
    has_surplus: bool = False
    """Whether more units are reserved for the order than it keeps, so that an event must state its targets."""


@dataclass(frozen=True, slots=True)
class ConfirmationResult:
    """The response of inventory-api to the confirmation of an order.

    `answer` is the confirmed units of each product, or the refusal. It is None if inventory-api was not called, because
    the order was not PENDING. `version` is that of the order before the call.
    """

    command: ChangeStatus
    answer: Mapping[int, int] | ShopError | None
    version: int | None = None

    def folded(self, calls: int) -> Self:
        """Return a copy of this result that stands for `calls` equal calls."""
        return replace(self, command=self.command.folded(calls))

    @property
    def tenant(self) -> str:
        return self.command.tenant


@dataclass(frozen=True, slots=True)
class ReinstatementResult(ConfirmationResult):
    """The response of inventory-api to the reinstatement of an order.

    `version` is the version that the order got before the call, or None if inventory-api was not called.
    """

    command: Reinstate


@dataclass(frozen=True, slots=True)
class LostStock:
    """An order has lost reserved stock: somebody released it, or its reservation expired.

    `product_id` is None if the event does not name the product. `traceparent`, `actor` and `event_id` are those of the
    event that reports the loss.
    """

    order: OrderKey
    released: bool
    traceparent: str | None = None
    actor: str | None = None
    event_id: str = ""
    product_id: int | None = None

    @property
    def event_type(self) -> str:
        return "STOCK_RELEASED" if self.released else "STOCK_RESERVATION_EXPIRED"

    @property
    def reason(self) -> str:
        """Return the status_reason of an order that is cancelled because of this loss."""
        return "its stock was released" if self.released else _EXPIRED

    def cancels(self, status: Status) -> bool:
        """Return whether an order with this status is cancelled because of this loss."""
        return status is Status.PENDING or (self.released and status in CANCELLABLE)


def change(order: Order | None, command: ChangeStatus) -> Transition:
    """Return the transition for a request. A request for the current status changes nothing."""
    if order is None:
        return Transition(refusal=OrderNotFound(command.order_id))
    if order.status is command.status:
        return Transition()
    if command.status not in legal_changes(order):  # failpoint: order-status-check
        return Transition(refusal=IllegalTransition(order.id, order.status, command.status, legal_changes(order)))
    return Transition(command.status, command.reason)


def confirm(order: Order | None, result: ConfirmationResult) -> Transition:
    """Return the transition for the response of inventory-api.

    If all lines are confirmed, the order becomes CONFIRMED. If the stock is lost, a PENDING order is cancelled, and the
    loss is the refusal. Any other failure of inventory-api changes nothing and is the refusal.
    """
    command, answer = result.command, result.answer
    transition = change(order, command)
    if order is None or transition.status is None:
        if isinstance(transition.refusal, IllegalTransition) and _is_lost(answer):
            # The event of the loss has already cancelled the order. The caller still gets the loss as the refusal.
            return Transition(refusal=answer)
        return transition
    if answer is None:
        # Another transaction created the order after we read and before we locked.
        return Transition(refusal=Contention(f"order {order.id} was created a moment ago; try again"))
    if not isinstance(answer, ShopError):
        if result.version is not None and result.version != order.version:
            # Another call may have added units to the order after inventory-api confirmed the others.
            return Transition(refusal=Contention(f"another call changes order {order.id}; try again"))
        if all(answer.get(product_id, 0) >= units for product_id, units in kept_units(order).items()):
            return transition
        # inventory-api does not return released reservations. The ORDER_CANCELLED event releases those that are still
        # active.
        answer = ReservationReleased(order.id)
    if _is_lost(answer):
        return Transition(Status.CANCELLED, _LOST[answer.reason], answer)
    return Transition(refusal=answer)


def is_reinstatable(order: Order) -> bool:
    """Return whether the order was cancelled because its reservation expired."""
    return order.status is Status.CANCELLED and order.status_reason in _EXPIRY_REASONS


def reinstate(order: Order | None, result: ReinstatementResult) -> Transition:
    """Return the transition for the response of inventory-api.

    If the units of all lines are reserved again, the order becomes CONFIRMED. If some of them were released, it is
    cancelled once more: the event releases what inventory-api has confirmed. Any other failure changes nothing and is
    the refusal. An order that is CONFIRMED already does not change.
    """
    command, answer = result.command, result.answer
    if order is None:
        return Transition(refusal=OrderNotFound(command.order_id))
    if order.status is Status.CONFIRMED:
        return Transition()
    if not is_reinstatable(order):
        return Transition(refusal=NotReinstatable(order.id, order.status))
    if isinstance(answer, ShopError):
        return Transition(refusal=answer)
    if answer is None or order.version != result.version:
        # Another call has changed the order before or after we called inventory-api.
        return Transition(refusal=Contention(f"another call changes order {order.id}; try again"))
    kept = uncancelled_units(order)
    if all(answer.get(product_id, 0) >= units for product_id, units in kept.items()):
        # The response may have more units than the order: those of a change that was not stored expired with the order,
        # and are reserved again with it.
        return Transition(Status.CONFIRMED, command.reason, has_surplus=dict(answer) != kept)
    released = ReservationReleased(order.id)
    return Transition(Status.CANCELLED, "its stock had been released when it was to be reinstated", released)


def _is_lost(answer: object) -> TypeGuard[ShopError]:
    return isinstance(answer, ShopError) and answer.reason in _LOST
