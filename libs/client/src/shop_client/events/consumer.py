"""Calls a handler for each event, as a member of a consumer group."""

import itertools
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from shop_client.events.dead_letters import DeadLetters
from shop_client.events.event import Event, Undecodable, decode
from shop_client.events.repeats import Repeats

POLL_SECONDS = 0.2
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 5.0
ATTEMPTS_MAX = 5

Handler = Callable[[Event], None]

_log = logging.getLogger("shop_client.events")


class EventConsumer:
    """Calls `handler` with one event at a time, in the order of each partition. Create one for each thread.

    - At least once: an offset is committed only after the handler has returned. After a crash, the events since the
      last commit are handled again.
    - Repeats: an event is dropped if this object has handled it, or a later event of the same order, reservation or
      item. It remembers the last 100,000 of these. After a restart it remembers none, so a handler that must not repeat
      an effect also has to store `event.sequence` with the effect.
    - Failures: an event whose handler raises an Exception is tried again, up to `attempts_max` times, or without limit
      if that is None. Then it is sent to the topic `TOPIC.GROUP.dlq`, and so is a message that is not an event. If that
      fails too, the consumer waits and tries again: it never skips an event.

    `types` are the types of events that the handler gets; None for all. `connection` has options of librdkafka for the
    connections to the brokers, such as those of TLS, and `options` has further ones for the consumer. Handlers must
    return within five minutes, the default of `max.poll.interval.ms`.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        types: Collection[str] | None = None,
        attempts_max: int | None = ATTEMPTS_MAX,
        connection: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        to_broker = {"client.id": group, **(connection or {}), "bootstrap.servers": bootstrap_servers}
        self._topics = list(topics)
        self._handler = handler
        self._types = None if types is None else frozenset(types)
        self._attempts_max = attempts_max
        self._kafka = Consumer(
            {
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "cooperative-sticky",
                **(options or {}),
                **to_broker,
                "group.id": group,
                # Only offsets of handled messages are stored. librdkafka commits the stored ones in the background,
                # when partitions are revoked, and at the end.
                "enable.auto.commit": True,
                "enable.auto.offset.store": False,
            }
        )
        self._dead_letters = DeadLetters(to_broker, group)
        self._repeats = Repeats()
        self._early: deque[Message] = deque()
        """Messages that arrived while the consumer waited for the next attempt of a handler."""
        self._is_waiting = False
        self._is_stopping = False

    def run(self) -> None:
        """Handle events until `stop` is called, then commit and leave the group. Call it once.

        Raises KafkaException if librdkafka cannot recover, for example because the group may not be joined. A
        BaseException of the handler that is not an Exception ends the consumer, and the event is handled again later.
        """
        try:
            self._kafka.subscribe(self._topics, on_assign=self._on_assign)
            while not self._is_stopping:
                message = self._early.popleft() if self._early else self._poll(POLL_SECONDS)
                if message is not None and self._process(message):
                    self._store_offset(message)
        finally:
            self._kafka.close()

    def stop(self) -> None:
        """Let `run` return after the current event. May be called from a signal handler or another thread."""
        self._is_stopping = True

    def _process(self, message: Message) -> bool:
        """Handle the message or send it to the dead letters. Returns False if `stop` was called before that."""
        try:
            event = decode(message)
        except Undecodable as error:
            return self._set_aside(message, "UNDECODABLE", error)
        if (self._types is not None and event.type not in self._types) or self._repeats.includes(event):
            return True
        for attempt in itertools.count(1):
            try:
                self._handler(event)
            except Exception as error:
                _log.warning("attempt %d to handle %s failed", attempt, _position(message), exc_info=error)
                if attempt == self._attempts_max:
                    return self._set_aside(message, "FAILED", error)
            else:
                self._repeats.add(event)
                return True
            if not self._wait(_pause(attempt)):
                return False
        raise AssertionError("unreachable: the loop has no end")

    def _set_aside(self, message: Message, reason: str, error: Exception) -> bool:
        """Send the message to the dead letters. Returns False if `stop` was called before that succeeded."""
        for attempt in itertools.count(1):
            try:
                self._dead_letters.send(message, reason, error)
            except (KafkaException, BufferError) as failure:
                _log.error(
                    "%s waits, because it cannot be written to the dead-letter topic: %s", _position(message), failure
                )
            else:
                _log.error("%s was sent to the dead letters: %s %r", _position(message), reason, error)
                return True
            if not self._wait(_pause(attempt)):
                return False
        raise AssertionError("unreachable: the loop has no end")

    def _wait(self, seconds: float) -> bool:
        """Wait, and poll meanwhile, because a group removes a member that does not poll. False if `stop` was called."""
        deadline = time.monotonic() + seconds
        self._is_waiting = True
        self._kafka.pause(self._kafka.assignment())
        try:
            while not self._is_stopping and (left := deadline - time.monotonic()) > 0:
                message = self._poll(min(left, POLL_SECONDS))
                if message is not None:  # from a buffer: paused partitions fetch nothing
                    self._early.append(message)
        finally:
            self._is_waiting = False
            self._kafka.resume(self._kafka.assignment())
        return not self._is_stopping

    def _poll(self, seconds: float) -> Message | None:
        """Return the next message, or None. Raises KafkaException for an error from which librdkafka cannot recover."""
        message = self._kafka.poll(seconds)
        error = None if message is None else message.error()
        if error is None:
            return message
        if error.fatal() or not error.retriable():
            _log.warning("no events from the broker: %s", error.str())
        if error.fatal():
            raise KafkaException(error)
        return None

    def _store_offset(self, message: Message) -> None:
        # It fails if the partition now belongs to another member, which handles the event again.
        with suppress(KafkaException):
            self._kafka.store_offsets(message)

    def _on_assign(self, kafka: Consumer, partitions: list[TopicPartition]) -> None:
        kafka.incremental_assign(partitions)
        # A partition that was paused when it was revoked is still paused when it is assigned again.
        (kafka.pause if self._is_waiting else kafka.resume)(partitions)


def _position(message: Message) -> str:
    return f"{message.topic()}/{message.partition()}/{message.offset()}"


def _pause(attempt: int) -> float:
    longest: float = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2.0 ** min(attempt, 20))
    return longest * random.uniform(0.5, 1)
