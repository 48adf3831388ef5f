"""Releases the newest reservations of an item, because the item has fewer units than were thought."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.model import Item, OrderKey, StockKey
from inventory_api.domain.shortage import ReservedUnits, choose_to_release
from inventory_api.operations.reservations.state_changes import change_states
from inventory_api.store import order_effects
from inventory_api.store.order_effects import OrderEffects
from inventory_api.store.reservations import locks, newest
from inventory_api.store.reservations.locks import Locked
from shop_common.api.command import Cause

RELEASED_MAX = 1_000
"""The most reservations that one transaction considers for releasing.

Requests for the same products wait until the transaction has committed.
"""

_FIRST_READ = 100
"""How many reservations are read first. Normally, a few reservations have the missing units."""


@dataclass(frozen=True, slots=True)
class Released:
    """How many reservations were released. `is_limited` if none was, but a higher limit might have helped."""

    count: int
    is_limited: bool = False


def release_shortfall(
    tx: Connection, item: Item, missing: int, stock: dict[StockKey, Item], cause: Cause, limit: int
) -> Released:
    """Release reservations that have the missing units of the item: held ones before confirmed ones, newest first.

    Releases none if the considered reservations have fewer units. Considers at most `limit` reservations, and none of
    an order of which units have shipped, because its goods may be on their way, or which is being changed. Emits
    STOCK_RELEASED per released reservation, or STOCK_RESERVATION_EXPIRED if it is due.

    `stock` has all items of the product. The caller has locked them, and may have changed them without writing them.
    This function updates them in `stock`.
    """
    chosen, is_limited = _choose(tx, item, missing, limit)
    if not chosen:
        return Released(0, is_limited)
    # Nobody has ended these reservations since they were read: that needs the locks of their items.
    locked = locks.lock(tx, [each.reservation for each in chosen])
    part = Locked(locked.now, locked.reservations, {each.id: each for each in stock.values()})
    changes = transitions.release(locked.reservations.values(), locked.now)
    change_states(tx, part, changes, dict.fromkeys(changes, cause))
    stock.update((each.stock_key, each) for each in part.items.values())
    return Released(len(chosen))


def _choose(tx: Connection, item: Item, missing: int, limit: int) -> tuple[list[ReservedUnits], bool]:
    """Return the chosen reservations, and whether there are more candidates than were considered."""
    count = 0
    while count < limit:
        count = min(max(_FIRST_READ, count * 10), limit)
        reserved = newest.held(tx, item, count)
        reserved += newest.confirmed(tx, item, count - len(reserved))
        chosen = choose_to_release(missing, reserved, _unreleasable(tx, reserved))
        if chosen or len(reserved) < count:
            return chosen, False
    return [], True


def _unreleasable(tx: Connection, reserved: Sequence[ReservedUnits]) -> set[OrderKey]:
    # Reservations with an owner belong to no order of order-api, and only orders of order-api have effects.
    orders = {each.order for each in reserved if not each.order.owner}
    return {order for order, effects in order_effects.load(tx, orders).items() if _is_unreleasable(effects)}


def _is_unreleasable(effects: OrderEffects) -> bool:
    return bool(effects.additions) or any(totals.shipped for totals in effects.totals.values())
