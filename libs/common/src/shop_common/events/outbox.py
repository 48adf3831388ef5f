"""The transactional outbox: the transaction that makes a change also writes its event, as a row.

The relay produces the rows of a shard in id order, and deletes the rows that the broker has acknowledged. A transaction
writes an event after it has locked the rows that the event describes. So for one key, ids follow commit order.
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
from shop_common.identity import tenant
from shop_common.telemetry import metrics, tracing
from shop_common.timestamps import rfc3339

TENANT_HEADER = "ce_tenant"
"""The header of an event with the name of its tenant."""

ACTOR_HEADER = "ce_actor"
"""The header of an event with the name of the caller that caused it, cut off after ACTOR_CHARACTERS_MAX."""

ACTOR_CHARACTERS_MAX = 256

SHARDS = 16
"""The number of shards. It must never change: the waiting rows of a key must stay in their shard."""

PAYLOAD_BYTES_MAX = 950_000
"""Limit on the body of an event. With its headers, the event is below the usual message limit of a broker, 1 MiB.

`Outbox.append` enforces the limit. Other limits on orders and reservations keep their events below it. An older release
had no such limits, and limited only an event, to 900,000 bytes. A reservation from that release may have later events
that are some hundred bytes larger, so PAYLOAD_BYTES_MAX must stay above that size.
"""

_written = metrics.counter(__name__, "shop_events_written_total", "Events whose transaction has committed", "type")


@dataclass(frozen=True, slots=True)
class Message:
    """An event for other services. `key` is the id of the order or product that has changed.

    `tenant` is the tenant of the order or product. `traceparent` belongs to the call that caused the event, and `actor`
    is its caller. `actor` is None if no caller caused the event, or if callers are not checked.
    """

    topic: str
    key: str
    type: str
    data: dict[str, Any]
    occurred_at: datetime
    traceparent: str | None = None
    tenant: str = tenant.DEFAULT
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A row of the outbox. `payload` is the JSON body, `headers` a JSON object with additional headers."""

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
    """The outbox table and the lease table of a service's database."""

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
        """Write the messages, in order. `tx` must have locked the rows that they describe.

        A message without a traceparent continues the current span. An example is an expiry, which no user's call
        caused. Raises ValueError if a message is larger than PAYLOAD_BYTES_MAX, which is a defect of the caller.
        """
        current = tracing.current_traceparent()
        self.append_records(tx, [_record(message, message.traceparent or current) for message in messages])
        count_after_commit(tx, _written, Counter((message.type,) for message in messages))

    def append_records(self, tx: Connection, records: Sequence[Record]) -> None:
        """Write rows unchanged, such as dead letters."""
        if records:
            self._insert(tx, records)


def shard_of(key: str) -> int:
    """Return the shard of a key. All events of a key are in one shard, so they keep their order."""
    return zlib.crc32(key.encode()) % SHARDS


def _record(message: Message, traceparent: str | None) -> Record:
    payload = orjson.dumps(
        {"event_type": message.type, "timestamp": rfc3339(message.occurred_at), "data": message.data}
    )
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"{message.type} of {message.key} has {len(payload)} bytes; the limit is {PAYLOAD_BYTES_MAX}")
    return Record(
        shard=shard_of(message.key),
        event_id=str(uuid7()),
        topic=message.topic,
        key=message.key,
        type=message.type,
        payload=payload.decode(),
        headers=_headers(message),
        traceparent=traceparent,
        created_at=message.occurred_at,
    )


def _headers(message: Message) -> str | None:
    # The relay adds the default tenant itself, so that most rows have no headers.
    headers = {} if message.tenant == tenant.DEFAULT else {TENANT_HEADER: message.tenant}
    if message.actor is not None:
        headers[ACTOR_HEADER] = message.actor[:ACTOR_CHARACTERS_MAX]
    return orjson.dumps(headers).decode() if headers else None
