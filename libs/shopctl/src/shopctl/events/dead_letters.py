"""Redrives dead letters to their topic with a producer, and records which of them were redriven."""

import base64
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from shop_common.events.broker import REQUEST_SECONDS, Bounds, Broker, Commit, Event
from shop_common.events.dead_letter_topic import DeadLetterTopic, RecordFull
from shop_common.events.dead_letters import HEADER_PREFIX
from shop_common.events.kafka_connection import KafkaConnection
from shopctl.terminal.failures import CommandFailed

BATCH = 100
"""The number of letters that are produced between two commits of the record."""

_MESSAGE_BYTES_MAX = 64 * 1024 * 1024  # high enough that the broker's limit applies


class DeadLetters(DeadLetterTopic):
    """A dead-letter topic whose letters a command can redrive. Methods raise KafkaException."""

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

    def _commits_after(self, letters: Collection[Event]) -> dict[int, Commit]:
        try:
            return self.commits_after(letters)
        except RecordFull as error:
            raise CommandFailed(str(error)) from None


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
