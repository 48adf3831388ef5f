"""ExtendOrder: inventory-api extends the order's reservations, and then order-api moves `reserved_until` of the order.

No transaction is open during the call. The state after an interruption:

    before the call                  nothing happened
    stock extended, order not        a repeat finishes; otherwise CancelAbandonedOrders cancels the order after its old
                                     `reserved_until`, and its event releases the stock
    order changed during the call    a confirmation or a cancellation concerns the extended stock as well
    order extended, no response      a repeat may extend it once more
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection

from order_api.domain.commands import EXTEND_METHOD, ExtendOrder
from order_api.domain.errors import OrderNotFound, OrderNotPending
from order_api.domain.model import LINES_MAX, Order, Status
from order_api.inventory import Inventory
from order_api.operations.stock_calls import StockCalls
from order_api.store import orders
from shop_common.batching.coalescers import Coalescers, Sizes, audit_of
from shop_common.errors import ShopError


class Extension:
    """Extends orders: a coalesced read, one call of inventory-api per order, and a coalesced transaction."""

    def __init__(self, stock: Inventory, calls: StockCalls, run: Coalescers) -> None:
        self._stock = stock
        self._calls = calls
        self._check = run.reads("to-be-extended", check)
        self._finish = run.writes(
            "extend",
            finish,
            sizes=Sizes[ExtendOrder](
                key=lambda command: command.order_key, read=orders.count_lines, size_max=LINES_MAX
            ),
            audit=audit_of(ExtendOrder, EXTEND_METHOD, lambda command, _: (command.order_id,)),
        )

    def extend(self, command: ExtendOrder, *, deadline: float) -> Order:
        """Extend the order and return it. Raises OrderNotFound, OrderNotPending and the refusals of inventory-api.

        Raises QueueFull if a transaction or the call did not start in time. Then the order is unchanged, but its stock
        may be extended.
        """
        self._check.submit(command, deadline=deadline)
        refusal = self._calls.answer(
            lambda seconds_left: self._stock.extend(command, seconds_left=seconds_left), "extend", deadline
        )
        if refusal is not None:
            raise refusal
        return self._finish.submit(command, deadline=deadline)


def check(tx: Connection, commands: Sequence[ExtendOrder]) -> list[Status | ShopError]:
    """Return, for each command, PENDING if its order has this status, or else the refusal. Locks nothing."""
    statuses = orders.statuses(tx, (command.order_key for command in commands))
    outcomes: list[Status | ShopError] = []
    for command in commands:
        status = statuses.get(command.order_key)
        if status is None:
            outcomes.append(OrderNotFound(command.order_id))
        else:
            outcomes.append(status if status is Status.PENDING else OrderNotPending(command.order_id, status))
    return outcomes


def finish(tx: Connection, commands: Sequence[ExtendOrder]) -> list[Order | ShopError]:
    """Move `reserved_until` of the orders, whose stock has been extended, to a later time.

    Returns one outcome per command, in order. May be repeated. Emits ORDER_EXTENDED per order that has changed.
    """
    locked = orders.lock(tx, (command.order_key for command in commands))
    outcomes: list[Order | ShopError] = []
    for command in commands:
        order = locked.orders.get(command.order_key)
        if order is None:
            outcomes.append(OrderNotFound(command.order_id))
            continue
        if order.status is not Status.PENDING:
            outcomes.append(OrderNotPending(order.id, order.status))
            continue
        reserved_until = locked.now + timedelta(seconds=command.ttl_seconds)
        if reserved_until > order.reserved_until:
            order = locked.extend(order.key, reserved_until, command.traceparent, command.caller.actor)
        outcomes.append(order)
    locked.save(tx)
    return outcomes
