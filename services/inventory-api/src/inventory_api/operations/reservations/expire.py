"""Expires due reservations, for ExpireReservations, which the reaper calls repeatedly."""

import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from inventory_api.domain import events
from inventory_api.domain.commands import ExpireRequest
from inventory_api.domain.model import Reservation
from inventory_api.operations.reservations.bisection import Bisection
from inventory_api.operations.reservations.turns import TURN_ALLOCATIONS
from inventory_api.store import items, tables
from inventory_api.store.reservations import changes, due
from shop_common.api.command import UNKNOWN_CAUSE
from shop_common.batching.turns import slices
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.db.sql import now

RESUME_SECONDS = 5.0
"""During this time, batches may start where the previous batch ended.

The first batch after this time starts with the oldest due reservation.
"""

TURN_EXPIRED = 100
"""The most reservations that one transaction expires.

Other requests wait for the items that the transaction has locked, and for the Python interpreter while it computes.
"""


class ExpirySweep:
    """Expires due reservations in batches. Only one thread at a time may use it.

    After a full batch, the next batch starts at the expiry of the last reservation of that batch. Otherwise PostgreSQL
    would read, for each batch, the index entries of all reservations that earlier batches expired, until vacuum removes
    these entries. The start is only a hint. A batch starts with the oldest due reservation if it has no hint, if
    RESUME_SECONDS have passed, or if it finds too few due reservations from the hint on.
    """

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log
        self._since: datetime | None = None
        self._resume_until = 0.0

    def expire_due(self, request: ExpireRequest) -> int:
        """Expire at most `max_count` due reservations, oldest first. Returns how many were expired.

        First reads all of them. Then expires them in turns of one transaction each, so that other requests run between
        two turns. A reservation that cannot be expired is set aside.
        """
        reservations = self._read(request.max_count)
        # Set the hint before expiring. If expiring fails, the next batches skip these reservations until the hint is
        # dropped.
        self._since = reservations[-1].expires_at if len(reservations) == request.max_count else None
        expire = partial(self._expire, request)
        bisection = Bisection(expire, id_of=lambda reservation: reservation.id, set_aside=self._set_aside)
        turns = slices(
            reservations, lambda reservation: len(reservation.allocations), TURN_ALLOCATIONS, count_max=TURN_EXPIRED
        )
        return sum(map(bisection.run, turns))

    def _expire(self, request: ExpireRequest, reservations: Sequence[Reservation]) -> int:
        def expire(tx: Connection) -> int:
            expired = expire_read(tx, reservations)
            if self._audit_log is not None and expired:
                ids = (reservation.id for reservation in expired)
                self._audit_log.append(tx, [entry(request.caller, "ExpireReservations", ids)])
            return len(expired)

        return self._database.transact(expire, ALL_TENANTS)

    def _set_aside(self, reservation_id: str) -> None:
        self._database.transact(lambda tx: changes.set_aside(tx, reservation_id), ALL_TENANTS)

    def _read(self, max_count: int) -> Sequence[Reservation]:
        if self._since is not None and time.monotonic() < self._resume_until:
            reservations = self._read_since(max_count, self._since)
            if len(reservations) == max_count:
                return reservations
        self._resume_until = time.monotonic() + RESUME_SECONDS
        return self._read_since(max_count, None)

    def _read_since(self, max_count: int, since: datetime | None) -> Sequence[Reservation]:
        return self._database.query(lambda tx: due.oldest(tx, max_count, since=since), ALL_TENANTS)


def expire_read(tx: Connection, reservations: Sequence[Reservation]) -> list[Reservation]:
    """Expire the reservations that are still due, and return them. `reservations` were read without a lock.

    Emits STOCK_RESERVATION_EXPIRED per expired reservation. The effect is the same as that of `change_states`, but the
    items are locked for a shorter time. The reservations need no lock before the UPDATE, because the UPDATE itself
    checks the state, and the other values that this function uses never change. See store/reservations/changes.py for
    why this cannot deadlock.
    """
    if not reservations:
        return []
    locked = {item.id: item for item in items.lock_products(tx, {each.product for each in reservations})}
    timestamp = now(tx)
    expired_ids = changes.expire(tx, [reservation.id for reservation in reservations])
    expired = [reservation for reservation in reservations if reservation.id in expired_ids]
    if expired:
        freed: dict[int, int] = {}
        for reservation in expired:
            for part in reservation.allocations:
                freed[part.item_id] = freed.get(part.item_id, 0) + part.quantity
        items.free(tx, locked, freed, timestamp)
        tables.outbox.append(tx, [events.stock_reservation_expired(each, timestamp, UNKNOWN_CAUSE) for each in expired])
    return expired
