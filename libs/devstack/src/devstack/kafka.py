"""Kafka for tests and development: the broker that was named, or the embedded one; to read and write it."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from devstack import watchdog
from devstack.process import Process

START_SECONDS = 20
REQUEST_SECONDS = 10
_BATCH = 500
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Record:
    """A message as it lies in its topic."""

    topic: str
    partition: int
    offset: int
    key: str | None
    headers: dict[str, str]
    value: bytes

    def json(self) -> Any:
        return json.loads(self.value)


class Kafka:
    """A running broker, read and written by tests and by whoever must know how far consumers are."""

    def __init__(self, bootstrap: str, description: str, own: Process | None = None) -> None:
        self.bootstrap = bootstrap
        self.description = description
        self._own = own

    def consume(self, topic: str, until: Callable[[list[Record]], bool], within_seconds: float = 10) -> list[Record]:
        """Everything in the topic from its start on, once `until` is content with it.

        In order within each partition. Raises TimeoutError, which shows what was there.
        """
        records: list[Record] = []
        deadline = time.monotonic() + within_seconds
        with self._consumer() as consumer:
            self._assign_all(consumer, topic, deadline)
            while not until(records):
                if time.monotonic() > deadline:
                    raise TimeoutError(_unmet(topic, records, within_seconds))
                records += map(_record, consumer.consume(_BATCH, _POLL_SECONDS))
        return records

    def produce(
        self, topic: str, key: str | None, value: bytes | str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write one message and wait until the broker has it. Raises KafkaException or TimeoutError."""
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error)

        producer = Producer({"bootstrap.servers": self.bootstrap, "acks": "all", "partitioner": "murmur2_random"})
        producer.produce(topic, value, key, headers=dict(headers or {}), on_delivery=delivered)
        if producer.flush(REQUEST_SECONDS):
            raise TimeoutError(f"{topic}: the broker did not take the message within {REQUEST_SECONDS} s")
        if failures:
            raise KafkaException(failures[0])

    def topics(self) -> dict[str, int]:
        """The number of partitions of each topic. Raises KafkaException."""
        with self._consumer() as consumer:
            found = consumer.list_topics(timeout=REQUEST_SECONDS).topics
        return {name: len(found[name].partitions) for name in sorted(found)}

    def lag(self, group: str, topic: str) -> int:
        """How many messages of the topic the group has not committed yet. Raises KafkaException."""
        with self._consumer(group) as consumer:
            partitions = consumer.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic].partitions
            committed = consumer.committed([TopicPartition(topic, number) for number in partitions], REQUEST_SECONDS)
            return sum(_unread(consumer, position) for position in committed)

    def freeze(self) -> None:
        """Stop the embedded broker where it is, connections open, until `thaw`."""
        self._ours().freeze()

    def thaw(self) -> None:
        self._ours().thaw()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with self._ours().frozen():
            yield

    def _ours(self) -> Process:
        if self._own is None:
            raise RuntimeError(f"{self.description} is not ours to freeze")
        return self._own

    @contextmanager
    def _consumer(self, group: str = "devstack") -> Iterator[Consumer]:
        # It assigns itself and commits nothing: the group is never joined, and no other reader is disturbed.
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "enable.auto.commit": False})
        try:
            yield consumer
        finally:
            consumer.close()

    def _assign_all(self, consumer: Consumer, topic: str, deadline: float) -> None:
        why = "no such topic"
        while (left := deadline - time.monotonic()) > 0:
            try:
                found = consumer.list_topics(topic, timeout=left).topics[topic]
            except KafkaException as failure:
                why = str(failure)
                continue
            if found.partitions and found.error is None:
                consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in found.partitions])
                return
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"{topic}: {why}")


@contextmanager
def provide(bootstrap: str | None = None) -> Iterator[Kafka]:
    """The broker that is named, else the embedded one, until the block ends."""
    if bootstrap:
        yield Kafka(bootstrap, describe(bootstrap))
        return
    folder = Path(tempfile.mkdtemp(prefix="shop-broker-"))
    broker = embedded(folder / "address")
    try:
        started = start(broker, folder / "address")
        watchdog.watch(broker.pid, then_remove=folder)
        yield started
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)


def describe(bootstrap: str | None) -> str:
    """What `provide` gives, without starting it."""
    return f"Kafka at {bootstrap} (given)" if bootstrap else "librdkafka's embedded broker"


def embedded(address_file: Path, on_line: Callable[[str], None] | None = None) -> Process:
    """The embedded broker's process, not started yet."""
    arguments = [sys.executable, "-m", "devstack.broker", "--run-file", str(address_file)]
    return Process("broker", arguments, on_line=on_line)


def start(broker: Process, address_file: Path) -> Kafka:
    """Start the process of `embedded` and wait until it serves. Raises ProcessEnded or TimeoutError."""
    broker.start()
    broker.wait_for_line("broker ready", START_SECONDS)
    return Kafka(address_file.read_text(), describe(None), broker)


def _unread(consumer: Consumer, committed: TopicPartition) -> int:
    lowest, highest = consumer.get_watermark_offsets(committed, timeout=REQUEST_SECONDS)
    # A negative one stands for "none yet".
    return int(highest - max(lowest, committed.offset))


def _record(message: Message) -> Record:
    """Raises KafkaException for what is no message but an error in its place."""
    if (error := message.error()) is not None:
        raise KafkaException(error)
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=_text(message.key()),
        headers={str(name): _text(value) or "" for name, value in dict(message.headers() or []).items()},
        value=message.value() or b"",
    )


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _unmet(topic: str, records: list[Record], within_seconds: float) -> str:
    shown = "\n".join(f"    {record.key} {record.value.decode(errors='replace')}" for record in records[-10:])
    return f"{topic}: not what was awaited within {within_seconds:g} s; {len(records)} there, the last:\n{shown}"
