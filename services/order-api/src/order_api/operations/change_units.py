"""CreateShipment, CancelOrderItems and CreateReturn: changes of some units of an order.

Only the orders database is written. inventory-api ships, releases and restocks the units when it receives the event.
The targets of the event are cumulative (ADR 0025). The state after an interruption:

    before the commit            nothing happened
    committed, no response       a repeat with the same request_id returns the order; without one, a repeat ships,
                                 cancels or returns further units, or is refused if there are too few
    committed, event not handled the relay sends the event until it is acknowledged; the stock follows
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection
from uuid_utils import uuid7

from order_api.domain import units
from order_api.domain.commands import CancelItems, ReturnItems, ShipItems
from order_api.domain.errors import OrderNotFound
from order_api.domain.model import Order, OrderKey, Return, Shipment
from order_api.domain.units import UnitsChange
from order_api.store import orders, tables
from order_api.store.orders import Locked
from shop_common.errors import ShopError

_Command = TypeVar("_Command", ShipItems, CancelItems, ReturnItems)


def ship_items(tx: Connection, commands: Sequence[ShipItems]) -> list[Order | ShopError]:
    """Ship units of orders. Returns one outcome per command, in order: the order, or the refusal.

    Emits ORDER_PARTIALLY_SHIPPED, or ORDER_SHIPPED if no unit is open any more.
    """
    return _change(tx, commands, units.ship, _save_shipment)


def cancel_items(tx: Connection, commands: Sequence[CancelItems]) -> list[Order | ShopError]:
    """Cancel units of orders. Returns one outcome per command, in order: the order, or the refusal.

    Emits ORDER_ITEMS_CANCELLED; if no unit is open any more, ORDER_SHIPPED or ORDER_CANCELLED.
    """
    return _change(tx, commands, units.cancel, _save_cancellation)


def return_items(tx: Connection, commands: Sequence[ReturnItems]) -> list[Order | ShopError]:
    """Record returns of orders. Returns one outcome per command, in order: the order, or the refusal.

    Emits ORDER_RETURNED.
    """
    return _change(tx, commands, units.take_back, _save_return)


def _change(
    tx: Connection,
    commands: Sequence[_Command],
    decide: Callable[[Order, _Command], UnitsChange | ShopError],
    save: Callable[[Locked, UnitsChange, _Command], Order],
) -> list[Order | ShopError]:
    """Decide the commands one after another, each on the order as the previous command left it.

    The outcome of a repeated request_id is the order as it is now.
    """
    claimed = tables.idempotency_keys.claim(tx, commands, [command.claim() for command in commands])
    replayed = orders.get(tx, [OrderKey(claim.tenant, claim.resources[0]) for claim in claimed.replays])
    outcomes: list[Order | ShopError] = []
    if claimed.new:
        locked = orders.lock(tx, (command.order_key for command in claimed.new))
        for command in claimed.new:
            order = locked.orders.get(command.order_key)
            decision = OrderNotFound(command.order_id) if order is None else decide(order, command)
            outcomes.append(decision if isinstance(decision, ShopError) else save(locked, decision, command))
        locked.save(tx)
    return claimed.settle(tx, replayed=replayed, new=outcomes)


def _save_shipment(locked: Locked, change: UnitsChange, command: ShipItems) -> Order:
    shipment = Shipment(str(uuid7()), command.carrier, command.tracking_number, tuple(change.units.items()), locked.now)
    return locked.ship(change.order, shipment, command.traceparent, command.caller.actor)


def _save_cancellation(locked: Locked, change: UnitsChange, command: CancelItems) -> Order:
    return locked.cancel_units(change.order, change.units, command.reason, command.traceparent, command.caller.actor)


def _save_return(locked: Locked, change: UnitsChange, command: ReturnItems) -> Order:
    returning = Return(str(uuid7()), command.reason, command.units, locked.now)
    return locked.take_back(change.order, returning, command.traceparent, command.caller.actor)
