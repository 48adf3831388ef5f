"""How far a consumer is in each of its partitions, and whether it moves there while something is to be read."""

import time
from collections.abc import Collection

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

STALL_SECONDS = 60.0
"""A partition stands still when something is to be read and nothing of it was done for so long."""

MEASURE_SECONDS = 2.0
ASK_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 10.0
_NEVER = -_ASK_AGAIN_SECONDS


class Progress:
    """The progress of one consumer. Only `lag` and `stalled` may be asked for on another thread than the consumer's.

    confluent-kafka's client is for one thread: another would wait for its gate, which a poll holds nearly always.
    """

    def __init__(self, kafka: confluent_kafka.Consumer, stall_seconds: float) -> None:
        self._kafka = kafka
        self._stall_seconds = stall_seconds
        self._handled: dict[int, int] = {}
        self._moved_at: dict[int, float] = {}
        self._in_hand: Collection[int] = ()
        self._active_at = self._measured_at = time.monotonic()
        self._standing: Collection[int] = ()
        # Oldest offset and end of a partition as the broker said, None when it did not answer; and when it was asked.
        self._asked: dict[int, tuple[tuple[int, int] | None, float]] = {}
        self.lag = 0

    def renewed(self, kafka: confluent_kafka.Consumer) -> None:
        """The client was replaced. What is known of partitions stays until they are assigned again."""
        self._kafka = kafka

    def assigned(self, partition: int, committed: int) -> None:
        """The partition came to this process; negative when it is not known what its group has committed."""
        self._handled[partition] = committed
        self._moved_at[partition] = time.monotonic()
        self._asked.pop(partition, None)

    def begun(self, partitions: Collection[int]) -> None:
        """Messages of these partitions are in hand, or of none."""
        self._in_hand = partitions
        self.moved()

    def moved(self) -> None:
        """Something of what is in hand was done."""
        self._active_at = time.monotonic()
        for partition in self._in_hand:
            self._moved_at[partition] = self._active_at

    def handled(self, partition: int, offset: int) -> None:
        """Everything below the offset is done."""
        self._handled[partition] = offset
        self._moved_at[partition] = time.monotonic()

    def stalled(self) -> list[int]:
        """The partitions that stand still, by the last measurement; all in hand if their handler does not return."""
        if time.monotonic() - self._active_at >= self._stall_seconds:
            return sorted(self._in_hand)
        return sorted(self._standing)

    def measure(self, *, database_away: bool) -> None:
        """Find out where this consumer is, if that is due.

        While the database is away nothing stands still for a reason of its own. Nor does it while the broker does not
        answer: it is not known whether there is something to read, and calls do not need the broker.
        """
        now = self._active_at = time.monotonic()
        if now - self._measured_at < MEASURE_SECONDS:
            return
        self._measured_at = now
        lag, standing = 0, []
        for partition in self._kafka.assignment():
            number = partition.partition
            unread = self._unread(partition)
            lag += unread
            if database_away or not unread:
                self._moved_at[number] = now
            elif now - self._moved_at.get(number, now) >= self._stall_seconds and self._asked_unread(partition):
                standing.append(number)
        self.lag, self._standing = lag, standing

    def _unread(self, partition: TopicPartition) -> int:
        """How many messages of a partition are not handled yet."""
        # What the last fetch said. When fetches fail, only the broker can tell whether there is something to read.
        bounds = self._kafka.get_watermark_offsets(partition, cached=True)
        return self._behind(partition, *bounds) or self._asked_unread(partition)

    def _asked_unread(self, partition: TopicPartition) -> int:
        """The same, by what the broker said when it was asked; 0 if it did not answer."""
        bounds, asked_at = self._asked.get(partition.partition, (None, _NEVER))
        if time.monotonic() - asked_at >= _ASK_AGAIN_SECONDS:
            try:
                bounds = self._kafka.get_watermark_offsets(partition, timeout=ASK_SECONDS)
            except KafkaException:
                bounds = None
            self._asked[partition.partition] = bounds, time.monotonic()
        return self._behind(partition, *bounds) if bounds else 0

    def _behind(self, partition: TopicPartition, low: int, high: int) -> int:
        return max(0, high - max(low, self._handled.get(partition.partition, low)))
