"""CANCELLED → CONFIRMED, for ReinstateOrder: an order whose reservation expired is paid after all.

First the version of the order is raised. Then inventory-api reserves the units again and confirms them, with that
version, and only then the order changes its status. No transaction is open during the call. inventory-api ignores
events of lower versions: a late ORDER_CANCELLED of the earlier cancellation releases nothing. order-api ignores the
stock events that such an event has caused, because they have an `order_version`. The state after an interruption, or if
events or calls are late:

    before the version is raised      nothing happened
    version raised, no call           the order is CANCELLED, and nothing is reserved for it; a repeat begins again
    stock confirmed, order CANCELLED  a repeat finds the stock confirmed and finishes; otherwise ReconcileOrders
                                      releases the stock, and the order stays CANCELLED
    stock confirmed, and the limits   the order is cancelled once more: the event releases the stock. A repeat may
    per buyer are now exceeded        succeed later
    order confirmed, no response      a repeat returns the order
    a late ORDER_CANCELLED            inventory-api ignores it, because its version is lower
    a late call of an earlier attempt inventory-api refuses it, because its version is lower
    a late ReconcileOrders            inventory-api ignores it, because it has the version that was read
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from sqlalchemy import Connection

from order_api.domain import buyer_limits as limits
from order_api.domain import transitions
from order_api.domain.buyer_limits import Purchase
from order_api.domain.commands import REINSTATE_METHOD, Reinstate
from order_api.domain.model import LINES_MAX, Order, OrderKey, Status
from order_api.domain.transitions import ReinstatementResult, Transition
from order_api.inventory import Inventory
from order_api.operations.change_status import apply
from order_api.operations.stock_calls import StockCalls
from order_api.store import buyer_limits, orders, tables
from shop_common.batching.coalescers import Audit, Coalescers, Sizes
from shop_common.db.audit import AuditLog
from shop_common.errors import QueueFull, ShopError


class Reinstatement:
    """Reinstates orders: two coalesced transactions, and between them one call of inventory-api per order."""

    def __init__(self, stock: Inventory, calls: StockCalls, run: Coalescers, audit_log: AuditLog | None = None) -> None:
        self._stock = stock
        self._calls = calls
        self._begin = run.writes(
            "reinstate-begin",
            begin,
            sizes=Sizes[Reinstate](key=lambda command: command.order_key, read=orders.count_lines, size_max=LINES_MAX),
        )
        self._finish = run.writes(
            "reinstate",
            partial(finish, audit_log=audit_log),
            key=lambda result: result.command.repeat_key,
            sizes=Sizes[ReinstatementResult](
                key=lambda result: result.command.order_key, read=orders.count_lines, size_max=LINES_MAX
            ),
            audit=Audit[ReinstatementResult, Order](
                REINSTATE_METHOD,
                command=lambda result: result.command,
                fold=ReinstatementResult.folded,
                resources=lambda result, _: (result.command.order_id,),
            ),
        )

    def reinstate(self, command: Reinstate, *, deadline: float) -> Order:
        """Reserve the units of the order again, confirm the order, and return it.

        Raises OrderNotFound, NotReinstatable, BuyerLimitExceeded, BuyerOrdersLimit, Contention and the refusals of
        inventory-api. Raises QueueFull if a transaction or the call did not start in time. Then the order is CANCELLED,
        but inventory-api may have confirmed its stock. A repeat finishes.
        """
        version = self._begin.submit(command, deadline=deadline)
        answer = None if version is None else self._call(command, version, deadline)
        try:
            return self._finish.submit(ReinstatementResult(command, answer, version), deadline=deadline)
        except QueueFull as full:
            if answer is None:
                raise
            message = "reinstate: the order is CANCELLED, but its stock may be confirmed; a repeat finishes"
            raise QueueFull(message) from full

    def _call(self, command: Reinstate, version: int, deadline: float) -> dict[int, int] | ShopError:
        return self._calls.answer(
            lambda seconds_left: self._stock.retake(command, version, seconds_left=seconds_left), "reinstate", deadline
        )


def begin(tx: Connection, commands: Sequence[Reinstate]) -> list[int | ShopError | None]:
    """Raise the version of each order that can be reinstated.

    Returns, for each command, the version with which to call inventory-api, or None if it must not be called: the order
    cannot be reinstated, or the command is a repeat. Refuses with BuyerLimitExceeded and BuyerOrdersLimit, as `finish`
    would. Emits nothing.
    """
    repeats = tables.idempotency_keys.are_repeats(tx, [command.claim() for command in commands])
    new = [command.order_key for command, is_repeat in zip(commands, repeats, strict=True) if not is_repeat]
    locked = orders.lock(tx, new)
    reinstatable = [order for order in locked.orders.values() if transitions.is_reinstatable(order)]
    purchases = _purchases(tx, reinstatable)
    bought = buyer_limits.bought(tx, list(purchases.values())) if purchases else None
    raised: dict[OrderKey, int | ShopError] = {}
    for order in reinstatable:
        refusal = bought.refusal(purchases[order.key]) if bought and order.key in purchases else None
        # Concurrent commands for one order share a version, so none of them makes the others fail.
        raised[order.key] = refusal or locked.raise_version(order.key).version
    locked.save(tx)
    return [
        None if is_repeat else raised.get(command.order_key)
        for command, is_repeat in zip(commands, repeats, strict=True)
    ]


def finish(
    tx: Connection, results: Sequence[ReinstatementResult], audit_log: AuditLog | None = None
) -> list[Order | ShopError]:
    """Confirm the orders whose units inventory-api has reserved again.

    Returns one outcome per result, in order. May be repeated. Emits ORDER_CONFIRMED, or ORDER_CANCELLED if some units
    were released and the others are confirmed, or if the units exceed a limit per buyer.
    """
    confirmed = [result.command.order_key for result in results if isinstance(result.answer, Mapping)]
    # Read the orders without a lock. The answers are used only if the orders still have the versions of `begin`.
    purchases = _purchases(tx, orders.load(tx, confirmed).values())
    if not purchases:
        return apply(tx, results, [result.command for result in results], transitions.reinstate, audit_log)
    # Lock the buyers before the request_ids and the orders; `buyer_limits.lock` states the sequence of all locks.
    buyer_limits.lock(tx, purchases.values())
    bought = buyer_limits.bought(tx, list(purchases.values()))

    def decide(order: Order | None, result: ReinstatementResult) -> Transition:
        transition = transitions.reinstate(order, result)
        if order is None or transition.status is not Status.CONFIRMED or order.key not in purchases:
            return transition
        refusal = bought.take(purchases[order.key])
        # Keep the status_reason, so that the order can still be reinstated.
        return transition if refusal is None else Transition(Status.CANCELLED, order.status_reason, refusal)

    return apply(tx, results, [result.command for result in results], decide, audit_log)


def _purchases(tx: Connection, cancelled: Collection[Order]) -> dict[OrderKey, Purchase]:
    """Return the purchases of the orders that were created with a limit per buyer, by key."""
    limited = buyer_limits.of(tx, [order.key for order in cancelled])
    return {order.key: limits.of_cancelled(order, limited[order.key]) for order in cancelled if order.key in limited}
