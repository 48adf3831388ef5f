"""Decodes the messages of a topic as events, and groups them for handling.

A topic may contain any bytes. `read` converts any message of the client library to a Received, without an error. The
other functions take a Received or an Event.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from operator import methodcaller
from typing import Any, NamedTuple

import orjson
from confluent_kafka import Message
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from shop_common.events.outbox import ACTOR_CHARACTERS_MAX, ACTOR_HEADER, TENANT_HEADER
from shop_common.identity import tenant
from shop_common.telemetry import tracing

Position = tuple[str, int, int]
"""Topic, partition and offset, which identify a message."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event, as handlers receive it. The schema of `data` depends on `type`.

    `key` is the id of an order or a product. In a tenant other than the default, the key of a product begins with the
    tenant and a slash.

    Events that a handler emits continue the trace of `traceparent`, and have the same `actor`.
    """

    type: str
    key: str
    event_id: str
    data: dict[str, Any]
    occurred_at: datetime
    traceparent: str | None
    topic: str
    partition: int
    offset: int
    tenant: str = tenant.DEFAULT
    actor: str | None = None

    @property
    def position(self) -> Position:
        """Return topic, partition and offset."""
        return self.topic, self.partition, self.offset


Describe = Callable[[Event], Mapping[str, AttributeValue]]
"""Returns the attributes of an event's span."""


class Undecodable(Exception):
    """The message is not an event. The text is the reason."""


class Received(NamedTuple):
    """A message of a topic, with any bytes. `headers` is in the original order, or None if a name is not UTF-8."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] | None

    @property
    def position(self) -> Position:
        """Return topic, partition and offset."""
        return self[:3]

    def header(self, name: str) -> str:
        """Return a header's text, empty if it is absent. Raises UnicodeDecodeError."""
        for candidate, value in self.headers or ():
            if candidate == name:
                return value.decode()
        return ""


# Never call `message.headers()` directly. If a header name is not UTF-8, confluent-kafka (up to 2.16.1) sets an
# exception but still returns a list, with a null pointer in it. CPython checks most calls for such a result, and raises
# SystemError. It does not check a method call that it has specialised because the code is hot. The null pointer then
# crashes the process. A call through `methodcaller` is checked in every version. See ADR 0015.
_checked_headers = methodcaller("headers")


def headers_of(message: Message) -> list[tuple[str, bytes]] | None:
    """Return all headers of the message, in order. None if a name is not UTF-8."""
    try:
        found: list[tuple[str, bytes | None]] | None = _checked_headers(message)
    except (SystemError, UnicodeDecodeError):
        # The message keeps its broken list, and would return it to the next caller without an exception.
        message.set_headers([])
        return None
    return [(name, value or b"") for name, value in found or ()]


def read(message: Message) -> Received:
    """Convert a message, which must not be an error. Accepts any bytes."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None:
        raise AssertionError("a message without an error has a position")
    return Received(topic, partition, offset, message.key() or b"", message.value() or b"", headers_of(message))


def type_of(message: Received) -> str | None:
    """Return the event type from the header, or None. It lets a consumer skip most messages without parsing them."""
    try:
        return message.header("ce_type") or None
    except UnicodeDecodeError:
        return None


def decode(message: Received) -> Event:
    """Decode a message as an event. The type comes from the header ce_type, else from the body. Raises Undecodable."""
    if message.headers is None:
        raise Undecodable("not an event: the name of a header is not UTF-8")
    try:
        body = orjson.loads(message.value)
        event_type = type_of(message) or body["event_type"]
        data = body["data"]
        occurred_at = datetime.fromisoformat(body["timestamp"])
        key = message.key.decode()
        tenant_name = message.header(TENANT_HEADER) or tenant.DEFAULT
        actor = message.header(ACTOR_HEADER)[:ACTOR_CHARACTERS_MAX] or None
        event_id = message.header("ce_id") or "/".join(map(str, message.position))
    except Exception as error:  # only the message is read here, so every error is caused by it
        raise Undecodable(f"not an event: {type(error).__name__}: {error}") from error
    if not isinstance(event_type, str) or not isinstance(data, dict) or occurred_at.tzinfo is None:
        raise Undecodable("not an event: event_type must be a string, data an object, timestamp a time with an offset")
    if not tenant.is_valid(tenant_name):
        raise Undecodable(f"not an event: {TENANT_HEADER} must be {tenant.FORM}")
    return Event(
        type=event_type,
        key=key,
        event_id=event_id,
        data=data,
        occurred_at=occurred_at,
        traceparent=tracing.traceparent_in(message.headers),
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        tenant=tenant_name,
        actor=actor,
    )


def grouped_by_type(events: Iterable[Event]) -> list[list[Event]]:
    """Split events into a few lists, each with events of one type. Handling the lists in order keeps each key's order.

    The round of an event is the number of type changes among the events of its key, up to this event: events of one key
    with the types A, A, B, A have the rounds 0, 0, 1, 2. There is one list per round and type. Within a round all
    events of a key have the same type, so the order of the lists of a round does not matter.
    """
    groups: dict[tuple[int, str], list[Event]] = {}
    latest: dict[str, tuple[int, str]] = {}
    for event in events:
        round_, latest_type = latest.get(event.key, (0, event.type))
        if event.type != latest_type:
            round_ += 1
        latest[event.key] = (round_, event.type)
        groups.setdefault((round_, event.type), []).append(event)
    return [groups[group] for group in sorted(groups)]


@contextmanager
def traced(events: Sequence[Event], describe: Describe) -> Iterator[Sequence[Event]]:
    """Run the block in one span for the batch. Each sampled event also gets a span of its own, in its own trace.

    Yields the events to handle. The traceparent of a sampled event names its new span.
    """
    members = {
        number: span for number, event in enumerate(events) if (span := tracing.sampled_remote_span(event.traceparent))
    }
    about: dict[str, AttributeValue] = {"messaging.system": "kafka", "messaging.batch.message_count": len(events)}
    with tracing.batch_span(f"{events[0].type} batch", list(members.values()), attributes=about) as batch:
        spans = {number: _open_span(events[number], member, batch, describe) for number, member in members.items()}
        try:
            yield [
                replace(event, traceparent=tracing.traceparent_of(spans[number])) if number in spans else event
                for number, event in enumerate(events)
            ]
        except BaseException as error:
            for opened in spans.values():
                opened.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            for opened in spans.values():
                opened.end()


def _open_span(event: Event, member: SpanContext, batch: SpanContext | None, describe: Describe) -> Span:
    attributes: dict[str, AttributeValue] = {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": event.topic,
        "messaging.destination.partition.id": str(event.partition),
        "messaging.kafka.offset": event.offset,
        "messaging.message.id": event.event_id,
        "shop.event_type": event.type,
        **describe(event),
    }
    return tracing.open_span(
        f"process {event.topic}", member, SpanKind.CONSUMER, batches=[batch], attributes=attributes
    )
