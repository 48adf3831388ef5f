"""Writes to the outbox, as a backlog or at an even rate, and reads the events from Kafka."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import make_url

from benchmarks.http2 import LoadError
from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from order_api.migrations import SCHEMA
from shop_common.db.database import Database
from shop_common.events.outbox import SHARDS

ROW_BYTES = 420
"""The size of a row in the table, including its header, by `pg_column_size`."""

TRANSACTION_EVENTS = 200
PACED_TRANSACTION_EVENTS = 5
DRAIN_SECONDS = 180
_POLL_SECONDS = 0.01
_REQUEST_SECONDS = 10
_NUMBER = slice(6, 16)

# Each event belongs to a different order, the most common case.
_INSERT = f"""
INSERT INTO outbox (shard, event_id, topic, key, type, payload, created_at)
SELECT number %% {SHARDS}, gen_random_uuid(), %(topic)s, gen_random_uuid()::text, 'ORDER_CREATED',
       '{{"n":"' || lpad(number::text, 10, '0') || '","filling":"' || repeat('x', %(filling)s) || '"}}',
       clock_timestamp()
FROM generate_series(%(first)s::bigint, %(last)s) AS number
"""
_SIZE = "SELECT pg_column_size(outbox.*) FROM outbox LIMIT 1"


class TooBusy(Exception):
    """This machine cannot write at the requested rate; the message contains the delay."""


class Outbox:
    """A migrated database, and the topic of its events."""

    def __init__(self, server: PostgresServer, kafka: Kafka, topic: str) -> None:
        self.kafka = kafka
        self.topic = topic
        self.url = server.new_database("relay")
        self.plain_url = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        with closing(Database(self.url, connections_max=1)) as database:
            SCHEMA.upgrade(database)
        kafka.create_topics(topic)
        self._connection = psycopg.connect(self.plain_url, autocommit=True)
        self._consumer = self._reader()
        # This request also creates the topic on the embedded broker, which creates topics at their first use.
        self._partitions = kafka.admin().list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic].partitions
        self._next = 1
        self._filling = 0
        self._filling = ROW_BYTES - self._row_bytes()

    def close(self) -> None:
        self._connection.close()
        self._consumer.close()

    def fill(self, count: int) -> None:
        """Write this many events, in transactions as large as the batches of a busy API."""
        last = self._next + count - 1
        for first in range(self._next, last + 1, TRANSACTION_EVENTS):
            self._insert(first, min(first + TRANSACTION_EVENTS - 1, last))
        self._next = last + 1

    def write_at(self, rate: int, seconds: float) -> dict[int, tuple[float, float]]:
        """Write events at an even rate.

        Returns for each event the times at which its COMMIT was sent and at which the COMMIT finished (time.time).

        Raises TooBusy.
        """
        committed: dict[int, tuple[float, float]] = {}
        began = time.monotonic()
        for count in range(int(rate * seconds / PACED_TRANSACTION_EVENTS)):
            due = began + count * PACED_TRANSACTION_EVENTS / rate
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            first, self._next = self._next, self._next + PACED_TRANSACTION_EVENTS
            self._connection.execute("BEGIN")
            self._insert(first, self._next - 1)
            sent = time.time()
            self._connection.execute("COMMIT")
            committed |= dict.fromkeys(range(first, self._next), (sent, time.time()))
        late = time.monotonic() - began - seconds
        if late > 0.05 * seconds:
            raise TooBusy(f"{seconds:g} s at {rate} events per second took {late:.1f} s longer")
        return committed

    @contextmanager
    def arrivals(self) -> Iterator[dict[int, float]]:
        """Record when each new event of the topic is first read (time.time), until the block ends."""
        seen: dict[int, float] = {}
        done = threading.Event()
        consumer = self._reader()
        consumer.assign(self._ends())

        def read() -> None:
            while not done.is_set():
                # Read one message at a time: `consume` with several would wait until it has all of them or times out.
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    seen.setdefault(int((message.value() or b"")[_NUMBER]), time.time())

        thread = threading.Thread(target=read, name="reader", daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            done.set()
            thread.join()
            consumer.close()

    def arrived(self) -> int:
        """Return the number of messages that the topic has received. Raises KafkaException."""
        return sum(end.offset for end in self._ends())

    def wait_for(self, arrived: int) -> float:
        """Wait until the topic has this many messages, and return the time (time.monotonic). Raises LoadError."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while (there := self.arrived()) < arrived:
            if time.monotonic() > deadline:
                raise LoadError(f"{arrived - there} events did not arrive within {DRAIN_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        if there > arrived:
            raise LoadError(f"{there - arrived} more messages than events: some were sent twice")
        return now

    def wait_until_empty(self) -> None:
        """Wait until all rows are deleted. Raises LoadError."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._connection.execute("SELECT EXISTS (SELECT FROM outbox)").fetchone() == (True,):
            if time.monotonic() > deadline:
                raise LoadError(f"the outbox was not empty within {DRAIN_SECONDS} s")
            time.sleep(_POLL_SECONDS)

    def truncate(self) -> None:
        """Delete all rows, for a side that does not delete them."""
        self._connection.execute("TRUNCATE outbox")

    def is_idle(self) -> bool:
        """Return whether no other client is in a transaction or statement."""
        busy = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
        return busy == (0,)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement in autocommit mode."""
        cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    def _insert(self, first: int, last: int) -> None:
        values = {"topic": self.topic, "filling": self._filling, "first": first, "last": last}
        self._connection.execute(_INSERT, values)

    def _row_bytes(self) -> int:
        self._connection.execute("BEGIN")
        self._insert(1, 1)
        row = self._connection.execute(_SIZE).fetchone()
        self._connection.execute("ROLLBACK")
        assert row is not None
        return int(row[0])

    def _reader(self) -> Consumer:
        """Return a consumer that assigns partitions itself, commits nothing, and does not log the end of the broker."""
        own = {"group.id": "benchmarks", "log_level": 0, "enable.auto.commit": False}
        return Consumer(self.kafka.connection.configuration(own))

    def _ends(self) -> list[TopicPartition]:
        """Return the end offset of each partition. Raises KafkaException."""
        positions = [TopicPartition(self.topic, number) for number in self._partitions]
        return [
            TopicPartition(self.topic, each.partition, self._consumer.get_watermark_offsets(each, _REQUEST_SECONDS)[1])
            for each in positions
        ]
