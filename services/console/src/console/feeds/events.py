"""The newest events and dead letters of the viewers' tenants, from the topics.

All viewers share one reader, which runs on a thread while somebody looks. It joins no consumer group, so the consumers
of the events do not notice it. What it keeps in memory is bounded.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from confluent_kafka import KafkaException

from console.feeds.feed import UNWATCHED_SECONDS, Unreadable
from shop_common.events.broker import Bounds, Broker, Event, text
from shop_common.events.dead_letter_topic import GROUP, DeadLetterTopic, Redriven
from shop_common.events.dead_letters import SUFFIX
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.outbox import ACTOR_HEADER
from shop_common.telemetry import logs
from shopctl.events.topics import TOPICS

ROWS_MAX = 100
"""The number of events that a view shows."""

KEPT_MAX = 100
"""The number of events that are kept of each partition, for each tenant."""

START_MAX = 500
"""The number of events of each partition, of all tenants, that the reader reads when it starts."""

TENANTS_MAX = 50
_DATA_CHARACTERS_MAX = 400
_TEXT_CHARACTERS_MAX = 200
_RETRY_SECONDS = 1.0
_RECORD_SECONDS = 1.0
"""The time between two reads of the record of redriven letters."""

_BUFFER_KILOBYTES = 8 * 1024

EVENT_TOPICS = tuple(topic for topic in TOPICS if not topic.endswith(SUFFIX))
LETTER_TOPICS = tuple(topic for topic in TOPICS if topic.endswith(SUFFIX))

_log = logs.get(__name__)


@dataclass(frozen=True)
class EventFilter:
    """Selects events: the topics, a part of the type in any case, and an id that the event has. Empty texts match all.

    The id is that of the event, its key, or the value of a field of its data such as `order_id`.
    """

    topics: tuple[str, ...]
    type: str = ""
    id: str = ""


@dataclass(frozen=True)
class ShownEvent:
    """An event, with texts cut off for the view. `reason`, `error` and `consumer` are those of a dead letter."""

    topic: str
    partition: int
    offset: int
    at: datetime
    type: str
    event_id: str
    key: str
    actor: str
    data: str
    reason: str = ""
    error: str = ""
    consumer: str = ""
    is_redriven: bool = False
    ids: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Events:
    """The newest events that match a filter, the newest first."""

    rows: tuple[ShownEvent, ...]
    has_older: bool


_Partition = tuple[str, int]


@dataclass
class _Kept:
    """The newest events of a tenant, and when somebody last looked at them.

    `is_complete` is true when the reader has read the events that were there at its start.
    """

    looked_at: float
    is_complete: bool = False
    events: dict[_Partition, deque[ShownEvent]] = field(default_factory=dict)


class EventReader:
    """Reads the topics while somebody looks. `kafka` is None if this console has no broker."""

    def __init__(self, kafka: KafkaConnection | None) -> None:
        self._kafka = kafka
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards the fields below
        self._thread: threading.Thread | None = None
        self._kept: dict[str, _Kept] = {}
        self._is_new = False
        """Whether a tenant is new in `_kept`, so that the reader must start again."""
        self._redriven: dict[_Partition, Redriven] = {}
        self._fault = ""

    @property
    def is_connected(self) -> bool:
        """Return whether this console has a broker."""
        return self._kafka is not None

    @property
    def is_running(self) -> bool:
        with self._lock:
            return self._thread is not None

    async def read(self, tenant: str, chosen: EventFilter) -> Events | None:
        """Return the newest events of the tenant, or None if they are still being read. Starts the reader.

        Raises Unreadable if the broker does not respond, or if viewers of too many tenants look.
        """
        with self._lock:
            kept = self._kept.get(tenant)
            if kept is None:
                if len(self._kept) >= TENANTS_MAX:
                    raise Unreadable("Viewers of too many tenants look at their events. Try again later.")
                kept = self._kept[tenant] = _Kept(0)
                self._is_new = True
            kept.looked_at = time.monotonic()
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            if self._fault:
                raise Unreadable(self._fault)
            if not kept.is_complete:
                return None
            found = [
                self._marked(event)
                for (topic, _), events in kept.events.items()
                if topic in chosen.topics
                for event in events
                if _matches(event, chosen)
            ]
        found.sort(key=lambda event: (event.at, event.topic, event.partition, event.offset), reverse=True)
        return Events(tuple(found[:ROWS_MAX]), has_older=len(found) > ROWS_MAX)

    def stop(self) -> None:
        """End the reader. It does not start again."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_RETRY_SECONDS * 10)

    def _marked(self, event: ShownEvent) -> ShownEvent:
        redriven = self._redriven.get((event.topic, event.partition))
        return replace(event, is_redriven=True) if redriven is not None and event.offset in redriven else event

    def _run(self) -> None:
        while self._is_watched():
            try:
                self._follow()
            except KafkaException as error:
                _log.warning("cannot read the topics", error=str(error))
                with self._lock:
                    self._fault = "The broker does not respond. The console tries again every second."
                self._stopping.wait(_RETRY_SECONDS)
            except Exception:
                # The view shows that the data are old. The next attempt may succeed.
                _log.exception("cannot read the topics")
                with self._lock:
                    self._fault = "The console could not read the topics. Its log has the cause."
                self._stopping.wait(_RETRY_SECONDS)

    def _is_watched(self) -> bool:
        """Forget the tenants at whose events nobody looks. Returns whether one is left; if not, the thread must end."""
        oldest = time.monotonic() - UNWATCHED_SECONDS
        with self._lock:
            if self._thread is not threading.current_thread():
                return False  # it has ended already, and another one may run
            self._kept = {tenant: kept for tenant, kept in self._kept.items() if kept.looked_at > oldest}
            if self._kept and not self._stopping.is_set():
                return True
            self._thread, self._kept, self._redriven, self._fault = None, {}, {}, ""
            return False

    def _follow(self) -> None:
        """Read until nobody looks, or until a tenant is new. Raises KafkaException."""
        assert self._kafka is not None
        with self._lock:
            self._is_new = False
        # The group of the record of redriven letters. A reader of given offsets does not join it.
        with Broker(self._kafka, GROUP, buffer_kilobytes=_BUFFER_KILOBYTES) as broker:
            bounds = {(topic, n): bound for topic in TOPICS for n, bound in broker.bounds(topic).items()}
            self._drop_beyond(bounds)
            starts = {where: max(bound.first, bound.end - START_MAX) for where, bound in bounds.items()}
            behind = {where: bound.end for where, bound in bounds.items() if starts[where] < bound.end}
            broker.start_at(starts)
            recorded_at = float("-inf")
            while self._is_watched():
                if time.monotonic() - recorded_at > _RECORD_SECONDS:
                    recorded_at = time.monotonic()
                    self._read_record(broker)
                events, reached = broker.next_events()
                for where, offset in reached.items():
                    if offset >= behind.get(where, offset + 1):
                        del behind[where]
                with self._lock:
                    self._keep(events)
                    self._fault = ""
                    if self._is_new:
                        return
                    if not behind:
                        for kept in self._kept.values():
                            kept.is_complete = True

    def _drop_beyond(self, bounds: Mapping[_Partition, Bounds]) -> None:
        """Forget the events of a partition that has begun anew, as on a new broker."""
        with self._lock:
            for kept in self._kept.values():
                for where, events in list(kept.events.items()):
                    if where not in bounds or (events and events[-1].offset >= bounds[where].end):
                        del kept.events[where]

    def _read_record(self, broker: Broker) -> None:
        found: dict[_Partition, Redriven] = {}
        for topic in LETTER_TOPICS:
            letters = DeadLetterTopic(broker, topic)
            found |= {(topic, number): each for number, each in letters.redriven(letters.bounds()).items()}
        with self._lock:
            self._redriven = found

    def _keep(self, events: Iterable[Event]) -> None:
        for event in events:
            kept = self._kept.get(event.tenant)
            if kept is None:
                continue
            newest = kept.events.setdefault((event.topic, event.partition), deque(maxlen=KEPT_MAX))
            # After a new start, the reader reads some events again.
            if not newest or newest[-1].offset < event.offset:
                newest.append(_shown(event))


