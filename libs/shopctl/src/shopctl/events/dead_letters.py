"""Reads and redrives dead letters, and records which of them were redriven.

The record is the offset that the consumer group `dlq-redrive` has committed for the dead-letter topic: all letters
below this offset are redriven. The commit's metadata lists the letters above the offset that were redriven one by one.
The broker stores the record, so all operators share it. The broker deletes the record when it deletes the offsets of an
idle group.
"""

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from shop_common.events.dead_letters import HEADER_PREFIX, SUFFIX
from shop_common.events.kafka_connection import KafkaConnection
from shopctl.events.topics import REQUEST_SECONDS, Bounds, Broker, Commit, Event
from shopctl.terminal.failures import CommandFailed

GROUP = "dlq-redrive"
BATCH = 100
"""The number of letters that are produced between two commits of the record."""

_MESSAGE_BYTES_MAX = 64 * 1024 * 1024  # high enough that the broker's limit applies
_NOTE_BYTES_MAX = 4_000
"""Below the broker's limit of 4,096 (offset.metadata.max.bytes)."""


@dataclass(frozen=True)
class Redriven:
    """The redriven offsets of one partition: all below `before`, and those in `further`."""

    before: int
    further: frozenset[int] = frozenset()

    @classmethod
    def read(cls, commit: Commit | None, first: int) -> "Redriven":
        """Parse a commit. `first` is the oldest offset in the partition; lower offsets need no record."""
        if commit is None:
            return cls(first)
        ranges = re.findall(r"(\d+)(?:-(\d+))?", commit.note)
        further = {offset for low, high in ranges for offset in range(int(low), int(high or low) + 1)}
        return cls(max(commit.offset, first)).adding(further)

    def __contains__(self, offset: int) -> bool:
        return offset < self.before or offset in self.further

    def adding(self, offsets: Collection[int]) -> "Redriven":
        """Return a record that includes these offsets."""
        before, further = self.before, {offset for offset in (*self.further, *offsets) if offset >= self.before}
        while before in further:
            further.remove(before)
            before += 1
        return Redriven(before, frozenset(further))

    def commit(self) -> Commit:
        """Return the record as a commit. Raises CommandFailed if its metadata would be too long."""
        runs = groupby(enumerate(sorted(self.further)), lambda pair: pair[1] - pair[0])
        ends = [(members[0][1], members[-1][1]) for members in (list(run) for _, run in runs)]
        note = ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ends)
        if len(note) > _NOTE_BYTES_MAX:
            raise CommandFailed("too many letters were redriven one by one to record more; redrive the rest with --all")
        return Commit(self.before, note)


