"""Writes to an outbox, runs relays, and reads the published messages, for tests."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import orjson
from sqlalchemy import Connection, MetaData, func, select
from uuid_utils import uuid7

from devstack.kafka import Kafka
from devstack.kafka import Record as Shipped
from event_relay.metrics import Metrics
from event_relay.outbox_rows import OutboxRow, OutboxRows
from event_relay.publisher import Publisher
from event_relay.relay import Relay
from shop_common.db.database import FORCE_INDEX_PLANS, Database
from shop_common.db.sql import clock
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.outbox import SHARDS, Outbox, Record, shard_of


class OutboxDriver:
    """A database with an outbox, a topic, and any number of relays."""

    def __init__(self, url: str, kafka: Kafka) -> None:
        self.url = url
        self.kafka = kafka
        self.topic = f"events-{uuid4()}"
        self.database = Database(url)
        self.metadata = MetaData()
        self.outbox = Outbox(self.metadata)
        self._at_the_end = ExitStack()
        self._at_the_end.callback(self.database.close)

    def relay(self, name: str = "relay", *, lease_seconds: float = 30, kafka: KafkaConnection | None = None) -> Relay:
        database = Database(self.url, connections_max=1)
        self._at_the_end.callback(database.close)
        return Relay(
            database,
            self.publisher(kafka),
            Metrics("test"),
            name="test",
            owner=f"{name}:{uuid4()}",
            lease_seconds=lease_seconds,
            poll_seconds=0.01,
        )

    def publisher(self, kafka: KafkaConnection | None = None) -> Publisher:
        publisher = Publisher(kafka or self.kafka.connection, source="/shop/test")
        self._at_the_end.callback(publisher.close)
        return publisher

    def event(self, key: str, value: object, *, headers: str | None = None, topic: str | None = None) -> Record:
        return Record(
            shard=shard_of(key),
            event_id=str(uuid7()),
            topic=topic or self.topic,
            key=key,
            type="TESTED",
            payload=orjson.dumps(value).decode(),
            headers=headers,
            traceparent=None,
            created_at=datetime.now(UTC),
        )

    def write(self, *events: Record) -> None:
        self.database.transact(lambda tx: self.outbox.append_records(tx, events))

    def write_numbered(self, keys: int, each: int, first: int = 0) -> None:
        """Write `each` events per key, numbered from `first`, with interleaved keys."""
        self.write(*(self.event(f"key-{key}", n) for n in range(first, first + each) for key in range(keys)))

    def waiting(self) -> list[object]:
        """Return the payloads in the outbox, oldest first."""

        def read(tx: Connection) -> list[object]:
            table = self.outbox.table
            return [orjson.loads(text) for text in tx.execute(select(table.c.payload).order_by(table.c.id)).scalars()]

        return self.database.query(read)

    def backlog(self) -> int:
        """Return the number of events in the outbox."""
        return self.database.query(
            lambda tx: tx.execute(select(func.count()).select_from(self.outbox.table)).scalar_one()
        )

    def owners(self) -> dict[str, int]:
        """Return the number of shards that each relay owns now."""
        leases = self.outbox.leases
        held = select(leases.c.owner).where(leases.c.shard >= 0, leases.c.expires_at > clock())
        return Counter(self.database.query(lambda tx: list(tx.execute(held).scalars())))

    def pending(self) -> list[OutboxRow]:
        """Return the rows that a relay with the leases of all shards reads in one pass."""
        return self.database.query(
            lambda tx: OutboxRows(self.outbox.table).oldest(tx, range(SHARDS)), FORCE_INDEX_PLANS
        )

    def shipped(self, messages: int = 0, *, events: int = 0, within_seconds: float = 90) -> list[Shipped]:
        """Wait until the topic has at least this many messages and distinct events. Returns all its messages."""

        def complete(records: list[Shipped]) -> bool:
            return len(records) >= messages and len({record.headers["ce_id"] for record in records}) >= events

        return self.kafka.consume(self.topic, complete, within_seconds)

    def close(self) -> None:
        self._at_the_end.close()


@contextmanager
def running(*relays: Relay) -> Iterator[None]:
    """Run the relays during the block, each on its own thread."""
    with ExitStack() as at_the_end:
        for relay in relays:
            stop = threading.Event()
            thread = threading.Thread(target=relay.run, args=(stop,), daemon=True)
            thread.start()
            at_the_end.callback(thread.join, 20)
            at_the_end.callback(stop.set)
        yield


def values_by_key(records: list[Shipped], *, first_occurrences: bool = False) -> dict[str, list[object]]:
    """Return the values by key, in order. With `first_occurrences`, an event with the same ce_id counts only once."""
    seen: set[str] = set()
    values: dict[str, list[object]] = {}
    for record in records:
        if first_occurrences and record.headers["ce_id"] in seen:
            continue
        seen.add(record.headers["ce_id"])
        values.setdefault(record.key or "", []).append(record.json())
    return values
