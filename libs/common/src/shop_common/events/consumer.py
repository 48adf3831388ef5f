"""Acts on the events of a topic: one thread, in batches, each event at least once and each key's in order.

A batch is what has arrived, up to 500 messages. Each operation gets its events as a list and a transaction of its
own, since it takes its locks in the order that is the same everywhere; two in one transaction would not. Offsets are
stored when all of the batch is done, so that after a crash it is done again: operations are safe to repeat by the
state that they check.

What becomes of a failure depends on whose fault it is:

    the database is away, busy, or lacks a table or a grant    tried again without end; not ready while it is away
    several events take too long together                      tried again in halves
    one event, always in the same way                          set aside at once
    one event, in a way that may pass, or it takes too long    tried TRIES_MAX times, and then set aside
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
from shop_common.db import sql
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
"""Acts on events of one type, in the order given; safe to repeat; never commits.

True means that more is to be done than one transaction should: it is called again with the same events, in a
transaction of its own, until it returns anything else. Each such call must get something done.
"""

Weigh = Callable[[Event], int]
"""How many rows an event means, roughly. Whatever it raises is the event's own fault."""

_T = TypeVar("_T")

BATCH_WEIGHT_MAX = 5_000
"""Of the events that are handled in one transaction."""

TRIES_MAX = 5
"""How often an event is tried alone before it is set aside."""

LETTER_BYTES_MAX = 4_000_000
"""Of the values that are set aside in one transaction."""

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 2.0
STOP_SECONDS_MAX = 5.0

