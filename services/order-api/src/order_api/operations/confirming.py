"""PENDING → CONFIRMED: what is held for an order is kept for good, in inventory-api, and only then the order says so.

No transaction is open while inventory-api is asked. What may cut this short, and what is then true:

    before it was asked               nothing happened
    stock confirmed, order PENDING    a repeat finds the stock confirmed and finishes; else CancelAbandonedOrders
                                      cancels the order, and that event gives the stock back
    order cancelled meanwhile         that event gives the stock back, confirmed or not; the step is illegal now
    order confirmed, not answered     a repeat is answered with the order
"""

import threading
import time

from order_api.domain.commands import Step
from order_api.domain.model import LINES_MAX, Order
from order_api.inventory import Inventory
from order_api.operations import transitions
from order_api.operations.transitions import Asked
from order_api.store import orders
from shop_common.batching.coalesced import Coalesced, Sizes
from shop_common.batching.coalescer import time_to_wait
from shop_common.errors import QueueFull, ShopError

CALLS_MAX = 64
"""Calls of inventory-api at once. The time of a call is bounded by a setting and begins when it is sent; a caller that
waits here waits until its own deadline."""


class Confirmation:
    """Takes orders to CONFIRMED: two coalesced transactions, and between them a call of inventory-api per order."""

    def __init__(self, stock: Inventory, run: Coalesced) -> None:
        self._stock = stock
        self._to_be_asked = run.reads("to-be-confirmed", transitions.to_be_asked)
        self._room = threading.BoundedSemaphore(CALLS_MAX)
        self._finish = run.writes(
            "confirm",
            transitions.finish_confirming,
            key=lambda asked: asked.step.request_id,
            sizes=Sizes[Asked](of=lambda asked: asked.step.order_id, read=orders.count_lines, most=LINES_MAX),
        )

    def confirm(self, step: Step, *, deadline: float) -> Order:
        """The order as it is then. Where its stock is lost it is cancelled, and what was lost is raised.

        Raises QueueFull when the call's time ran out before inventory-api was asked: nothing was done.
        """
        answer = self._ask(step, deadline) if self._to_be_asked.submit(step, deadline=deadline) else None
        # failpoint: before-order-confirmed
        return self._finish.submit(Asked(step, answer), deadline=deadline)

    def _ask(self, step: Step, deadline: float) -> dict[int, int] | ShopError:
        if not self._room.acquire(timeout=time_to_wait(deadline)):
            raise QueueFull("confirm: no turn came within the deadline; nothing was done")
        try:
            seconds_left = deadline - time.monotonic()
            return self._stock.confirm(step.order_id, seconds_left=seconds_left, traceparent=step.traceparent)
        except ShopError as refusal:
            return refusal
        finally:
            self._room.release()
