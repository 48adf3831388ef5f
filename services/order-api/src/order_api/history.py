"""Forgetting: keys of calls long past are deleted in bounded batches. Orders never are."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from order_api import tables
from shop_common.sql import now


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """Forget keys older than this, at most so many."""

    older_than_seconds: float
    max_count: int


def purge_keys(tx: Connection, request: PurgeRequest) -> int:
    """Delete idempotency keys older than the age, by the database's clock; returns how many."""
    before = now(tx) - timedelta(seconds=request.older_than_seconds)
    return tables.idempotency_keys.purge(tx, before, request.max_count)
