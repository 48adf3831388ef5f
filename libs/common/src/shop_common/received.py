"""What other services tell: messages of a topic as events, and the order in which to act on them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

import orjson
from confluent_kafka import Message
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from shop_common import telemetry


@dataclass(frozen=True, slots=True)
class Event:
    """A fact, as a handler gets it: `data` is of that `type`, `key` names what it happened to.

    What a handler emits in turn continues the trace of `traceparent`.
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


Describe = Callable[[Event], Mapping[str, AttributeValue]]
"""What the span of an event says of it."""


class Undecodable(Exception):
    """The message is no event; the text says why."""


def type_of(message: Message) -> str | None:
    """The event's type by the header alone, so that most messages need not be parsed; None when it is not there."""
    try:
        return header(message, "ce_type") or None
    except UnicodeDecodeError:
        return None


def decode(message: Message) -> Event:
    """The message as an event, its type taken from the body if the header has none. Raises Undecodable."""
    topic, partition, offset = position(message)
    try:
        body = orjson.loads(message.value() or b"")
        event_type = type_of(message) or body["event_type"]
        data = body["data"]
        occurred_at = datetime.fromisoformat(body["timestamp"])
        key = (message.key() or b"").decode()
        event_id = header(message, "ce_id") or f"{topic}/{partition}/{offset}"
    except (KeyError, TypeError, ValueError) as error:
        raise Undecodable(f"not an event: {type(error).__name__}: {error}") from error
    if not isinstance(event_type, str) or not isinstance(data, dict) or occurred_at.tzinfo is None:
        raise Undecodable("not an event: event_type must be text, data an object, timestamp a time with its zone")
    return Event(
        type=event_type,
        key=key,
        event_id=event_id,
        data=data,
        occurred_at=occurred_at,
        traceparent=telemetry.from_kafka(headers(message)),
        topic=topic,
        partition=partition,
        offset=offset,
    )


def in_sequence(events: Iterable[Event]) -> list[list[Event]]:
    """Few lists of equal type that, worked on one after the other, keep the order of the events of each key.

    An event goes as many steps behind the first of its key as the type has changed since; within a step, types
    belong to different keys, and each makes one list.
    """
    steps: dict[tuple[int, str], list[Event]] = {}
    latest: dict[str, tuple[int, str]] = {}
    for event in events:
        step, of_type = latest.get(event.key, (0, event.type))
        if event.type != of_type:
            step += 1
        latest[event.key] = (step, event.type)
        steps.setdefault((step, event.type), []).append(event)
    return [steps[key] for key in sorted(steps)]


@contextmanager
def traced(events: Sequence[Event], describe: Describe) -> Iterator[Sequence[Event]]:
    """Spans around handling events of one type: one for all, and one in the trace of each that is recorded.

    Gives the events to handle; what is done for one continues its own span.
    """
    members = {
        number: span
        for number, event in enumerate(events)
        if (span := telemetry.sampled_traceparent(event.traceparent))
    }
    about: dict[str, AttributeValue] = {"messaging.system": "kafka", "messaging.batch.message_count": len(events)}
    with telemetry.batch_span(f"{events[0].type} batch", list(members.values()), attributes=about) as batch:
        spans = {number: _open_span(events[number], member, batch, describe) for number, member in members.items()}
        try:
            yield [
                replace(event, traceparent=telemetry.traceparent_of(spans[number])) if number in spans else event
                for number, event in enumerate(events)
            ]
        except BaseException as error:
            for made in spans.values():
                made.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            for made in spans.values():
                made.end()


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
    return telemetry.open_span(
        f"process {event.topic}", member, SpanKind.CONSUMER, batches=[batch], attributes=attributes
    )


def position(message: Message) -> tuple[str, int, int]:
    """Topic, partition and offset: no other message has the same."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None:
        raise AssertionError("a message without an error has a position")
    return topic, partition, offset


def header(message: Message, name: str) -> str:
    """A header's text, empty when it is absent. Raises UnicodeDecodeError."""
    for candidate, value in headers(message):
        if candidate == name:
            return value.decode()
    return ""


def headers(message: Message) -> Sequence[tuple[str, bytes]]:
    """All headers of the message, in their order."""
    # The type given by the library also names the forms in which it takes headers. It gives out this one.
    found = cast("list[tuple[str, bytes | None]] | None", message.headers())
    return [(name, value or b"") for name, value in found or ()]
