"""Measures a consumer's lag, and detects stalled partitions: messages wait there, and none of them is handled."""

import time
from collections.abc import Collection

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

STALL_SECONDS = 60.0
"""A partition is stalled if messages wait and none was handled for this time."""

MEASURE_SECONDS = 2.0
QUERY_SECONDS = 0.5
_QUERY_INTERVAL_SECONDS = 10.0
_NEVER = -_QUERY_INTERVAL_SECONDS


class Progress:
    """The progress of one consumer. Threads other than the consumer's may only read `lag` and call `stalled`.

    confluent-kafka's client holds a lock while it polls, which is most of the time. Another thread that uses the client
    would wait for this lock.
    """

    def __init__(self, kafka: confluent_kafka.Consumer, stall_seconds: float) -> None:
        self._kafka = kafka
        self._stall_seconds = stall_seconds
        self._handled: dict[int, int] = {}
        self._moved_at: dict[int, float] = {}
        self._in_progress: Collection[int] = ()
        self._active_at = self._measured_at = time.monotonic()
        self._stalled_partitions: Collection[int] = ()
        self._queried: dict[int, tuple[tuple[int, int] | None, float]] = {}
        """By partition: the low and high offset (None if the broker did not respond), and the time of the query."""
        self.lag = 0

    def renewed(self, kafka: confluent_kafka.Consumer) -> None:
        """Use this new client. The recorded progress of a partition stays until the partition is assigned again."""
        self._kafka = kafka

    def assigned(self, partition: int, committed: int) -> None:
        """Record that the partition was assigned. `committed` is the group's offset, negative if it is not known."""
        self._handled[partition] = committed
        self._moved_at[partition] = time.monotonic()
        self._queried.pop(partition, None)

    def begun(self, partitions: Collection[int]) -> None:
        """Record the partitions whose messages are being handled. `partitions` is empty when the batch is done."""
        self._in_progress = partitions
        self.moved()

    def moved(self) -> None:
        """Record that some messages of the current batch were handled."""
        self._active_at = time.monotonic()
        for partition in self._in_progress:
            self._moved_at[partition] = self._active_at

    def handled(self, partition: int, offset: int) -> None:
        """Record that all messages below the offset were handled."""
        self._handled[partition] = offset
        self._moved_at[partition] = time.monotonic()

    def stalled(self) -> list[int]:
        """Return the stalled partitions at the last measurement or, if a handler hangs, the partitions of its batch."""
        if time.monotonic() - self._active_at >= self._stall_seconds:
            return sorted(self._in_progress)
        return sorted(self._stalled_partitions)

    def measure(self, *, database_away: bool) -> None:
        """Measure lag and stalled partitions, if MEASURE_SECONDS have passed since the last time.

        No partition counts as stalled while the database is unavailable, or while the broker does not respond. Without
        the broker it is unknown whether messages wait, and the process can still serve calls.
        """
        now = self._active_at = time.monotonic()
        if now - self._measured_at < MEASURE_SECONDS:
            return
        self._measured_at = now
        lag, stalled = 0, []
        for partition in self._kafka.assignment():
            number = partition.partition
            unread = self._unread(partition)
            lag += unread
            if database_away or not unread:
                self._moved_at[number] = now
            elif now - self._moved_at.get(number, now) >= self._stall_seconds and self._queried_unread(partition):
                stalled.append(number)
        self.lag, self._stalled_partitions = lag, stalled

    def _unread(self, partition: TopicPartition) -> int:
        """Return how many messages of a partition are not handled yet."""
        # The cached offsets come from the last fetch. If fetches fail, only a query shows whether messages wait.
        bounds = self._kafka.get_watermark_offsets(partition, cached=True)
        return self._behind(partition, *bounds) or self._queried_unread(partition)

    def _queried_unread(self, partition: TopicPartition) -> int:
        """Query the broker for the number of unhandled messages, at most every ten seconds. Returns 0 if that fails."""
        bounds, queried_at = self._queried.get(partition.partition, (None, _NEVER))
        if time.monotonic() - queried_at >= _QUERY_INTERVAL_SECONDS:
            try:
                bounds = self._kafka.get_watermark_offsets(partition, timeout=QUERY_SECONDS)
            except KafkaException:
                bounds = None
            self._queried[partition.partition] = bounds, time.monotonic()
        return self._behind(partition, *bounds) if bounds else 0

    def _behind(self, partition: TopicPartition, low: int, high: int) -> int:
        return max(0, high - max(low, self._handled.get(partition.partition, low)))