def _matches(event: ShownEvent, chosen: EventFilter) -> bool:
    if chosen.type.lower() not in event.type.lower():
        return False
    return not chosen.id or chosen.id in (event.event_id, event.key) or chosen.id in event.ids


def _shown(event: Event) -> ShownEvent:
    body = event.json() or {}
    data = body.get("data")
    fields = data if isinstance(data, dict) else {}
    shown = text(event.value) if not fields else json.dumps(fields, ensure_ascii=False)
    return ShownEvent(
        topic=event.topic,
        partition=event.partition,
        offset=event.offset,
        at=event.time,
        type=_cut(event.header("ce_type")),
        event_id=_cut(event.header("ce_id")),
        key=_cut("" if event.key is None else text(event.key)),
        actor=_cut(event.header(ACTOR_HEADER)),
        data=_cut(shown, _DATA_CHARACTERS_MAX),
        reason=_cut(event.header("dlq_reason")),
        error=_cut(event.header("dlq_error")),
        consumer=_cut(event.header("dlq_consumer")),
        ids=frozenset(
            str(value)[:_TEXT_CHARACTERS_MAX]
            for name, value in fields.items()
            if (name == "id" or name.endswith("_id")) and isinstance(value, str | int)
        ),
    )


def _cut(value: str, characters_max: int = _TEXT_CHARACTERS_MAX) -> str:
    # JSON can contain half of a surrogate pair, but a page cannot.
    value = value.encode(errors="replace").decode()
    return value if len(value) <= characters_max else f"{value[: characters_max - 1]}…"
