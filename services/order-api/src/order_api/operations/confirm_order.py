"""PENDING → CONFIRMED: inventory-api confirms the order's reservations, and only then the order changes its status.

No transaction is open during the call. The state after an interruption:

    before the call                   nothing happened
    stock confirmed, order PENDING    a repeat finds the stock confirmed and finishes; otherwise CancelAbandonedOrders
                                      cancels the order, and its event releases the stock
    order changed during the call     the call is refused with CONTENTION; a repeat confirms what was added as well
    order cancelled during the call   its event releases the stock, confirmed or not; the order cannot become CONFIRMED
    order confirmed, no response      a repeat returns the order
"""

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection

from order_api.domain import transitions
from order_api.domain.commands import CHANGE_METHOD, ChangeStatus
from order_api.domain.model import LINES_MAX, Order, Status
from order_api.domain.transitions import ConfirmationResult
from order_api.inventory import Inventory
from order_api.operations.change_status import apply
from order_api.operations.stock_calls import StockCalls
from order_api.store import orders, tables
from shop_common.batching.coalescers import Audit, Coalescers, Sizes
from shop_common.db.audit import AuditLog
from shop_common.errors import QueueFull, ShopError


class Confirmation:
    """Confirms orders: two coalesced transactions, and between them one call of inventory-api per order."""

    def __init__(self, stock: Inventory, calls: StockCalls, run: Coalescers, audit_log: AuditLog | None = None) -> None:
        self._stock = stock
        self._calls = calls
        self._needs_call = run.reads("to-be-confirmed", needs_call)
        self._finish = run.writes(
            "confirm",
            partial(finish, audit_log=audit_log),
            key=lambda result: result.command.repeat_key,
            sizes=Sizes[ConfirmationResult](
                key=lambda result: result.command.order_key, read=orders.count_lines, size_max=LINES_MAX
            ),
            audit=Audit[ConfirmationResult, Order](
                CHANGE_METHOD,
                command=lambda result: result.command,
                fold=ConfirmationResult.folded,
                resources=lambda result, _: (result.command.order_id,),
            ),
        )

    def confirm(self, command: ChangeStatus, *, deadline: float) -> Order:
        """Confirm the order and return it. If its stock is lost, cancels the order and raises the reason.

        Raises QueueFull if a transaction or the call did not start in time. Then the order is unchanged, but
        inventory-api may have confirmed its stock. A repeat finishes the confirmation.
        """
        version = self._needs_call.submit(command, deadline=deadline)
        answer = None if version is None else self._call(command, deadline)
        # failpoint: before-order-confirmed
        try:
            return self._finish.submit(ConfirmationResult(command, answer, version), deadline=deadline)
        except QueueFull as full:
            if answer is None:
                raise
            message = "confirm: the order is unchanged, but its stock may be confirmed; a repeat finishes"
            raise QueueFull(message) from full

    def _call(self, command: ChangeStatus, deadline: float) -> dict[int, int] | ShopError:
        return self._calls.answer(
            lambda seconds_left: self._stock.confirm(command, seconds_left=seconds_left), "confirm", deadline
        )


def needs_call(tx: Connection, commands: Sequence[ChangeStatus]) -> list[int | None]:
    """Return, for each command, the version of its order, or None if inventory-api must not be called.

    It is called if the order is PENDING and the command is not a repeat.
    """
    repeats = tables.idempotency_keys.are_repeats(tx, [command.claim() for command in commands])
    present = orders.versioned_statuses(tx, (command.order_key for command in commands))
    return [
        found.version
        if (found := present.get(command.order_key)) and found.status is Status.PENDING and not is_repeat
        else None
        for command, is_repeat in zip(commands, repeats, strict=True)
    ]


def finish(
    tx: Connection, results: Sequence[ConfirmationResult], audit_log: AuditLog | None = None
) -> list[Order | ShopError]:
    """Confirm the orders whose lines inventory-api has confirmed; cancel those whose stock is lost.

    Returns one outcome per result, in order. May be repeated. Emits ORDER_CONFIRMED or ORDER_CANCELLED.
    """
    return apply(tx, results, [result.command for result in results], transitions.confirm, audit_log)
