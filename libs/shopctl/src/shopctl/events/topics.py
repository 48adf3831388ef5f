"""The topics of a broker, looked at from outside: no consumer group is joined, so that no reader is disturbed."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from shop_common.events import received
from shopctl.system.layout import INVENTORY_API, ORDER_API

TOPICS = ("order-events", "inventory-events", "order-events.dlq", "inventory-events.dlq")
PARTITIONS = 3
"""Of those topics."""

READERS = {"order-events": INVENTORY_API, "inventory-events": ORDER_API}
"""Who acts on which topic: a consumer group is named for its service."""

REQUEST_SECONDS = 5
SILENCE_SECONDS_MAX = 15
"""How long to wait for an event that must be there."""

_BATCH = 500
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Bounds:
    """Of one partition: its oldest offset, and the one that the next event will get."""

    first: int
    end: int


@dataclass(frozen=True)
class Event:
    """An event as it lies in its topic, byte for byte: poisonous ones are read too."""

    topic: str
    partition: int
    offset: int
    time: datetime
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    value: bytes

    def header(self, name: str) -> str:
        """Its first value as text; empty when there is none."""
        return next((text(value) for key, value in self.headers if key == name), "")

    def json(self) -> Any:
        """The value, decoded; None when it is no JSON object."""
        try:
            value = json.loads(self.value)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Commit:
    """What a group has committed for a partition: the next offset, and a note of its own."""

    offset: int
    note: str


class Broker:
    """A connection to a broker, as the consumer group of that name. Methods raise KafkaException."""

    def __init__(self, bootstrap: str, group: str = "devstack") -> None:
        # Failures are told of by exceptions; librdkafka's own log would add lines to what must be one sentence.
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                "log_level": 0,
                "error_cb": self._note,
            }
        )
        self.bootstrap = bootstrap
        self._down: KafkaError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def is_embedded(self) -> bool:
        """Whether it is librdkafka's in-memory broker, which knows no administration."""
        return (self._consumer.list_topics(timeout=REQUEST_SECONDS).cluster_id or "").startswith("mockCluster")

    def topics(self) -> dict[str, list[int]]:
        """The partitions of each topic, Kafka's own topics left out."""
        found = self._consumer.list_topics(timeout=REQUEST_SECONDS).topics
        return {name: sorted(found[name].partitions) for name in sorted(found) if not name.startswith("__")}

    def bounds(self, topic: str) -> dict[int, Bounds]:
        """Of each partition; none when there is no such topic."""
        return {
            partition: Bounds(*self._consumer.get_watermark_offsets(TopicPartition(topic, partition), REQUEST_SECONDS))
            for partition in self.topics().get(topic, [])
        }

    def commits(self, topic: str) -> dict[int, Commit]:
        """What this group has committed, of partitions where it has."""
        asked = [TopicPartition(topic, partition) for partition in self.topics().get(topic, [])]
        found = self._consumer.committed(asked, REQUEST_SECONDS) if asked else []
        return {p.partition: Commit(p.offset, p.metadata or "") for p in found if p.offset > OFFSET_INVALID}

    def commit(self, topic: str, partition: int, commit: Commit) -> None:
        """Set what this group has committed."""
        position = TopicPartition(topic, partition, commit.offset, metadata=commit.note)
        for answer in self._consumer.commit(offsets=[position], asynchronous=False) or []:
            if answer.error is not None:
                raise KafkaException(answer.error)

    def read(self, topic: str, bounds: Mapping[int, Bounds]) -> Iterator[Event]:
        """The events between the bounds, in order within each partition."""
        ends = {partition: bound.end for partition, bound in bounds.items() if bound.first < bound.end}
        self._assign(topic, {partition: bounds[partition].first for partition in ends})
        heard = time.monotonic()
        while ends:
            if time.monotonic() - heard > SILENCE_SECONDS_MAX:
                raise KafkaException(f"{topic} gave nothing for {SILENCE_SECONDS_MAX} s")
            for message in self._poll():
                heard = time.monotonic()
                partition, offset = message.partition() or 0, message.offset() or 0
                # The last offset of a partition need not hold an event: transactions leave marks.
                if partition not in ends:
                    continue
                at_end = _is_end(message)
                if not at_end and offset < ends[partition]:
                    yield _event(message)
                if at_end or offset >= ends[partition] - 1:
                    del ends[partition]

    def follow(self, topic: str, start: Mapping[int, int]) -> Iterator[Event]:
        """The events from there on, without end."""
        self._assign(topic, start)
        while True:
            for message in self._poll():
                if not _is_end(message):
                    yield _event(message)

    def _poll(self) -> list[Message]:
        messages = self._consumer.consume(_BATCH, _POLL_SECONDS)
        if self._down is not None:
            raise KafkaException(self._down)
        return messages

    def _note(self, error: KafkaError) -> None:
        # The client would try again for ever, and say nothing; who reads here wants to know.
        if error.name() == "_ALL_BROKERS_DOWN":
            self._down = error

    def _assign(self, topic: str, start: Mapping[int, int]) -> None:
        self._consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in start.items()])


def count(bounds: Iterable[Bounds]) -> int:
    """How many events lie between the bounds."""
    return sum(bound.end - bound.first for bound in bounds)


def text(value: bytes | None) -> str:
    """Bytes for people; what is no UTF-8 is replaced."""
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
    """The time that a producer gave to its message; one that no calendar has reads as the beginning of 1970."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
