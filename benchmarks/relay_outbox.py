"""The outbox under load: filled while its relay is held, written to at an even pace, and read to the end in Kafka."""

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
"""Of a row in the table, its header included, as `pg_column_size` counts them."""

TRANSACTION_EVENTS = 200
PACED_TRANSACTION_EVENTS = 5
DRAIN_SECONDS = 180
_POLL_SECONDS = 0.01
_REQUEST_SECONDS = 10
_NUMBER = slice(6, 16)

# Each event is of an order of its own: what a shop has most.
_INSERT = f"""
INSERT INTO outbox (shard, event_id, topic, key, type, payload, created_at)
SELECT number %% {SHARDS}, gen_random_uuid(), %(topic)s, gen_random_uuid()::text, 'ORDER_CREATED',
       '{{"n":"' || lpad(number::text, 10, '0') || '","filling":"' || repeat('x', %(filling)s) || '"}}',
       clock_timestamp()
FROM generate_series(%(first)s::bigint, %(last)s) AS number
"""
_SIZE = "SELECT pg_column_size(outbox.*) FROM outbox LIMIT 1"


class TooBusy(Exception):
    """This machine can't write at the pace that was asked for; the message says how far it fell back."""


class Outbox:
    """A migrated database of its own, and the topic that its events go to."""

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
        # ConfirmationResult by a client that may make topics, as the embedded broker does at their first use.
        self._partitions = kafka.admin().list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic].partitions
        self._next = 1
        self._filling = 0
        self._filling = ROW_BYTES - self._row_bytes()

    def close(self) -> None:
        self._connection.close()
        self._consumer.close()

    def fill(self, count: int) -> None:
        """Write that many events, in transactions as a busy shop's batches are."""
        last = self._next + count - 1
        for first in range(self._next, last + 1, TRANSACTION_EVENTS):
            self._insert(first, min(first + TRANSACTION_EVENTS - 1, last))
        self._next = last + 1

    def write_at(self, rate: int, seconds: float) -> dict[int, tuple[float, float]]:
        """Write at an even pace; of each event when its COMMIT was sent, and when that was answered (time.time).

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
            raise TooBusy(f"{seconds:g} s at {rate} events a second took {late:.1f} s longer")
        return committed

    @contextmanager
    def arrivals(self) -> Iterator[dict[int, float]]:
        """When each event that comes to the topic from now on was first read there (time.time), until the end."""
        seen: dict[int, float] = {}
        done = threading.Event()
        consumer = self._reader()
        consumer.assign(self._ends())

        def read() -> None:
            while not done.is_set():
                # One by one: `consume` gives what it has only when it has as many as were asked for, or its time is up.
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
        """How many messages the topic has got since it was made. Raises KafkaException."""
        return sum(end.offset for end in self._ends())

    def wait_for(self, arrived: int) -> float:
        """When (time.monotonic) the topic had so many messages. Raises LoadError."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while (there := self.arrived()) < arrived:
            if time.monotonic() > deadline:
                raise LoadError(f"{arrived - there} events did not arrive within {DRAIN_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        if there > arrived:
            raise LoadError(f"{there - arrived} more messages than events: something was sent twice")
        return now

    def wait_until_empty(self) -> None:
        """Until all rows are gone. Raises LoadError."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._connection.execute("SELECT EXISTS (SELECT FROM outbox)").fetchone() == (True,):
            if time.monotonic() > deadline:
                raise LoadError(f"the outbox was not empty within {DRAIN_SECONDS} s")
            time.sleep(_POLL_SECONDS)

    def truncate(self) -> None:
        """For a side that leaves its rows to be removed by somebody else."""
        self._connection.execute("TRUNCATE outbox")

    def is_idle(self) -> bool:
        """Whether nobody but us is in a transaction or a statement."""
        busy = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
        return busy == (0,)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement of a side's own, outside a transaction."""
        cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    def _insert(self, first: int, last: int) -> None:
        given = {"topic": self.topic, "filling": self._filling, "first": first, "last": last}
        self._connection.execute(_INSERT, given)

    def _row_bytes(self) -> int:
        self._connection.execute("BEGIN")
        self._insert(1, 1)
        row = self._connection.execute(_SIZE).fetchone()
        self._connection.execute("ROLLBACK")
        assert row is not None
        return int(row[0])

    def _reader(self) -> Consumer:
        """It assigns itself, commits nothing, and says nothing of a broker that has ended."""
        own = {"group.id": "benchmarks", "log_level": 0, "enable.auto.commit": False}
        return Consumer(self.kafka.connection.configuration(own))

    def _ends(self) -> list[TopicPartition]:
        """The end of each partition. Raises KafkaException."""
        wanted = [TopicPartition(self.topic, number) for number in self._partitions]
        return [
            TopicPartition(self.topic, each.partition, self._consumer.get_watermark_offsets(each, _REQUEST_SECONDS)[1])
            for each in wanted
        ]
