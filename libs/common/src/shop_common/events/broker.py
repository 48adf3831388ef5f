"""Reads topics without joining a consumer group, so that consumers are not disturbed."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from shop_common.events import received
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.outbox import TENANT_HEADER
from shop_common.identity import tenant

READ_GROUP = "devstack"
"""The group of readers that commit nothing. No client joins it."""

REQUEST_SECONDS = 5
SILENCE_SECONDS_MAX = 15
"""How long to wait for an event that is known to exist."""

_BUFFER_KILOBYTES = 64 * 1024
_BATCH = 500
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Bounds:
    """The oldest offset of a partition, and the offset of its next event."""

    first: int
    end: int


@dataclass(frozen=True)
class Event:
    """An event exactly as it is in its topic. Invalid events can be read, too."""

    topic: str
    partition: int
    offset: int
    time: datetime
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    value: bytes

    def header(self, name: str) -> str:
        """Return the header's first value as text; empty if there is none."""
        return next((text(value) for key, value in self.headers if key == name), "")

    @property
    def tenant(self) -> str:
        """The tenant of the event."""
        return self.header(TENANT_HEADER) or tenant.DEFAULT

    def json(self) -> Any:
        """Return the decoded value, or None if it is not a JSON object."""
        try:
            value = json.loads(self.value)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Commit:
    """A group's commit for a partition: the next offset, and metadata in `note`."""

    offset: int
    note: str


class Broker:
    """A connection to a broker. It reads and writes the commits of `group`. Methods raise KafkaException."""

    def __init__(
        self, kafka: KafkaConnection, group: str = READ_GROUP, *, buffer_kilobytes: int = _BUFFER_KILOBYTES
    ) -> None:
        # Failures raise exceptions. librdkafka's log is off, because a failed command must print only one sentence.
        own = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": buffer_kilobytes,
            "log_level": 0,
            "error_cb": self._note,
        }
        self._consumer = Consumer(kafka.configuration(own))
        self.connection = kafka
        self._down: KafkaError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def is_embedded(self) -> bool:
        """Return whether it is librdkafka's in-memory broker, which has no administration."""
        return (self._consumer.list_topics(timeout=REQUEST_SECONDS).cluster_id or "").startswith("mockCluster")

    def topics(self) -> dict[str, list[int]]:
        """Return the partitions of each topic, without Kafka's internal topics."""
        found = self._consumer.list_topics(timeout=REQUEST_SECONDS).topics
        return {name: sorted(found[name].partitions) for name in sorted(found) if not name.startswith("__")}

    def bounds(self, topic: str) -> dict[int, Bounds]:
        """Return the bounds of each partition; empty if there is no such topic."""
        return {
            partition: Bounds(*self._consumer.get_watermark_offsets(TopicPartition(topic, partition), REQUEST_SECONDS))
            for partition in self.topics().get(topic, [])
        }

    def commits(self, topic: str) -> dict[int, Commit]:
        """Return the group's commits, for the partitions that have one."""
        partitions = [TopicPartition(topic, partition) for partition in self.topics().get(topic, [])]
        found = self._consumer.committed(partitions, REQUEST_SECONDS) if partitions else []
        return {p.partition: Commit(p.offset, p.metadata or "") for p in found if p.offset > OFFSET_INVALID}

    def commit(self, topic: str, partition: int, commit: Commit) -> None:
        """Set the group's commit for a partition."""
        position = TopicPartition(topic, partition, commit.offset, metadata=commit.note)
        for result in self._consumer.commit(offsets=[position], asynchronous=False) or []:
            if result.error is not None:
                raise KafkaException(result.error)

    def read(self, topic: str, bounds: Mapping[int, Bounds]) -> Iterator[Event]:
        """Yield the events within the bounds, in order within each partition."""
        ends = {partition: bound.end for partition, bound in bounds.items() if bound.first < bound.end}
        self._assign(topic, {partition: bounds[partition].first for partition in ends})
        last_message_at = time.monotonic()
        while ends:
            if time.monotonic() - last_message_at > SILENCE_SECONDS_MAX:
                raise KafkaException(f"{topic} returned no events for {SILENCE_SECONDS_MAX} s")
            for message in self._poll():
                last_message_at = time.monotonic()
                partition, offset = message.partition() or 0, message.offset() or 0
                # The last offset may not belong to an event: transactions write control records.
                if partition not in ends:
                    continue
                at_end = _is_end(message)
                if not at_end and offset < ends[partition]:
                    yield _event(message)
                if at_end or offset >= ends[partition] - 1:
                    del ends[partition]

    def at(self, topic: str, partition: int, offset: int) -> Event | None:
        """Return the event at an offset within the bounds of the partition, or None if the offset has no event."""
        self._assign(topic, {partition: offset})
        deadline = time.monotonic() + REQUEST_SECONDS
        while time.monotonic() < deadline:
            message = self._consumer.poll(_POLL_SECONDS)
            if self._down is not None:
                raise KafkaException(self._down)
            if message is not None:
                is_event = not _is_end(message) and message.offset() == offset
                return _event(message) if is_event else None
        raise KafkaException(f"{topic} returned no event for {REQUEST_SECONDS} s")

    def follow(self, topic: str, start: Mapping[int, int]) -> Iterator[Event]:
        """Yield the events from these offsets on, without end."""
        self._assign(topic, start)
        while True:
            for message in self._poll():
                if not _is_end(message):
                    yield _event(message)

    def start_at(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Read these partitions from these offsets on, with `next_events`. Partitions are pairs of topic and number."""
        self._consumer.assign([TopicPartition(topic, number, offset) for (topic, number), offset in offsets.items()])

    def next_events(self) -> tuple[list[Event], dict[tuple[str, int], int]]:
        """Return the events that come next, and the offset up to which each of their partitions is now read.

        Both are empty if nothing comes within a moment. Transactions write control records, which are no events: so a
        partition is reported at its end even if there was no event.
        """
        events: list[Event] = []
        reached: dict[tuple[str, int], int] = {}
        for message in self._poll():
            at_end, offset = _is_end(message), message.offset() or 0
            reached[message.topic() or "", message.partition() or 0] = offset if at_end else offset + 1
            if not at_end:
                events.append(_event(message))
        return events, reached

    def _poll(self) -> list[Message]:
        messages = self._consumer.consume(_BATCH, _POLL_SECONDS)
        if self._down is not None:
            raise KafkaException(self._down)
        return messages

    def _note(self, error: KafkaError) -> None:
        # The client itself would retry forever. A command must report that no broker responds.
        if error.name() == "_ALL_BROKERS_DOWN":
            self._down = error

    def _assign(self, topic: str, start: Mapping[int, int]) -> None:
        self._consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in start.items()])


def count(bounds: Iterable[Bounds]) -> int:
    """Return the number of offsets within the bounds."""
    return sum(bound.end - bound.first for bound in bounds)


def text(value: bytes | None) -> str:
    """Decode bytes for people; invalid UTF-8 is replaced."""
    return (value or b"").decode(errors="replace")


def _is_end(message: Message) -> bool:
    error = message.error()
    if error is not None and error.name() != "_PARTITION_EOF":
        raise KafkaException(error)
    return error is not None


def _event(message: Message) -> Event:
    key: Any = message.key()
    return Event(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        time=_time(message.timestamp()[1]),
        key=key.encode() if isinstance(key, str) else key,
        headers=tuple(received.headers_of(message) or ()),
        value=message.value() or b"",
    )


def _time(milliseconds: int) -> datetime:
    """Return the message's timestamp as a datetime; 1970-01-01 if it is out of range."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
