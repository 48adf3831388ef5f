"""Acts on the events of a topic: one thread, in batches, each event at least once and each key's in order.

A batch is what has arrived, up to 500 messages. Each operation gets its events as a list and a transaction of its
own, since it takes its locks in the order that is the same everywhere; two in one transaction would not. Offsets are
stored when all of the batch is done, so that after a crash it is done again: operations are safe to repeat by the
state that they check.

librdkafka commits what was stored in the background, and when partitions move and at the end
(`enable.auto.commit`); what is stored is decided here (`enable.auto.offset.store` is off). So no batch waits
for a commit, and nothing unfinished is committed.
"""

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from sqlalchemy import Connection

from shop_common import dead_letters, logs, received, sql
from shop_common.consumer_metrics import ConsumerMetrics
from shop_common.database import Database
from shop_common.dead_letters import Reason
from shop_common.errors import Conflict, Overload, ShopError, Unavailable
from shop_common.outbox import Outbox
from shop_common.received import Describe, Event, Position, Received, Undecodable

__all__ = ["Consumer", "Event", "Handler"]

Handler = Callable[[Connection, Sequence[Event]], bool | None]
"""Acts on events of one type, in the order given; safe to repeat; never commits.

True means that more is to be done than one transaction should: it is called again with the same events, in a
transaction of its own, until it returns anything else. Each such call must get something done.
"""

_T = TypeVar("_T")

BATCH_MESSAGES_MAX = 500
IDLE_POLL_SECONDS = 0.2
TRIES_MAX = 5
"""How often an event is tried alone before it is set aside."""

LETTER_BYTES_MAX = 4_000_000
"""Of the values that are set aside in one transaction."""

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 2.0
COMPLAINT_SECONDS = 60.0
LAG_SECONDS = 2.0
ASK_SECONDS = 0.5
STOP_SECONDS_MAX = 5.0

SESSION_SECONDS = 6.0
"""A process that was killed stays a member of its group for so long. Apache Kafka takes no less by default."""

_PREFETCH_KILOBYTES_MAX = 8192

_log = logs.get(__name__)


@dataclass(frozen=True)
class _Letter:
    """A message that is to be set aside, and why."""

    position: Position
    reason: Reason
    error: Exception


