"""One dead-letter topic, and the record of which of its letters were redriven.

The record is the offset that the consumer group `dlq-redrive` has committed for the dead-letter topic: all letters
below this offset are redriven. The commit's metadata lists the letters above the offset that were redriven one by one.
The broker stores the record, so all operators share it. The broker deletes the record when it deletes the offsets of an
idle group.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from shop_common.events.broker import Bounds, Broker, Commit, Event
from shop_common.events.dead_letters import SUFFIX

GROUP = "dlq-redrive"

_NOTE_BYTES_MAX = 4_000
"""Below the broker's limit of 4,096 (offset.metadata.max.bytes)."""


class RecordFull(Exception):
    """The record of a partition has no room for further letters that are redriven one by one."""


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
        """Return the record as a commit. Raises RecordFull if its metadata would be too long."""
        runs = groupby(enumerate(sorted(self.further)), lambda pair: pair[1] - pair[0])
        ends = [(members[0][1], members[-1][1]) for members in (list(run) for _, run in runs)]
        note = ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ends)
        if len(note) > _NOTE_BYTES_MAX:
            raise RecordFull("too many letters were redriven one by one to record more; redrive the rest with --all")
        return Commit(self.before, note)


class DeadLetterTopic:
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

    def commits_after(self, letters: Collection[Event]) -> dict[int, Commit]:
        """Return the commit of each partition once these letters are redriven. Raises RecordFull."""
        redriven = self.redriven(self.bounds())
        chosen: dict[int, list[int]] = {}
        for letter in letters:
            chosen.setdefault(letter.partition, []).append(letter.offset)
        return {number: redriven[number].adding(offsets).commit() for number, offsets in chosen.items()}
