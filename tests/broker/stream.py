"""A stream of numbered events: an outbox on PostgreSQL, the real event-relay, and a topic of its own."""

import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Self
from uuid import uuid4

import orjson
from sqlalchemy import MetaData, func, select
from uuid_utils import uuid7

from devstack.kafka import Kafka, Record
from devstack.ports import free_ports
from devstack.process import Process
from shop_common.db.database import Database
from shop_common.events.outbox import Outbox, shard_of
from shop_common.events.outbox import Record as Row
from testkit.eventually import eventually

_POLL_SECONDS = 0.05


class Stream:
    """Writes events to the outbox, numbered by key, and checks that all of them arrive on Kafka."""

    def __init__(self, url: str, broker: Kafka) -> None:
        self.broker = broker
        self.topic = f"stream-{uuid4().hex}"
        self._written: dict[str, dict[str, tuple[str, int]]] = {}
        self._next: dict[str, int] = {}
        self._database = Database(url)
        metadata = MetaData()
        self._outbox = Outbox(metadata)
        metadata.create_all(self._database.engine)
        health_port, self._metrics_port = free_ports(2)
        self.relay = Process(
            "event-relay",
            [sys.executable, "-m", "event_relay"],
            {
                "ORDERS_DATABASE_URL": url,
                "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
                "HEALTH_PORT": str(health_port),
                "METRICS_PORT": str(self._metrics_port),
                # A batch may take two thirds of the lease. After that time the relay reports an unavailable broker.
                "LEASE_SECONDS": "3",
                "DRAIN_SECONDS": "0",
                "LOG_FORMAT": "console",
            },
            health_address=f"127.0.0.1:{health_port}",
        )

    def __enter__(self) -> Self:
        self.relay.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.stop()
        self._database.close()

    def write(self, *keys: str, topic: str | None = None, size: int = 0) -> None:
        """Write the next event of each key, in one transaction. `size` bytes are added to each payload."""
        rows = []
        for key in keys:
            number = self._next.get(key, 0)
            self._next[key] = number + 1
            rows.append(
                Row(
                    shard=shard_of(key),
                    event_id=str(uuid7()),
                    topic=topic or self.topic,
                    key=key,
                    type="NUMBERED",
                    payload=orjson.dumps({"number": number, "padding": "x" * size}).decode(),
                    headers=None,
                    traceparent=None,
                    created_at=datetime.now(UTC),
                )
            )
        self._database.transact(lambda tx: self._outbox.append_records(tx, rows))
        written = self._written.setdefault(topic or self.topic, {})
        written |= {row.event_id: (row.key, orjson.loads(row.payload)["number"]) for row in rows}

    @contextmanager
    def writing(self, keys: int = 40, each: int = 2) -> Iterator[None]:
        """Writes bursts of events, `each` per key, until the block ends."""
        done = threading.Event()

        def write() -> None:
            burst = [f"key-{number}" for number in range(keys)] * each
            while not done.wait(_POLL_SECONDS):
                self.write(*burst)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def backlog(self) -> int:
        """The number of events in the outbox."""
        rows = select(func.count()).select_from(self._outbox.table)
        return self._database.query(lambda tx: tx.execute(rows).scalar_one())

    def wait_until_all_arrived(self, topic: str | None = None, within_seconds: float = 120) -> list[Record]:
        """Wait until the outbox is empty. Returns the records of the topic.

        Raises AssertionError unless the topic has every event, and first occurrences are in order for each key.
        """
        eventually(lambda: self.backlog() == 0, within_seconds)
        topic = topic or self.topic
        size = self.broker.size(topic)
        records = self.broker.consume(topic, lambda found: len(found) >= size, within_seconds)
        written = self._written[topic]
        first: dict[str, tuple[str, int]] = {}
        for record in records:
            first.setdefault(record.headers["ce_id"], (record.key or "", record.json()["number"]))
        lost = written.keys() - first.keys()
        assert not lost, f"{len(lost)} of {len(written)} events are lost"
        assert first == written
        numbers: dict[str, list[int]] = {}
        for key, number in first.values():
            numbers.setdefault(key, []).append(number)
        for of_key in numbers.values():
            assert of_key == sorted(of_key), "first occurrences are in order"
        return records

    def metric(self, name: str) -> float:
        """The value of a metric of the relay for its database."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f'{name}{{database="orders"}}'):
                    return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    def has_shipped(self, events: float) -> bool:
        return self.metric("shop_relay_shipped_events_total") >= events

    def log_lines(self, event: str) -> list[str]:
        """The lines of the relay's log with this event."""
        return [line for line in self.relay.log.splitlines() if event in line]
