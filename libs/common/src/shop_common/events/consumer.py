"""Handles the events of a topic in batches, on one thread: each event at least once, and the events of a key in order.

A batch contains the messages that have arrived, up to 500. Each handler gets its events as a list, in its own
transaction. Two handlers in one transaction would break the lock order that all transactions keep. Offsets are stored
after the whole batch is handled, so after a crash the batch is handled again. Handlers check the current state, so they
may be repeated.

The reaction to a failure depends on its cause:

    the database is unavailable or busy, or lacks a table or a grant    retry without limit; not ready if unavailable
    several events fail, or take too long together                      retry each half
    one event fails, and a retry cannot succeed                         set it aside at once
    one event fails with another error, or takes too long               set it aside after ATTEMPTS_MAX attempts
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import StatementError

from shop_common.batching.turns import slices
from shop_common.db import row_security, sql
from shop_common.db.database import Database
from shop_common.db.errors import cause_of
from shop_common.errors import (
    TIMEOUTS,
    Conflict,
    InvalidInput,
    NotFound,
    Overload,
    ShopError,
    TransactionTimeout,
    Unavailable,
)
from shop_common.events import dead_letters, received
from shop_common.events.consumer_metrics import ConsumerMetrics
from shop_common.events.consumer_progress import MEASURE_SECONDS, STALL_SECONDS
from shop_common.events.dead_letters import Reason
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.outbox import Outbox
from shop_common.events.received import Describe, Event, Position, Received, Undecodable
from shop_common.events.topic_reader import SESSION_SECONDS, Stopped, TopicReader
from shop_common.telemetry import logs

__all__ = ["Consumer", "Event", "Handler", "Weigh"]

Handler = Callable[[Connection, Sequence[Event]], bool | None]
"""Handles events of one type, in order. It must be safe to repeat, and must not commit.