class DeadLetters:
    """One dead-letter topic. `topic` is its own name or that of its original topic. Methods raise KafkaException."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self.original = topic.removesuffix(SUFFIX)
        self.topic = self.original + SUFFIX

    def bounds(self) -> dict[int, Bounds]:
        return self._broker.bounds(self.topic)

    def redriven(self, bounds: Mapping[int, Bounds]) -> dict[int, Redriven]:
        """Return the record of each partition."""
        commits = self._broker.commits(self.topic)
        return {number: Redriven.read(commits.get(number), bound.first) for number, bound in bounds.items()}

    def waiting(self) -> int:
        """Return the number of letters that were not redriven."""
        bounds = self.bounds()
        redriven = self.redriven(bounds)
        return sum(
            bound.end - min(redriven[number].before, bound.end) - len(redriven[number].further)
            for number, bound in bounds.items()
        )

    def letters(self, *, waiting: bool = False) -> Iterator[tuple[Event, bool]]:
        """Yield each letter, and whether it was redriven. With `waiting`, yield only letters that were not redriven."""
        bounds = self.bounds()
        redriven = self.redriven(bounds)
        if waiting:
            bounds = {n: Bounds(min(redriven[n].before, bound.end), bound.end) for n, bound in bounds.items()}
        for event in self._broker.read(self.topic, bounds):
            done = event.offset in redriven[event.partition]
            if not (waiting and done):
                yield event, done

    def whole(self, letter: Event) -> Event | None:
        """Return the original event, or None if it cannot be restored.

        Other clients may write to the topic, so headers are not trusted: the value must match what the headers state.
        """
        value = _decoded(letter)
        if value is not None and letter.header("dlq_truncated"):
            value = self._original_value(letter, value)
        headers = tuple(header for header in letter.headers if not header[0].startswith(HEADER_PREFIX))
        return None if value is None else replace(letter, headers=headers, value=value)

    def _original_value(self, letter: Event, beginning: bytes) -> bytes | None:
        """Return the value at the offset that the letter names as its origin, if it starts with the letter's value."""
        numbers = [letter.header(f"dlq_{name}") for name in ("partition", "offset")]
        if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in numbers):
            return None
        partition, offset = map(int, numbers)
        # Use a new connection, because a caller may be reading letters from this one.
        with Broker(self._broker.connection) as origin:
            bound = origin.bounds(self.original).get(partition)
            if bound is None or not bound.first <= offset < bound.end:
                return None
            found = list(origin.read(self.original, {partition: Bounds(offset, offset + 1)}))
        return found[0].value if found and found[0].value.startswith(beginning) else None

    def redrive(self, producer: Producer, events: Iterable[Event]) -> int:
        """Produce the events to their original topic, in the given order, and record them. Returns their number.

        Delivery is at least once: events that were produced but not recorded before an interruption are redriven
        again. After a failure, the events that the broker acknowledged before it are recorded.
        """
        count = 0
        remaining = iter(events)
        while batch := list(islice(remaining, BATCH)):
            # Check first that the record fits: an event that cannot be recorded must not be produced.
            self._commits_after(batch)
            acknowledged, failure = _produce(producer, self.original, batch)
            for number, commit in self._commits_after(acknowledged).items():
                self._broker.commit(self.topic, number, commit)
            if failure is not None:
                raise failure
            count += len(acknowledged)
        return count

    def _commits_after(self, events: Sequence[Event]) -> dict[int, Commit]:
        """Return the commit for each partition of these events, once they are redriven."""
        redriven = self.redriven(self.bounds())
        chosen: dict[int, list[int]] = {}
        for event in events:
            chosen.setdefault(event.partition, []).append(event.offset)
        return {number: redriven[number].adding(offsets).commit() for number, offsets in chosen.items()}


def _decoded(letter: Event) -> bytes | None:
    """Return the decoded value, or None if it is not in the encoding that its header names."""
    if letter.header("dlq_encoding") != "base64":
        return letter.value
    try:
        return base64.b64decode(letter.value, validate=True)
    except ValueError:
        return None


def new_producer(kafka: KafkaConnection) -> Producer:
    """Return a producer that keeps the order and maps keys to partitions as the relay does."""
    own = {
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "message.max.bytes": _MESSAGE_BYTES_MAX,
        "message.timeout.ms": REQUEST_SECONDS * 1000,
        "log_level": 0,
    }
    return Producer(kafka.configuration(own))


def _produce(producer: Producer, topic: str, events: Sequence[Event]) -> tuple[list[Event], Exception | None]:
    """Produce the events. Returns the acknowledged events before the first that failed, and the failure or None."""
    outcomes: dict[int, KafkaError | None] = {}
    for number, event in enumerate(events):

        def delivered(error: KafkaError | None, _: Message, number: int = number) -> None:
            outcomes[number] = error

        headers: list[Any] = list(event.headers)
        producer.produce(topic, event.value, event.key, headers=headers, on_delivery=delivered)
    producer.flush(REQUEST_SECONDS * 2)
    acknowledged: list[Event] = []
    for number, event in enumerate(events):
        if number not in outcomes:
            return acknowledged, CommandFailed(
                f"Kafka did not acknowledge all letters in time; {len(acknowledged)} of this batch are redriven"
            )
        if error := outcomes[number]:
            return acknowledged, KafkaException(error)
        acknowledged.append(event)
    return acknowledged, None