# `database` lets an error of a statement pass only if the statement itself or its data is at fault.
_SURE_TO_FAIL_AGAIN = (
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
class _Letter:
    """A message that is to be set aside, and why."""

    position: Position
    reason: Reason
    error: Exception


class Consumer:
    """The consumer of one topic for one service.

    `handlers` by event type; messages of other types are passed over by their header alone. `describe` gives the
    attributes of an event's span, `weigh` bounds how many events one transaction handles. `set_ready` is called with
    False when the database is away or a partition is stalled, and with True when that is over. `on_fatal` must end the
    process: without its threads it only seems to work.
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
        self._troubles: set[str] = set()

    def start(self) -> None:
        """Join the group and begin. A broker that is away is waited for."""
        self._reader.join()
        self._thread.start()
        self._observer.start()

    def stop(self) -> None:
        """Finish the batch that runs, commit, leave the group. A batch that waits for the database is left undone."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS_MAX)
        if self._thread.is_alive():
            # Without an answer librdkafka waits for its broker for ever. The group notices by the missing heartbeat.
            _log.warning("consumer not stopped in time; what it has not committed is done again", topic=self._topic)

    def lag(self) -> int:
        """How many messages this process has still to do, as of the last seconds."""
        return self._reader.progress.lag

    def _run(self) -> None:
        try:
            try:
                while not self._stopping.is_set():
                    self._reader.renew()
                    messages = self._reader.next_batch()
                    if messages:
                        self._work(messages)
                    # failpoint: before-offset-commit
                    self._reader.done(messages)
                    self._reader.progress.measure(database_away=False)
            except Stopped:
                pass  # nothing of the batch is stored
            self._reader.leave()
        except BaseException as error:
            self._on_fatal(f"the consumer of {self._topic} failed", error)

    def _observe(self) -> None:
        """Tell whether it gets on, on a thread of its own: a handler that never returns must be noticed, too."""
        stalled: list[int] = []
        while not self._stopping.wait(MEASURE_SECONDS):
            found = self._reader.progress.stalled()
            self._metrics.measured(self.lag(), len(found))
            if found != stalled:
                if bool(found) != bool(stalled):
                    self._readiness.set_stalled(bool(found))
                stalled = found
                if stalled:
                    _log.error("messages wait and none is handled", topic=self._topic, partitions=stalled)
                else:
                    _log.info("messages are handled again", topic=self._topic)

    def _work(self, messages: Sequence[Received]) -> None:
        events, letters = self._events(messages)
        for step in received.in_sequence(events):
            for some in slices(step, self._weight, BATCH_WEIGHT_MAX):
                letters += self._handle(some)
        self._set_aside(messages, letters)

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

    def _weight(self, event: Event) -> int:
        try:
            return self._weigh(event)
        except Exception:  # it is not what it should be: whether that matters is for its handler to say
            return 1

    def _handle(self, events: Sequence[Event], tries: int = 1) -> list[_Letter]:
        """Act on events of one type. Those that make it fail are found by halves, and returned."""
        try:
            self._act(events)
            return []
        except Exception as error:  # rolled back, and the surroundings are not to blame: an event or its handler is
            failure = error
        if len(events) > 1:
            half = len(events) // 2
            return self._handle(events[:half]) + self._handle(events[half:])
        if tries < TRIES_MAX and not isinstance(failure, _SURE_TO_FAIL_AGAIN):
            self._wait(_backoff_seconds(tries))
            return self._handle(events, tries + 1)
        return [_Letter(events[0].position, Reason.FAILED, failure)]

    def _act(self, events: Sequence[Event]) -> None:
        """Raises what is the events' own fault, and timeouts that fewer events, or none of these, would not meet."""
        event_type = events[0].type
        started_at = time.monotonic()
        # A lock that a single event waits for is not its fault.
        own = TIMEOUTS if len(events) > 1 else (TransactionTimeout,)
        with received.traced(events, self._describe) as traced:
            while self._insist(lambda tx: self._handlers[event_type](tx, traced), own):
                self._wait(0)
        self._metrics.handled(event_type, len(events), time.monotonic() - started_at)

    def _set_aside(self, messages: Sequence[Received], letters: Sequence[_Letter]) -> None:
        """Write dead letters: many in one transaction, so that a topic full of rubbish holds nobody up for long."""
        by_position = {message.position: message for message in messages}
        for some in slices(letters, lambda letter: len(by_position[letter.position].value), LETTER_BYTES_MAX):
            self._insist(partial(self._write, [(by_position[letter.position], letter) for letter in some]))
        kinds: set[type[Exception]] = {Undecodable}
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
                error=dead_letters.in_a_line(letter.error),
                # Where it failed, once for all that failed alike: a traceback takes longer than an event.
                exc_info=None if kind in kinds else letter.error,
            )
            kinds.add(kind)

    def _write(self, letters: Sequence[tuple[Received, _Letter]], tx: Connection) -> None:
        now = sql.now(tx)
        records = [
            dead_letters.dead_letter(message, letter.reason, letter.error, consumer=self._group, now=now)
            for message, letter in letters
        ]
        self._outbox.append_records(tx, records)

    def _insist(self, operation: Callable[[Connection], _T], own: tuple[type[ShopError], ...] = ()) -> _T:
        """Run the operation in a transaction, as often as it takes while the database is away or busy.

        Raises what the operation is to blame for, the errors that are its `own`, and Stopped.
        """
        for tries in itertools.count(1):
            try:
                result = self._database.transact(operation)
            except own:
                raise
            except (Unavailable, Conflict, Overload) as error:
                self._troubled(error)
            else:
                self._reader.progress.moved()
                self._recovered()
                return result
            self._wait(_backoff_seconds(tries))
        raise AssertionError("unreachable: the count has no end")

    def _wait(self, seconds: float) -> None:
        """Wait, in touch with the broker. Raises Stopped."""
        self._reader.wait(seconds, self._stopping, database_away=self._readiness.database_away)

    def _troubled(self, error: ShopError) -> None:
        # A database that is only busy serves calls all the same.
        away = isinstance(error, Unavailable)
        cause = cause_of(error)
        if cause in self._troubles and away == self._readiness.database_away:
            return
        self._troubles.add(cause)
        _log.warning("events wait", topic=self._topic, reason=error.reason, error=error.message, cause=cause)
        self._readiness.set_database_away(away)

    def _recovered(self) -> None:
        if self._troubles:
            self._troubles.clear()
            _log.info("events go on", topic=self._topic)
            self._readiness.set_database_away(False)


class _Readiness:
    """Whether the process is ready for calls, as far as its consumer knows. Safe to share between threads."""

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


def _backoff_seconds(tries: int) -> float:
    # Jitter, so that the consumers that a database has thrown out do not all come back at once.
    longest: float = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(tries, 20))
    return longest * random.uniform(0.5, 1)