class Consumer:
    """The consumer of one topic for one service.

    `handlers` by event type; messages of other types are passed over by their header alone. `describe` says what the
    span of an event tells of it. `set_ready` is told False while the database is away, and True when it is back. `die`
    must end the process: without this thread it only seems to work.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        group: str,
        topic: str,
        handlers: Mapping[str, Handler],
        describe: Describe = lambda _event: {},
        database: Database,
        outbox: Outbox,
        set_ready: Callable[[bool], None],
        die: Callable[[str, BaseException], None],
        session_seconds: float = SESSION_SECONDS,
    ) -> None:
        settings = _settings(bootstrap_servers, group, session_seconds)
        self._kafka = confluent_kafka.Consumer(settings | {"error_cb": self._on_kafka_error})
        self._group = group
        self._topic = topic
        self._handlers = handlers
        self._describe = describe
        self._database = database
        self._outbox = outbox
        self._set_ready = set_ready
        self._die = die
        self._metrics = ConsumerMetrics(topic)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"consumer-{topic}", daemon=True)
        self._waiting = False
        self._early: list[Received] = []
        self._expected: dict[int, int] = {}
        self._trouble = ""
        self._complained_at = -math.inf
        self._in_hand = 0
        self._lag = 0
        self._lag_measured_at = -math.inf

    def start(self) -> None:
        """Join the group and begin. A broker that is away is waited for."""
        self._kafka.subscribe([self._topic], on_assign=self._on_assign)
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch that runs, commit, leave the group. A batch that waits for the database is left undone."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS_MAX)
        if self._thread.is_alive():
            # Without an answer librdkafka waits for its broker for ever. The group notices by the missing heartbeat.
            _log.warning("consumer not stopped in time; what it has not committed is done again", topic=self._topic)

    def lag(self) -> int:
        """How many messages this process has still to do, as of the last seconds."""
        return self._lag

    def _run(self) -> None:
        try:
            try:
                while not self._stopping.is_set():
                    if messages := self._next_batch():
                        self._work(messages)
                    self._measure_lag()
            except _Stopped:
                pass  # nothing of the batch is stored
            self._kafka.close()
        except BaseException as error:
            self._die(f"the consumer of {self._topic} died", error)

    def _next_batch(self) -> list[Received]:
        messages, self._early = self._early, []
        # `consume` would wait until its list is full, so that it only takes what is there already.
        first = self._kafka.poll(0 if messages else IDLE_POLL_SECONDS)
        if first is not None:
            messages += self._read([first, *self._kafka.consume(BATCH_MESSAGES_MAX - 1, 0)])
        self._look_for_gaps(messages)
        return messages

    def _read(self, messages: Iterable[Message]) -> list[Received]:
        return [received.read(message) for message in messages if self._is_sound(message)]

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

    def _work(self, messages: Sequence[Received]) -> None:
        self._in_hand = len(messages)
        events, letters = self._events(messages)
        for step in received.in_sequence(events):
            letters += self._handle(step)
        self._set_aside(messages, letters)
        self._store(messages)
        self._in_hand = 0
        self._recovered()

    def _events(self, messages: Sequence[Received]) -> tuple[list[Event], list[_Letter]]:
        """The messages that have a handler, as events; and those that are no events."""
        events: list[Event] = []
        letters: list[_Letter] = []
        for message in messages:
            event_type = received.type_of(message)
            if event_type is not None and event_type not in self._handlers:
                continue
            try:
                event = received.decode(message)
            except Undecodable as error:
                letters.append(_Letter(message.position, Reason.UNDECODABLE, error))
                continue
            if event.type in self._handlers:
                events.append(event)
        return events, letters

    def _handle(self, events: Sequence[Event], tries: int = 1) -> list[_Letter]:
        """Act on events of one type. Those that make it fail are found by halves, and returned."""
        try:
            self._act(events)
            return []
        except Exception as error:  # rolled back, and not for the database's sake: an event or the handler is wrong
            failure = error
        if len(events) > 1:
            half = len(events) // 2
            return self._handle(events[:half]) + self._handle(events[half:])
        if tries < TRIES_MAX:
            self._wait(_backoff_seconds(tries))
            return self._handle(events, tries + 1)
        return [_Letter(events[0].position, Reason.FAILED, failure)]

    def _act(self, events: Sequence[Event]) -> None:
        event_type = events[0].type
        started_at = time.monotonic()
        with received.traced(events, self._describe) as traced:
            while self._insist(lambda tx: self._handlers[event_type](tx, traced)):
                self._recovered()
                self._wait(0)
        self._metrics.handled(event_type, len(events), time.monotonic() - started_at)

    def _set_aside(self, messages: Sequence[Received], letters: Sequence[_Letter]) -> None:
        """Write dead letters: many in one transaction, so that a topic full of rubbish holds nobody up for long."""
        by_position = {message.position: message for message in messages}
        for some in _bounded(letters, lambda letter: len(by_position[letter.position].value), LETTER_BYTES_MAX):
            self._insist(partial(self._write, [(by_position[letter.position], letter) for letter in some]))
        for letter in letters:
            self._metrics.set_aside(letter.reason)
            topic, partition, offset = letter.position
            _log.error(
                "event set aside",
                topic=topic,
                partition=partition,
                offset=offset,
                reason=str(letter.reason),
                error=dead_letters.in_a_line(letter.error),
                exc_info=letter.error if letter.reason is Reason.FAILED else None,
            )

    def _write(self, letters: Sequence[tuple[Received, _Letter]], tx: Connection) -> None:
        now = sql.now(tx)
        records = [
            dead_letters.dead_letter(message, letter.reason, letter.error, consumer=self._group, now=now)
            for message, letter in letters
        ]
        self._outbox.append_records(tx, records)

    def _insist(self, operation: Callable[[Connection], _T]) -> _T:
        """Run the operation in a transaction, as often as it takes while the database is away or busy.

        Raises what the operation is to blame for, and _Stopped.
        """
        for tries in itertools.count(1):
            try:
                return self._database.transact(operation)
            except (Unavailable, Conflict, Overload) as error:
                self._troubled(error)
            self._wait(_backoff_seconds(tries))
        raise AssertionError("unreachable: the count has no end")

    def _wait(self, seconds: float) -> None:
        """Wait, and poll the group meanwhile, at least once: it takes who does not poll for dead. Raises _Stopped."""
        self._waiting = True
        self._kafka.pause(self._kafka.assignment())
        try:
            until = time.monotonic() + seconds
            left = seconds
            while left >= 0:
                if self._stopping.is_set():
                    raise _Stopped
                message = self._kafka.poll(min(left, IDLE_POLL_SECONDS))
                if message is not None:
                    # Not expected of paused partitions; but a message that was polled doesn't come again.
                    self._early += self._read([message])
                self._measure_lag()
                left = until - time.monotonic()
        finally:
            self._waiting = False
            self._kafka.resume(self._kafka.assignment())

    def _troubled(self, error: ShopError) -> None:
        if error.reason != self._trouble:
            self._trouble = error.reason
            _log.warning("events wait", topic=self._topic, reason=error.reason, error=error.message)
            # A database that is only busy serves calls all the same.
            self._set_ready(not isinstance(error, Unavailable))

    def _recovered(self) -> None:
        if self._trouble:
            self._trouble = ""
            _log.info("events go on", topic=self._topic)
            self._set_ready(True)

    def _store(self, messages: Sequence[Received]) -> None:
        """Let the offsets behind these messages be committed."""
        done: dict[int, int] = {}
        for message in messages:
            _, partition, offset = message.position
            done[partition] = offset + 1
        for partition, offset in done.items():
            try:
                self._kafka.store_offsets(offsets=[TopicPartition(self._topic, partition, offset)])
            except KafkaException:
                # The partition has moved to another member meanwhile, which does these events again.
                _log.info("partition has moved while its events were handled", topic=self._topic, partition=partition)

    def _on_assign(self, kafka: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        kafka.incremental_assign(partitions)
        # librdkafka keeps the pause of a partition that was taken away meanwhile: it comes back paused.
        (kafka.pause if self._waiting else kafka.resume)(partitions)
        for partition in partitions:
            self._expected.pop(partition.partition, None)
        with suppress(KafkaException):  # without an answer a gap before the first message is not seen
            for committed in kafka.committed(partitions, timeout=ASK_SECONDS):
                if committed.offset >= 0:
                    self._expected[committed.partition] = committed.offset

    def _is_sound(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        self._on_kafka_error(error)
        return False

    def _on_kafka_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise KafkaException(error)
        # librdkafka mends everything else itself, and says at each try that it has not succeeded yet.
        now = time.monotonic()
        if now - self._complained_at > COMPLAINT_SECONDS:
            self._complained_at = now
            _log.warning("no events from the broker", topic=self._topic, error=error.str())

    def _measure_lag(self) -> None:
        now = time.monotonic()
        if now - self._lag_measured_at < LAG_SECONDS:
            return
        self._lag_measured_at = now
        lag = self._in_hand
        for partition in self._kafka.position(self._kafka.assignment()):
            lag += self._unread(partition)
        self._lag = lag
        self._metrics.lag(lag)

    def _unread(self, position: TopicPartition) -> int:
        """How many messages of a partition were not handed to us yet."""
        # What the last fetch told, without asking the broker.
        low, high = self._kafka.get_watermark_offsets(position, cached=True)
        offset = position.offset
        if high < 0 and self._waiting:
            # It was paused before its first fetch, which does not come as long as it is.
            try:
                low, high = self._kafka.get_watermark_offsets(position, timeout=ASK_SECONDS)
                offset = self._kafka.committed([position], timeout=ASK_SECONDS)[0].offset
            except KafkaException:
                return 0  # the broker is away; the next measurement knows more
        return max(0, high - max(low, offset))


class _Stopped(BaseException):
    """Told to stop while waiting. No Exception, so that it is never taken for the failure of a handler."""


def _bounded(items: Sequence[_T], weigh: Callable[[_T], int], weight_max: int) -> Iterator[Sequence[_T]]:
    """The items in order, in slices that weigh at most so much; one that weighs more is a slice of its own."""
    start = weight = 0
    for number, item in enumerate(items):
        weight += weigh(item)
        if weight > weight_max and number > start:
            yield items[start:number]
            start, weight = number, weigh(item)
    if items:
        yield items[start:]


def _backoff_seconds(tries: int) -> float:
    # Jitter, so that the consumers that a database has thrown out do not all come back at once.
    longest: float = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(tries, 20))
    return longest * random.uniform(0.5, 1)


def _settings(bootstrap_servers: str, group: str, session_seconds: float) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap_servers,
        "group.id": group,
        "client.id": group,
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 500,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
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
