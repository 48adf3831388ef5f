"""Reads a topic as a member of a consumer group: returns batches of messages, and commits the handled ones.

This module stores the offsets of handled messages (`enable.auto.offset.store` is off). librdkafka commits the stored
offsets in the background, when partitions are revoked, and at the end (`enable.auto.commit`). So no batch waits for a
commit, and no unfinished batch is committed.
"""

import math
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from shop_common.environment.files import FileUnusable
from shop_common.events import received
from shop_common.events.consumer_metrics import ConsumerMetrics
from shop_common.events.consumer_progress import QUERY_SECONDS, Progress
from shop_common.events.kafka_connection import CredentialFiles, KafkaConnection
from shop_common.events.received import Received
from shop_common.telemetry import logs

BATCH_MESSAGES_MAX = 500
IDLE_POLL_SECONDS = 0.2
ERROR_LOG_SECONDS = 60.0

SESSION_SECONDS = 6.0
"""A killed process stays a member of its group for this time. By default Apache Kafka accepts no shorter time."""

CLOSE_SECONDS_MAX = 5.0
"""Time limit for a replaced client to leave its group."""

_PREFETCH_KILOBYTES_MAX = 8192

_log = logs.get(__name__)


class Stopped(BaseException):
    """The consumer is stopping. It is a BaseException, so that no code treats it as the failure of a handler."""


