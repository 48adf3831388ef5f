"""What other services tell: messages of a topic as events, and the order in which to act on them.

Anybody may write anything into a topic. `read` alone touches the client library's message: whatever its bytes are, it
gives a Received, and everything after it works on that.
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

from shop_common.telemetry import tracing

Position = tuple[str, int, int]
"""Topic, partition and offset: no other message has the same."""


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

    @property
    def position(self) -> Position:
        """Where it lies."""
        return self.topic, self.partition, self.offset


Describe = Callable[[Event], Mapping[str, AttributeValue]]
"""What the span of an event says of it."""


class Undecodable(Exception):
    """The message is no event; the text says why."""


class Received(NamedTuple):
    """A message of a topic, whatever its bytes. `headers` are in their order, or None when they cannot be read."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] | None

    @property
    def position(self) -> Position:
        """Where it lies."""
        return self[:3]

    def header(self, name: str) -> str:
        """A header's text, empty when it is absent. Raises UnicodeDecodeError."""
        for candidate, value in self.headers or ():
            if candidate == name:
                return value.decode()
        return ""


# Never call `message.headers()` itself. For a header whose name is not UTF-8, confluent-kafka (up to 2.16.1) sets an
# exception and still returns a list, with a null pointer in it. CPython checks the result of a call for that and raises
# SystemError. But it does not check a method call that it has specialised, as it does in hot code: then the null
# pointer ends the process. A call through `methodcaller` is checked in every version. See ADR 0015.
_checked_headers = methodcaller("headers")


def headers_of(message: Message) -> list[tuple[str, bytes]] | None:
    """All headers of the message, in their order; None when the name of one is not UTF-8."""
    try:
        found: list[tuple[str, bytes | None]] | None = _checked_headers(message)
    except (SystemError, UnicodeDecodeError):
        # The message keeps its broken list, and would return it to the next caller without an exception.
        message.set_headers([])
        return None
    return [(name, value or b"") for name, value in found or ()]


def read(message: Message) -> Received:
    """The message, which must have no error. Never raises for what its sender wrote."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None:
        raise AssertionError("a message without an error has a position")
    return Received(topic, partition, offset, message.key() or b"", message.value() or b"", headers_of(message))


def type_of(message: Received) -> str | None:
    """The event's type by the header alone, so that most messages need not be parsed; None when it is not there."""
    try:
        return message.header("ce_type") or None
    except UnicodeDecodeError:
        return None


def decode(message: Received) -> Event:
    """The message as an event, its type taken from the body if the header has none. Raises Undecodable."""
    if message.headers is None:
        raise Undecodable("not an event: the name of a header is not UTF-8")
    try:
        body = orjson.loads(message.value)
        event_type = type_of(message) or body["event_type"]
        data = body["data"]
        occurred_at = datetime.fromisoformat(body["timestamp"])
        key = message.key.decode()
        event_id = message.header("ce_id") or "/".join(map(str, message.position))
    except Exception as error:  # nothing but the message is read here: whatever fails, it is the message's fault
        raise Undecodable(f"not an event: {type(error).__name__}: {error}") from error
    if not isinstance(event_type, str) or not isinstance(data, dict) or occurred_at.tzinfo is None:
        raise Undecodable("not an event: event_type must be text, data an object, timestamp a time with its zone")
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
    return tracing.open_span(
        f"process {event.topic}", member, SpanKind.CONSUMER, batches=[batch], attributes=attributes
    )
