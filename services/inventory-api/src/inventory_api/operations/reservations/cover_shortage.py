"""Expires due reservations whose units a request needs, in the transaction of that request."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.model import Item, Reservation, StockKey
from inventory_api.domain.shortage import choose_to_cover
from inventory_api.operations.reservations.bisection import Bisection
from inventory_api.operations.reservations.state_changes import change_states
from inventory_api.store.reservations import changes, due, locks
from inventory_api.store.reservations.locks import Locked

DUE_EXPIRED_MAX = 10_000
"""The most due reservations that one transaction expires to cover a shortage."""


def cover_shortage(
    tx: Connection, shortage: Mapping[StockKey, int], stock: dict[int, Item], limit: int
) -> tuple[list[Reservation], bool]:
    """Expire at most `limit` due reservations, oldest first, until the shortage is covered.

    `stock` has all items of the products, by id. The caller has locked them; this function updates them in `stock`.
    Returns the expired reservations, as they were before they expired, and whether there are more candidates than
    `limit`. A reservation that cannot be expired is set aside and covers nothing. Emits STOCK_RESERVATION_EXPIRED per
    expired reservation.
    """
    expired: list[Reservation] = []

    while candidates := due.keys_to_cover(tx, shortage, stock, limit + 1):
        locked = locks.lock(tx, candidates[:limit])

        def expire(chosen: Sequence[Reservation], locked: Locked = locked) -> int:
            done = _expire(tx, locked, chosen)
            expired.extend(done)
            return len(done)

        bisection = Bisection(
            expire,
            id_of=lambda reservation: reservation.id,
            set_aside=lambda reservation_id: changes.set_aside(tx, reservation_id),
        )
        bisection.run(choose_to_cover(shortage, [locked.reservations[key.id] for key in candidates[:limit]]))
        stock.update(locked.items)
        if expired or not bisection.set_aside_count:
            return expired, len(candidates) > limit
    return [], False


def _expire(tx: Connection, locked: Locked, chosen: Sequence[Reservation]) -> list[Reservation]:
    """Expire the chosen reservations that are still due, and return them. If it raises, it has expired none."""
    part = Locked(locked.now, {each.id: each for each in chosen}, dict(locked.items))
    expired = transitions.expire(chosen, locked.now)
    # Without a savepoint, PostgreSQL would refuse every later statement of the transaction after one has failed.
    with tx.begin_nested():
        change_states(tx, part, expired)
    locked.items.update(part.items)
    return [each for each in chosen if each.id in expired]