class TopicReader:
    """The consumer group member of this process. Use it from one thread only."""

    def __init__(
        self,
        *,
        kafka: KafkaConnection,
        group: str,
        topic: str,
        metrics: ConsumerMetrics,
        session_seconds: float,
        stall_seconds: float,
    ) -> None:
        self._connection = kafka
        self._options = options(group, session_seconds) | {"error_cb": self._on_kafka_error}
        self._credentials = CredentialFiles(kafka)
        self._kafka = self._new_client()
        self._topic = topic
        self._metrics = metrics
        self.progress = Progress(self._kafka, stall_seconds)
        self._waiting = False
        self._early: list[Received] = []
        self._ends: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._error_logged_at = -math.inf

    def join(self) -> None:
        """Join the group. If the broker is unavailable, librdkafka keeps trying to connect."""
        self._kafka.subscribe([self._topic], on_assign=self._on_assign)

    def renew(self) -> None:
        """If the credentials have changed, join the group again with a new client. Call it only between batches."""
        if not self._credentials.renewed():
            return
        try:
            new = self._new_client()
        except (KafkaException, FileUnusable):
            return  # The files have just changed again. The next check notices that.
        # Messages that were polled but not handled are not committed, so the new client receives them again.
        self._early.clear()
        self._ends.clear()
        self._close()
        self._kafka = new
        self.progress.renewed(new)
        self.join()

    def leave(self) -> None:
        """Commit the stored offsets and leave the group. The reader cannot be used afterwards."""
        self._kafka.close()

    def next_batch(self) -> list[Received]:
        """Return the messages that have arrived, after a short wait if there are none. Pass handled ones to `done`."""
        messages, self._early = self._early, []
        # `consume` with a timeout would wait until its list is full. Timeout 0 takes only what has arrived.
        first = self._kafka.poll(0 if messages else IDLE_POLL_SECONDS)
        if first is not None:
            messages += self._read([first, *self._kafka.consume(BATCH_MESSAGES_MAX - 1, 0)])
        self._look_for_gaps(messages)
        self.progress.begun({message.partition for message in messages})
        return messages

    def done(self, messages: Sequence[Received]) -> None:
        """Store the offsets after these messages, so that librdkafka commits them."""
        self.progress.begun(())
        done = {message.partition: message.offset + 1 for message in messages}
        for partition, offset in done.items():
            try:
                self._kafka.store_offsets(offsets=[TopicPartition(self._topic, partition, offset)])
                self.progress.handled(partition, offset)
            except KafkaException:
                # The offset stays uncommitted, so another consumer handles the event again. A repeat has no second
                # effect.
                _log.info(
                    "the partition was assigned to another consumer, which handles these events again",
                    topic=self._topic,
                    partition=partition,
                )
        ends, self._ends = self._ends, {}
        for partition, offset in ends.items():
            # The end may be beyond the last message: the markers of transactions occupy offsets.
            if offset >= done.get(partition, 0):
                self.progress.handled(partition, offset)

    def wait(self, seconds: float, stopping: threading.Event, *, database_away: bool) -> None:
        """Wait, and poll at least once, because the group removes a member that does not poll. Raises Stopped."""
        self._waiting = True
        self._kafka.pause(self._kafka.assignment())
        try:
            deadline = time.monotonic() + seconds
            left = seconds
            while left >= 0:
                if stopping.is_set():
                    raise Stopped
                message = self._kafka.poll(min(left, IDLE_POLL_SECONDS))
                if message is not None:
                    # A paused partition should return no message. If it does, keep the message: the client returns each
                    # message only once.
                    self._early += self._read([message])
                self.progress.measure(database_away=database_away)
                left = deadline - time.monotonic()
        finally:
            self._waiting = False
            self._kafka.resume(self._kafka.assignment())

    def _new_client(self) -> confluent_kafka.Consumer:
        return confluent_kafka.Consumer(self._connection.configuration(self._options))

    def _close(self) -> None:
        """Commit the stored offsets and leave the group, before the new client joins it."""
        # librdkafka waits without limit if no broker responds to the old client. The group then removes the old member
        # when its session expires, and its uncommitted messages are handled again.
        closing = threading.Thread(target=self._kafka.close, name=f"close-{self._topic}", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS_MAX)

    def _read(self, messages: Iterable[Message]) -> list[Received]:
        """Convert messages. Handles the pseudo-messages that report an error or the end of a partition."""
        read = []
        for message in messages:
            error = message.error()
            if error is None:
                read.append(received.read(message))
            elif error.name() == "_PARTITION_EOF":
                self._ends[message.partition() or 0] = message.offset() or 0
            else:
                self._on_kafka_error(error)
        return read

    def _look_for_gaps(self, messages: Sequence[Received]) -> None:
        """Log and count messages that the broker deleted, by age or size, before this process read them."""
        for message in messages:
            _, partition, offset = message.position
            expected = self._expected.get(partition, offset)
            if offset > expected:
                self._metrics.missed(offset - expected)
                _log.error(
                    "events were deleted from the topic before they were handled",
                    topic=self._topic,
                    partition=partition,
                    first_offset=expected,
                    count=offset - expected,
                )
            self._expected[partition] = offset + 1

    def _on_assign(self, kafka: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        kafka.incremental_assign(partitions)
        # A partition that was paused when it was revoked is still paused when it is assigned again.
        (kafka.pause if self._waiting else kafka.resume)(partitions)
        for partition in partitions:
            self._expected.pop(partition.partition, None)
            self._ends.pop(partition.partition, None)
            self.progress.assigned(partition.partition, -1)
        with suppress(KafkaException):  # without a response, a gap before the first message is not detected
            for committed in kafka.committed(partitions, timeout=QUERY_SECONDS):
                if committed.offset >= 0:
                    self._expected[committed.partition] = committed.offset
                    self.progress.assigned(committed.partition, committed.offset)

    def _on_kafka_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise KafkaException(error)
        # librdkafka recovers from all other errors itself, and reports each failed attempt.
        now = time.monotonic()
        if now - self._error_logged_at > ERROR_LOG_SECONDS:
            self._error_logged_at = now
            _log.warning("no events from the broker", topic=self._topic, error=error.str())


def options(group: str, session_seconds: float) -> dict[str, Any]:
    """Return the options of a consumer in this group, without those of its connection."""
    return {
        "group.id": group,
        "client.id": group,
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 500,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        # The relay uses no transactions. An open transaction of another producer must not block the messages after it.
        "isolation.level": "read_uncommitted",
        "enable.partition.eof": True,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": int(session_seconds * 1000),
        "heartbeat.interval.ms": int(session_seconds * 1000 / 3),
        # Apache Kafka responds to a fetch as soon as there are messages. The embedded broker waits for this time.
        "fetch.wait.max.ms": 100,
        "queued.max.messages.kbytes": _PREFETCH_KILOBYTES_MAX,
        # A new topic is found within this time. It must not be five seconds: the embedded broker takes five seconds to
        # assign partitions, and a refresh at that moment makes it start the assignment again.
        "topic.metadata.refresh.interval.ms": 3000,
        "reconnect.backoff.max.ms": 1000,
        # librdkafka logs many lines while a broker is unavailable. `_on_kafka_error` logs one instead.
        "log_level": 0,
    }