A handler returns True if work is left that does not fit in one transaction. The consumer then calls it again with the
same events, in a new transaction, until it returns something else. Each call must make progress.
"""

Weigh = Callable[[Event], int]
"""Returns roughly how many rows an event changes. If it raises, the event has weight 1; the handler validates it."""

_T = TypeVar("_T")

BATCH_WEIGHT_MAX = 5_000
"""Limit on the weight of the events that one transaction handles."""

ATTEMPTS_MAX = 5
"""The number of times that an event is handled alone before it is set aside."""

DEAD_LETTER_BYTES_MAX = 4_000_000
"""Limit on the size of the messages that one transaction sets aside."""

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 2.0
STOP_SECONDS_MAX = 5.0

# `Database` raises StatementError only if the statement or its data is wrong.
_PERMANENT_ERRORS = (
    StatementError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    InvalidInput,
    NotFound,
)

_log = logs.get(__name__)


@dataclass(frozen=True)
class _DeadLetter:
    """The position of a message to set aside, and the reason."""

    position: Position
    reason: Reason
    error: Exception


class Consumer:
    """The consumer of one topic for one service.

    `handlers` maps event types to handlers. Messages of other types are skipped without parsing their body. `describe`
    returns the attributes of an event's span. `weigh` limits how many events one transaction handles. `set_ready` is
    called with False when the database becomes unavailable or a partition stalls, and with True when both problems are
    over. `on_fatal` is called if the thread that handles events fails, and must end the process.
    """

    def __init__(
        self,
        *,
        kafka: KafkaConnection,
        group: str,
        topic: str,
        handlers: Mapping[str, Handler],
        describe: Describe = lambda _event: {},
        weigh: Weigh = lambda _event: 1,
        database: Database,
        outbox: Outbox,
        set_ready: Callable[[bool], None],
        on_fatal: Callable[[str, BaseException], None],
        session_seconds: float = SESSION_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._group = group
        self._topic = topic
        self._handlers = handlers
        self._describe = describe
        self._weigh = weigh
        self._database = database
        self._outbox = outbox
        self._on_fatal = on_fatal
        self._metrics = ConsumerMetrics(topic)
        self._reader = TopicReader(
            kafka=kafka,
            group=group,
            topic=topic,
            metrics=self._metrics,
            session_seconds=session_seconds,
            stall_seconds=stall_seconds,
        )
        self._readiness = _Readiness(set_ready)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"consumer-{topic}", daemon=True)
        self._observer = threading.Thread(target=self._observe, name=f"observer-{topic}", daemon=True)
        self._failure_causes: set[str] = set()
        """The causes that were logged since the last success."""

    def start(self) -> None:
        """Join the group and start. If the broker is unavailable, keep trying to connect."""
        self._reader.join()
        self._thread.start()
        self._observer.start()

    def stop(self) -> None:
        """Finish the running batch, commit, and leave the group. A batch that waits for the database is abandoned."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS_MAX)
        if self._thread.is_alive():
            # librdkafka waits without limit for a broker that does not respond. The broker removes this member from
            # the group when heartbeats are missing.
            _log.warning("consumer not stopped in time; uncommitted events will be handled again", topic=self._topic)

    def lag(self) -> int:
        """Return how many messages in this process's partitions were not handled yet at the last measurement."""
        return self._reader.progress.lag

    def _run(self) -> None:
        try:
            try:
                while not self._stopping.is_set():
                    self._reader.renew()
                    messages = self._reader.next_batch()
                    if messages:
                        self._process(messages)
                    # failpoint: before-offset-commit
                    self._reader.done(messages)
                    self._reader.progress.measure(database_away=False)
            except Stopped:
                pass  # no offset of the batch is stored
            self._reader.leave()
        except BaseException as error:
            self._on_fatal(f"the consumer of {self._topic} failed", error)

    def _observe(self) -> None:
        """Report stalled partitions. Runs on its own thread, to detect also a handler that never returns."""
        stalled: list[int] = []
        while not self._stopping.wait(MEASURE_SECONDS):
            current = self._reader.progress.stalled()
            self._metrics.measured(self.lag(), len(current))
            if current != stalled:
                if bool(current) != bool(stalled):
                    self._readiness.set_stalled(bool(current))
                stalled = current
                if stalled:
                    _log.error("messages wait and none is handled", topic=self._topic, partitions=stalled)
                else:
                    _log.info("messages are handled again", topic=self._topic)

    def _process(self, messages: Sequence[Received]) -> None:
        events, letters = self._events(messages)
        for same_type in received.grouped_by_type(events):
            for part in slices(same_type, self._weight, BATCH_WEIGHT_MAX):
                letters += self._handle(part)
        self._set_aside(messages, letters)

    def _events(self, messages: Sequence[Received]) -> tuple[list[Event], list[_DeadLetter]]:
        """Decode the messages that have a handler. Returns the events, and dead letters for undecodable messages."""
        events: list[Event] = []
        letters: list[_DeadLetter] = []
        for message in messages:
            event_type = received.type_of(message)
            if event_type is not None and event_type not in self._handlers:
                continue
            try:
                event = received.decode(message)
            except Undecodable as error:
                letters.append(_DeadLetter(message.position, Reason.UNDECODABLE, error))
                continue
            if event.type in self._handlers:
                events.append(event)
        return events, letters

    def _weight(self, event: Event) -> int:
        try:
            return self._weigh(event)
        except Exception:  # the data is malformed; the handler decides whether that matters
            return 1

    def _handle(self, events: Sequence[Event], attempt: int = 1) -> list[_DeadLetter]:
        """Handle events of one type. Finds the events that fail by bisection, and returns them as dead letters."""
        try:
            self._call_handler(events)
            return []
        except Exception as error:  # rolled back; an event or the handler is the cause, not the database
            failure = error
        if len(events) > 1:
            half = len(events) // 2
            return self._handle(events[:half]) + self._handle(events[half:])
        if attempt < ATTEMPTS_MAX and not isinstance(failure, _PERMANENT_ERRORS):
            self._wait(_backoff_seconds(attempt))
            return self._handle(events, attempt + 1)
        return [_DeadLetter(events[0].position, Reason.FAILED, failure)]

    def _call_handler(self, events: Sequence[Event]) -> None:
        """Call the handler until it has nothing left to do.

        Retries the errors of the database, except a timeout that fewer events may avoid. Raises that timeout and all
        other errors of the handler.
        """
        event_type = events[0].type
        started_at = time.monotonic()
        # A lock timeout of a single event is retried: the cause is another transaction, not the event.
        raised = TIMEOUTS if len(events) > 1 else (TransactionTimeout,)
        with received.traced(events, self._describe) as traced:
            tenants = row_security.of(events)
            while self._transact(lambda tx: self._handlers[event_type](tx, traced), raised, tenants):
                self._wait(0)
        self._metrics.handled(event_type, len(events), time.monotonic() - started_at)

    def _set_aside(self, messages: Sequence[Received], letters: Sequence[_DeadLetter]) -> None:
        """Write dead letters, many in one transaction, so that a topic full of malformed messages takes little time."""
        by_position = {message.position: message for message in messages}
        for part in slices(letters, lambda letter: len(by_position[letter.position].value), DEAD_LETTER_BYTES_MAX):
            self._transact(partial(self._write, [(by_position[letter.position], letter) for letter in part]))
        with_traceback: set[type[Exception]] = {Undecodable}
        for letter in letters:
            self._metrics.set_aside(letter.reason)
            topic, partition, offset = letter.position
            kind = type(letter.error)
            _log.error(
                "event set aside",
                topic=topic,
                partition=partition,
                offset=offset,
                reason=str(letter.reason),
                error=dead_letters.one_line(letter.error),
                # Log one traceback per kind of error: formatting a traceback takes longer than handling an event.
                exc_info=None if kind in with_traceback else letter.error,
            )
            with_traceback.add(kind)

    def _write(self, letters: Sequence[tuple[Received, _DeadLetter]], tx: Connection) -> None:
        now = sql.now(tx)
        records = [
            dead_letters.dead_letter(message, letter.reason, letter.error, consumer=self._group, now=now)
            for message, letter in letters
        ]
        self._outbox.append_records(tx, records)

    def _transact(
        self, operation: Callable[[Connection], _T], raised: tuple[type[ShopError], ...] = (), settings: str = ""
    ) -> _T:
        """Run the operation in a transaction with these settings.

        Retries without limit while the database is unavailable or busy. Raises Stopped, every error that does not come
        from the database, and the errors in `raised`, without a retry.
        """
        for attempt in itertools.count(1):
            try:
                result = self._database.transact(operation, settings)
            except raised:
                raise
            except (Unavailable, Conflict, Overload) as error:
                self._report_failure(error)
            else:
                self._reader.progress.moved()
                self._report_recovery()
                return result
            self._wait(_backoff_seconds(attempt))
        raise AssertionError("unreachable: the loop has no end")

    def _wait(self, seconds: float) -> None:
        """Wait, and keep polling the broker meanwhile. Raises Stopped."""
        self._reader.wait(seconds, self._stopping, database_away=self._readiness.database_away)

    def _report_failure(self, error: ShopError) -> None:
        # While the database is only busy, the process stays ready: calls still succeed.
        away = isinstance(error, Unavailable)
        cause = cause_of(error)
        if cause in self._failure_causes and away == self._readiness.database_away:
            return
        self._failure_causes.add(cause)
        _log.warning("events wait", topic=self._topic, reason=error.reason, error=error.message, cause=cause)
        self._readiness.set_database_away(away)

    def _report_recovery(self) -> None:
        if self._failure_causes:
            self._failure_causes.clear()
            _log.info("events are handled again", topic=self._topic)
            self._readiness.set_database_away(False)


class _Readiness:
    """Combines the two reasons for which the consumer reports not ready. Safe to share between threads."""

    def __init__(self, set_ready: Callable[[bool], None]) -> None:
        self._set_ready = set_ready
        self._lock = threading.Lock()
        self._stalled = False
        self.database_away = False

    def set_database_away(self, away: bool) -> None:
        with self._lock:
            self.database_away = away
            self._set_ready(not (self.database_away or self._stalled))

    def set_stalled(self, stalled: bool) -> None:
        with self._lock:
            self._stalled = stalled
            self._set_ready(not (self.database_away or self._stalled))


def _backoff_seconds(attempt: int) -> float:
    # Jitter, so that all consumers of a database do not reconnect at the same time.
    longest: float = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(attempt, 20))
    return longest * random.uniform(0.5, 1)
