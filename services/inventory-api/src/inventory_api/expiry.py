"""Expiring holds past their time, for the reaper: batch after batch until there are no more."""

import time
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from inventory_api import reservations
from inventory_api.domain import Reservation

GO_ON_SECONDS = 5.0
"""For so long the next batch begins where the last one ended."""


class Expiry:
    """For one thread at a time.

    A full batch is followed by the next, and where it ended that one begins: what has been expired stays in front of
    PostgreSQL's index until vacuum comes by, and a million of them would be walked through for each batch. Where it
    ended is no more than a hint. Without one, after a while, and when not enough is found, the search begins with the
    oldest of all.
    """

    def __init__(self) -> None:
        self._since: datetime | None = None
        self._until = 0.0

    def expire_due(self, tx: Connection, max_count: int) -> int:
        """Expire up to `max_count` holds past their time, the oldest first; returns how many."""
        found = self._found(tx, max_count)
        # Set before the commit: should that fail, the batch is passed over until the hint is forgotten.
        self._since = found[-1].expires_at if len(found) == max_count else None
        return reservations.expire(tx, found)

    def _found(self, tx: Connection, max_count: int) -> Sequence[Reservation]:
        if self._since is not None and time.monotonic() < self._until:
            found = reservations.due(tx, max_count, since=self._since)
            if len(found) == max_count:
                return found
        self._until = time.monotonic() + GO_ON_SECONDS
        return reservations.due(tx, max_count)
