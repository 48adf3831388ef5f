"""PENDING → CONFIRMED: inventory-api confirms the order's reservations, and only then the order changes its status.

No transaction is open during the call. What may interrupt this, and what is true then:

    before the call                   nothing happened
    stock confirmed, order PENDING    a repeat finds the stock confirmed and finishes; otherwise CancelAbandonedOrders
                                      cancels the order, and its event releases the stock
    order cancelled meanwhile         its event releases the stock, confirmed or not; CONFIRMED is illegal now
    order confirmed, not answered     a repeat is answered with the order
"""

import threading
import time
from collections.abc import Sequence

from sqlalchemy import Connection

from order_api.domain import transitions
from order_api.domain.commands import ChangeStatus
from order_api.domain.model import LINES_MAX, Order, Status
from order_api.domain.transitions import ConfirmationResult
from order_api.inventory import Inventory
from order_api.operations.change_status import apply
from order_api.store import orders, tables
from shop_common.batching.coalescer import time_to_wait
from shop_common.batching.coalescers import Coalescers, Sizes
from shop_common.errors import QueueFull, ShopError

CALLS_MAX = 64
"""Concurrent calls of inventory-api. A call's own time limit begins when it is sent; a caller that waits for its turn
waits until its own deadline."""


class Confirmation:
    """Confirms orders: two coalesced transactions, and between them one call of inventory-api per order."""

    def __init__(self, stock: Inventory, run: Coalescers) -> None:
        self._stock = stock
        self._needs_call = run.reads("to-be-confirmed", needs_call)
        self._turns = threading.BoundedSemaphore(CALLS_MAX)
        self._finish = run.writes(
            "confirm",
            finish,
            key=lambda result: result.command.request_id,
            sizes=Sizes[ConfirmationResult](
                key=lambda result: result.command.order_id, read=orders.count_lines, size_max=LINES_MAX
            ),
        )

    def confirm(self, command: ChangeStatus, *, deadline: float) -> Order:
        """Return the order as it is then. If its stock is lost, the order is cancelled, and the loss is raised.

        Raises QueueFull if the caller's time ran out before inventory-api was called: nothing was done.
        """
        answer = self._call(command, deadline) if self._needs_call.submit(command, deadline=deadline) else None
        # failpoint: before-order-confirmed
        return self._finish.submit(ConfirmationResult(command, answer), deadline=deadline)

    def _call(self, command: ChangeStatus, deadline: float) -> dict[int, int] | ShopError:
        if not self._turns.acquire(timeout=time_to_wait(deadline)):
            raise QueueFull("confirm: no turn came within the deadline; nothing was done")
        try:
            seconds_left = deadline - time.monotonic()
            return self._stock.confirm(command.order_id, seconds_left=seconds_left, traceparent=command.traceparent)
        except ShopError as refusal:
            return refusal
        finally:
            self._turns.release()


def needs_call(tx: Connection, commands: Sequence[ChangeStatus]) -> list[bool]:
    """Whether inventory-api has to be called for each command: the order is PENDING, and this is no repeat."""
    claims = [command.claim() for command in commands]
    repeats = tables.idempotency_keys.find(tx, [claim.key for claim in claims if claim])
    present = orders.statuses(tx, (command.order_id for command in commands))
    return [
        present.get(command.order_id) is Status.PENDING and not (claim and claim.key in repeats)
        for command, claim in zip(commands, claims, strict=True)
    ]


def finish(tx: Connection, results: Sequence[ConfirmationResult]) -> list[Order | ShopError]:
    """Confirm the orders whose lines inventory-api has confirmed; cancel those whose stock is lost.

    One outcome per result, in order. Repeatable. Emits ORDER_CONFIRMED or ORDER_CANCELLED.
    """
    return apply(tx, results, [result.command for result in results], transitions.confirm)
