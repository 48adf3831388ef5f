"""Divides maintenance of many orders into turns. Each turn is a transaction that locks a bounded number of lines."""

from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from order_api.domain.model import LINES_MAX, OrderKey
from order_api.store import orders
from shop_common.batching.coalescers import Sizes
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS

TURN_LINES = 1_000
"""The number of lines of the orders that one turn changes: about 20 ms of work."""

_SIZES = Sizes[OrderKey](key=lambda order: order, read=orders.count_lines, size_max=LINES_MAX)


def first_turn(tx: Connection, keys: Sequence[OrderKey]) -> Sequence[OrderKey]:
    """Return the orders of a turn: as many of the first ones as have TURN_LINES lines together, at least one."""
    return _SIZES.prefix_within(tx, keys, TURN_LINES)


def in_turns(database: Database, keys: Sequence[OrderKey], act: Callable[[Connection, Sequence[OrderKey]], int]) -> int:
    """Run `act` on the orders of each turn, in order. Returns the sum of its results.

    The orders may be of several tenants. If a turn fails, the turns before it have committed.
    """

    def turn(tx: Connection) -> tuple[int, int]:
        first = first_turn(tx, keys)
        return len(first), act(tx, first)

    done = 0
    while keys:
        handled, result = database.transact(turn, ALL_TENANTS)
        keys, done = keys[handled:], done + result
    return done
