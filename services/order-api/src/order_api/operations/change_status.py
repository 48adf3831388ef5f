"""UpdateOrderStatus, except for a change to CONFIRMED, which calls inventory-api first (confirm_order.py).

Every change is decided on the locked row. So each change happens at most once, with one event, and events follow the
sequence of the changes.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from order_api.domain import transitions
from order_api.domain.commands import ChangeStatus
from order_api.domain.model import Order, OrderKey
from order_api.domain.transitions import Transition
from order_api.store import orders, tables
from shop_common.db.audit import AuditLog, Entry, entry
from shop_common.errors import ShopError

_Request = TypeVar("_Request")


def change_status(tx: Connection, commands: Sequence[ChangeStatus]) -> list[Order | ShopError]:
    """Change the status of orders. Returns one outcome per command, in order: the order, or the refusal.

    Commands for one order are applied one after the other. A command for the current status returns the order and emits
    nothing. Refuses with OrderNotFound and IllegalTransition. Emits the event of the new status.
    """
    return apply(tx, commands, commands, transitions.change)


def apply(
    tx: Connection,
    requests: Sequence[_Request],
    commands: Sequence[ChangeStatus],
    decide: Callable[[Order | None, _Request], Transition],
    audit_log: AuditLog | None = None,
) -> list[Order | ShopError]:
    """Decide on each request, and change its order accordingly. The command at the same index names the order.

    The outcome of a repeated request_id is the order as it is now. With `audit_log`, writes a row there for each
    request that is refused and yet changes its order. The coalescer writes the other rows.
    """
    claimed = tables.idempotency_keys.claim(
        tx, list(zip(requests, commands, strict=True)), [command.claim() for command in commands]
    )
    replayed = orders.get(tx, [OrderKey(claim.tenant, claim.resources[0]) for claim in claimed.replays])
    return claimed.settle(tx, replayed=replayed, new=_apply(tx, claimed.new, decide, audit_log))


def _apply(
    tx: Connection,
    new: Sequence[tuple[_Request, ChangeStatus]],
    decide: Callable[[Order | None, _Request], Transition],
    audit_log: AuditLog | None,
) -> list[Order | ShopError]:
    if not new:
        return []
    locked = orders.lock(tx, (command.order_key for _, command in new))
    outcomes: list[Order | ShopError] = []
    refused_changes: list[Entry] = []
    for request, command in new:
        order = locked.orders.get(command.order_key)
        transition = decide(order, request)
        if order is not None and transition.status is not None:
            order = locked.change_status(
                order.key, transition.status, transition.reason, command.traceparent, command.caller.actor
            )
            if transition.has_surplus:
                locked.state_targets(order.key, command.traceparent, command.caller.actor)
            if transition.refusal is not None:
                refused_changes.append(entry(command.caller, command.method, [order.id], command.request_id))
        outcome = transition.refusal or order
        assert outcome is not None, "an order that does not exist is refused"
        outcomes.append(outcome)
    locked.save(tx)
    if audit_log is not None:
        audit_log.append(tx, refused_changes)
    return outcomes
