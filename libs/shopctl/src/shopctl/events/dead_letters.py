"""Dead letters, and the memory of which of them were redriven.

That memory is what the consumer group `dlq-redrive` has committed for the dead-letter topic: an offset below which all
are redriven, and in the commit's note those above it that were chosen one by one. It is in the broker, so that it is
one for all who redrive, and it lasts as long as a broker keeps the offsets of an idle group.
"""

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from shop_common.events.dead_letters import HEADER_PREFIX, SUFFIX
from shopctl.events.topics import REQUEST_SECONDS, Bounds, Broker, Commit, Event
from shopctl.terminal.failures import CommandFailed

GROUP = "dlq-redrive"
BATCH = 100
"""Letters that are produced before it is remembered."""

_MESSAGE_BYTES_MAX = 64 * 1024 * 1024  # the broker's own limit decides
_NOTE_BYTES_MAX = 4_000
"""A broker takes 4,096 (offset.metadata.max.bytes)."""


@dataclass(frozen=True)
class Redriven:
    """Offsets of one partition that were redriven: all below `before`, and `further` ones."""

    before: int
    further: frozenset[int] = frozenset()

    @classmethod
    def read(cls, commit: Commit | None, first: int) -> "Redriven":
        """From what was committed; what lay below the oldest letter is gone and needs no memory."""
        if commit is None:
            return cls(first)
        ranges = re.findall(r"(\d+)(?:-(\d+))?", commit.note)
        further = {offset for low, high in ranges for offset in range(int(low), int(high or low) + 1)}
        return cls(max(commit.offset, first)).adding(further)

    def __contains__(self, offset: int) -> bool:
        return offset < self.before or offset in self.further

    def adding(self, offsets: Collection[int]) -> "Redriven":
        """With these as well."""
        before, further = self.before, {offset for offset in (*self.further, *offsets) if offset >= self.before}
        while before in further:
            further.remove(before)
            before += 1
        return Redriven(before, frozenset(further))

    def commit(self) -> Commit:
        """To be committed. Raises CommandFailed when the note would be too long."""
        runs = groupby(enumerate(sorted(self.further)), lambda pair: pair[1] - pair[0])
        ends = [(members[0][1], members[-1][1]) for members in (list(run) for _, run in runs)]
        note = ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ends)
        if len(note) > _NOTE_BYTES_MAX:
            raise CommandFailed(
                "too many letters were redriven one by one to remember more; redrive the rest with --all"
            )
        return Commit(self.before, note)


class DeadLetters:
    """One dead-letter topic. `topic` is the original one's name or its own. Methods raise KafkaException."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self.original = topic.removesuffix(SUFFIX)
        self.topic = self.original + SUFFIX

    def bounds(self) -> dict[int, Bounds]:
        return self._broker.bounds(self.topic)

    def redriven(self, bounds: Mapping[int, Bounds]) -> dict[int, Redriven]:
        """The memory, for each partition."""
        commits = self._broker.commits(self.topic)
        return {number: Redriven.read(commits.get(number), bound.first) for number, bound in bounds.items()}

    def waiting(self) -> int:
        """How many were not redriven."""
        bounds = self.bounds()
        redriven = self.redriven(bounds)
        return sum(
            bound.end - min(redriven[number].before, bound.end) - len(redriven[number].further)
            for number, bound in bounds.items()
        )

    def letters(self, *, waiting: bool = False) -> Iterator[tuple[Event, bool]]:
        """Each with whether it was redriven; or only those that were not."""
        bounds = self.bounds()
        redriven = self.redriven(bounds)
        if waiting:
            bounds = {n: Bounds(min(redriven[n].before, bound.end), bound.end) for n, bound in bounds.items()}
        for event in self._broker.read(self.topic, bounds):
            done = event.offset in redriven[event.partition]
            if not (waiting and done):
                yield event, done

    def whole(self, letter: Event) -> Event | None:
        """The event as it was before it was set aside; None when that cannot be told.

        Anybody may write a letter, so its headers are only hints: what they say of the value has to be true of it.
        """
        value = _decoded(letter)
        if value is not None and letter.header("dlq_truncated"):
            value = self._original_value(letter, value)
        headers = tuple(header for header in letter.headers if not header[0].startswith(HEADER_PREFIX))
        return None if value is None else replace(letter, headers=headers, value=value)

    def _original_value(self, letter: Event, beginning: bytes) -> bytes | None:
        """What lies where the letter says that it came from, if it begins as the letter does."""
        place = [letter.header(f"dlq_{name}") for name in ("partition", "offset")]
        if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in place):
            return None
        partition, offset = map(int, place)
        # On a connection of its own: this one may be in the middle of reading the letters.
        with Broker(self._broker.bootstrap) as origin:
            bound = origin.bounds(self.original).get(partition)
            if bound is None or not bound.first <= offset < bound.end:
                return None
            found = list(origin.read(self.original, {partition: Bounds(offset, offset + 1)}))
        return found[0].value if found and found[0].value.startswith(beginning) else None

    def redrive(self, producer: Producer, events: Iterable[Event]) -> int:
        """Produce the events to their original topic, in the order given, and remember them. How many they were.

        At least once: what is produced and not remembered yet when we are cut off is redriven again. On a failure,
        those that the broker took before it are remembered.
        """
        count = 0
        remaining = iter(events)
        while batch := list(islice(remaining, BATCH)):
            # Asked first: what can't be remembered must not be produced.
            self._commits_after(batch)
            taken, failure = _produce(producer, self.original, batch)
            for number, commit in self._commits_after(taken).items():
                self._broker.commit(self.topic, number, commit)
            if failure is not None:
                raise failure
            count += len(taken)
        return count

    def _commits_after(self, events: Sequence[Event]) -> dict[int, Commit]:
        """What is to be committed for the partitions of these, once they are redriven."""
        redriven = self.redriven(self.bounds())
        chosen: dict[int, list[int]] = {}
        for event in events:
            chosen.setdefault(event.partition, []).append(event.offset)
        return {number: redriven[number].adding(offsets).commit() for number, offsets in chosen.items()}


def _decoded(letter: Event) -> bytes | None:
    """The letter's value without its encoding; None when it is not in the encoding that its header names."""
    if letter.header("dlq_encoding") != "base64":
        return letter.value
    try:
        return base64.b64decode(letter.value, validate=True)
    except ValueError:
        return None


def new_producer(bootstrap: str) -> Producer:
    """One that keeps the order, and puts a key into the partition that the relay put it into."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.max.bytes": _MESSAGE_BYTES_MAX,
            "message.timeout.ms": REQUEST_SECONDS * 1000,
            "log_level": 0,
        }
    )


def _produce(producer: Producer, topic: str, events: Sequence[Event]) -> tuple[list[Event], Exception | None]:
    """Those that the broker took, up to the first that it did not; and why."""
    outcomes: dict[int, KafkaError | None] = {}
    for number, event in enumerate(events):

        def delivered(error: KafkaError | None, _: Message, number: int = number) -> None:
            outcomes[number] = error

        headers: list[Any] = list(event.headers)
        producer.produce(topic, event.value, event.key, headers=headers, on_delivery=delivered)
    producer.flush(REQUEST_SECONDS * 2)
    taken: list[Event] = []
    for number, event in enumerate(events):
        if number not in outcomes:
            return taken, CommandFailed(
                f"Kafka did not take all letters in time; {len(taken)} of this batch are redriven"
            )
        if error := outcomes[number]:
            return taken, KafkaException(error)
        taken.append(event)
    return taken, None
