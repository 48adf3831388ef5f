"""Reads a topic as a member of a consumer group: batches of messages, and what is done of them committed.

librdkafka commits what was stored in the background, and when partitions move and at the end
(`enable.auto.commit`); what is stored is decided here (`enable.auto.offset.store` is off). So no batch waits
for a commit, and nothing unfinished is committed.
"""

import math
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from shop_common.events import received
from shop_common.events.consumer_metrics import ConsumerMetrics
from shop_common.events.consumer_progress import QUERY_SECONDS, Progress
from shop_common.events.kafka_connection import CredentialFiles, KafkaConnection
from shop_common.events.received import Received
from shop_common.telemetry import logs

BATCH_MESSAGES_MAX = 500
IDLE_POLL_SECONDS = 0.2
COMPLAINT_SECONDS = 60.0

SESSION_SECONDS = 6.0
"""A process that was killed stays a member of its group for so long. Apache Kafka takes no less by default."""

CLOSE_SECONDS_MAX = 5.0
"""How long a client that is replaced may take to leave its group."""

_PREFETCH_KILOBYTES_MAX = 8192

_log = logs.get(__name__)


class Stopped(BaseException):
    """Told to stop while waiting. No Exception, so that it is never taken for the failure of a handler."""


class TopicReader:
    """The topic as one member of the group reads it. For one thread."""

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
        self._complained_at = -math.inf

    def join(self) -> None:
        """Join the group. A broker that is away is waited for."""
        self._kafka.subscribe([self._topic], on_assign=self._on_assign)

    def renew(self) -> None:
        """Join anew with a new client if there are new credentials. No batch may be unfinished."""
        if not self._credentials.renewed():
            return
        new = self._new_client()
        # What was polled and not handled yet comes again: it is not committed.
        self._early.clear()
        self._ends.clear()
        self._close()
        self._kafka = new
        self.progress.renewed(new)
        self.join()

    def leave(self) -> None:
        """Commit what is done, and leave the group. Nothing else may use the reader any more."""
        self._kafka.close()

    def next_batch(self) -> list[Received]:
        """What has arrived, after a short wait if nothing has. `done` is to be called with it."""
        messages, self._early = self._early, []
        # `consume` would wait until its list is full, so that it only takes what is there already.
        first = self._kafka.poll(0 if messages else IDLE_POLL_SECONDS)
        if first is not None:
            messages += self._read([first, *self._kafka.consume(BATCH_MESSAGES_MAX - 1, 0)])
        self._look_for_gaps(messages)
        self.progress.begun({message.partition for message in messages})
        return messages

    def done(self, messages: Sequence[Received]) -> None:
        """Let the offsets behind these messages be committed."""
        self.progress.begun(())
        done = {message.partition: message.offset + 1 for message in messages}
        for partition, offset in done.items():
            try:
                self._kafka.store_offsets(offsets=[TopicPartition(self._topic, partition, offset)])
                self.progress.handled(partition, offset)
            except KafkaException:
                # The partition has moved to another member meanwhile, which does these events again.
                _log.info("partition has moved while its events were handled", topic=self._topic, partition=partition)
        ends, self._ends = self._ends, {}
        for partition, offset in ends.items():
            # Beyond the last message there may be offsets without one: marks that transactions leave.
            if offset >= done.get(partition, 0):
                self.progress.handled(partition, offset)

    def wait(self, seconds: float, stopping: threading.Event, *, database_away: bool) -> None:
        """Wait, and poll at least once meanwhile: the group removes a member that does not poll. Raises Stopped."""
        self._waiting = True
        self._kafka.pause(self._kafka.assignment())
        try:
            until = time.monotonic() + seconds
            left = seconds
            while left >= 0:
                if stopping.is_set():
                    raise Stopped
                message = self._kafka.poll(min(left, IDLE_POLL_SECONDS))
                if message is not None:
                    # Not expected of paused partitions; but a message that was polled doesn't come again.
                    self._early += self._read([message])
                self.progress.measure(database_away=database_away)
                left = until - time.monotonic()
        finally:
            self._waiting = False
            self._kafka.resume(self._kafka.assignment())

    def _new_client(self) -> confluent_kafka.Consumer:
        return confluent_kafka.Consumer(self._connection.configuration(self._options))

    def _close(self) -> None:
        """Commit what is done and leave the group, before the new client joins it."""
        # librdkafka waits for ever if no broker answers the old client. Then the group removes the old member when its
        # session ends, and what it has not committed is done again.
        closing = threading.Thread(target=self._kafka.close, name=f"close-{self._topic}", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS_MAX)

    def _read(self, messages: Iterable[Message]) -> list[Received]:
        """Those that are messages; others stand for an error, or for the end of a partition."""
        sound = []
        for message in messages:
            error = message.error()
            if error is None:
                sound.append(received.read(message))
            elif error.name() == "_PARTITION_EOF":
                self._ends[message.partition() or 0] = message.offset() or 0
            else:
                self._on_kafka_error(error)
        return sound

    def _look_for_gaps(self, messages: Sequence[Received]) -> None:
        """The broker deletes by age. What it deleted before we came to it is passed over, but not in silence."""
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
        # librdkafka keeps the pause of a partition that was taken away meanwhile: it comes back paused.
        (kafka.pause if self._waiting else kafka.resume)(partitions)
        for partition in partitions:
            self._expected.pop(partition.partition, None)
            self._ends.pop(partition.partition, None)
            self.progress.assigned(partition.partition, -1)
        with suppress(KafkaException):  # without an answer a gap before the first message is not seen
            for committed in kafka.committed(partitions, timeout=QUERY_SECONDS):
                if committed.offset >= 0:
                    self._expected[committed.partition] = committed.offset
                    self.progress.assigned(committed.partition, committed.offset)

    def _on_kafka_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise KafkaException(error)
        # librdkafka mends everything else itself, and says at each try that it has not succeeded yet.
        now = time.monotonic()
        if now - self._complained_at > COMPLAINT_SECONDS:
            self._complained_at = now
            _log.warning("no events from the broker", topic=self._topic, error=error.str())


def options(group: str, session_seconds: float) -> dict[str, Any]:
    """Return the options of a consumer in this group, besides those of its connection."""
    return {
        "group.id": group,
        "client.id": group,
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 500,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        # The relay writes no transactions. One that a stranger leaves open must not keep us from what is behind it.
        "isolation.level": "read_uncommitted",
        "enable.partition.eof": True,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": int(session_seconds * 1000),
        "heartbeat.interval.ms": int(session_seconds * 1000 / 3),
        # Apache Kafka answers a fetch when there is something, the embedded broker only when this time is up.
        "fetch.wait.max.ms": 100,
        "queued.max.messages.kbytes": _PREFETCH_KILOBYTES_MAX,
        # How soon a topic that was not there yet is found. Not the five seconds that the embedded broker takes to
        # share partitions out: a refresh at that very moment makes it begin anew.
        "topic.metadata.refresh.interval.ms": 3000,
        "reconnect.backoff.max.ms": 1000,
        # Its own lines would flood the log while a broker is away; `_on_kafka_error` says it in one.
        "log_level": 0,
    }
