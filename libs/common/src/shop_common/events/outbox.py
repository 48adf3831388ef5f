"""The transactional outbox: an event is a row, written by the same transaction as the change it tells of.

The relay ships the rows of a shard in the order of their ids and deletes what the broker has acknowledged.
Ids are drawn after the rows an event speaks of are locked, so that they follow commit order for a key.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Column, Connection, Identity, Index, MetaData, SmallInteger, Table, Text
from uuid_utils import uuid7

from shop_common.db.database import count_after_commit
from shop_common.db.sql import Id, RowId, Statement, Timestamp, insert_into
from shop_common.telemetry import metrics, tracing
from shop_common.timestamps import rfc3339

SHARDS = 16
"""Fixed for ever: rows of a key must not move while they wait."""

PAYLOAD_BYTES_MAX = 950_000
"""Below the usual message limit of a broker (1 MiB) with its headers: refused here, not when it is shipped.

The limit was 900,000 before. An operation that writes an event makes sure that the later events of the same thing fit,
too. What was made under the lower limit has later events that are larger by some hundred bytes.
"""

_written = metrics.counter(
    __name__, "shop_events_written_total", "Events whose change has been committed: what happened in the shop", "type"
)


@dataclass(frozen=True, slots=True)
class Message:
    """A fact for other services: `type` happened, to what `key` names, at `occurred_at`.

    `traceparent` continues the trace of the call that caused it.
    """

    topic: str
    key: str
    type: str
    data: dict[str, Any]
    occurred_at: datetime
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it is stored: `payload` is the message's JSON text, `headers` a JSON object of further headers."""

    shard: int
    event_id: str
    topic: str
    key: str
    type: str
    payload: str
    headers: str | None
    traceparent: str | None
    created_at: datetime


class Outbox:
    """The outbox and lease tables of one service's database."""

    def __init__(self, metadata: MetaData) -> None:
        self.table = Table(
            "outbox",
            metadata,
            Column("id", RowId, Identity(cache=1), primary_key=True),
            Column("shard", SmallInteger, nullable=False),
            Column("event_id", Id, nullable=False),
            Column("topic", Text, nullable=False),
            Column("key", Text, nullable=False),
            Column("type", Text, nullable=False),
            Column("payload", Text, nullable=False),
            Column("headers", Text),
            Column("traceparent", Text),
            Column("created_at", Timestamp, nullable=False),
            Index("ix_outbox_shard_id", "shard", "id"),
            sqlite_autoincrement=True,
        )
        self.leases = Table(
            "relay_lease",
            metadata,
            Column("shard", SmallInteger, primary_key=True, autoincrement=False),
            Column("owner", Text, nullable=False),
            Column("expires_at", Timestamp, nullable=False),
        )
        self._insert: Statement = insert_into(self.table, *Record.__slots__)

    def append(self, tx: Connection, messages: Sequence[Message]) -> None:
        """Write the messages, in order. The rows that they speak of must be locked by `tx` already.

        One without a traceparent continues the current span: what nobody asked for by itself, such as an expiry.

        Raises ValueError for a message that no broker would take: a defect of the caller.
        """
        current = tracing.current_traceparent()
        self.append_records(tx, [_record(message, message.traceparent or current) for message in messages])
        count_after_commit(tx, _written, Counter((message.type,) for message in messages))

    def append_records(self, tx: Connection, records: Sequence[Record]) -> None:
        """Write rows as they are; for events that are sent on, such as dead letters."""
        if records:
            self._insert(tx, records)


def shard_of(key: str) -> int:
    """The shard whose owner ships all events of this key, in order."""
    return zlib.crc32(key.encode()) % SHARDS


def _record(message: Message, traceparent: str | None) -> Record:
    payload = orjson.dumps(
        {"event_type": message.type, "timestamp": rfc3339(message.occurred_at), "data": message.data}
    )
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"{message.type} of {message.key} has {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} fit")
    return Record(
        shard=shard_of(message.key),
        event_id=str(uuid7()),
        topic=message.topic,
        key=message.key,
        type=message.type,
        payload=payload.decode(),
        headers=None,
        traceparent=traceparent,
        created_at=message.occurred_at,
    )
