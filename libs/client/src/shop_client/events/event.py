"""Events, and how they are decoded from messages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from operator import methodcaller
from typing import Any

from confluent_kafka import Message

# If the name of a header is not UTF-8, confluent-kafka (up to 2.16.1) sets an exception but still returns a list with a
# null pointer in it. CPython does not check a method call for that once the code is hot, and would crash. It checks a
# call through `methodcaller`.
_checked_headers = methodcaller("headers")


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the contract, proto/asyncapi.yaml, which describes `data` of each type. Amounts are Decimal.

    `id` is the same in each repeat of the event. `sequence` grows with each event of the same `entity`; None if the
    message has none.
    """

    id: str
    type: str
    key: str
    data: Mapping[str, Any]
    time: datetime
    source: str
    tenant: str
    actor: str | None
    sequence: int | None
    traceparent: str | None
    topic: str
    partition: int
    offset: int

    @property
    def entity(self) -> str:
        """The order, reservation or item that this event is about, such as `reservation/ID`."""
        for field, kind in (("reservation_id", "reservation"), ("item_id", "item")):
            if field in self.data:
                return f"{kind}/{self.data[field]}"
        return f"order/{self.key}"


class Undecodable(Exception):
    """The message is not an event. The text is the reason."""


def headers_of(message: Message) -> list[tuple[str, bytes]] | None:
    """Return all headers of the message, in order. None if a name is not UTF-8."""
    try:
        found: list[tuple[str, bytes | None]] | None = _checked_headers(message)
    except (SystemError, UnicodeDecodeError):
        return None
    return [(name, value or b"") for name, value in found or ()]


def decode(message: Message) -> Event:
    """Decode a message that is not an error. Raises Undecodable."""
    found = headers_of(message)
    if found is None:
        raise Undecodable("the name of a header is not UTF-8")
    try:
        headers = {name: value.decode() for name, value in reversed(found)}  # of two headers, the first one
        body = json.loads(message.value() or b"", parse_float=Decimal)
        event_type, data, time = body["event_type"], body["data"], datetime.fromisoformat(body["timestamp"])
        sequence = headers.get("ce_sequence")
        if not isinstance(event_type, str) or not isinstance(data, dict) or time.tzinfo is None:
            raise Undecodable("event_type must be a string, data an object, and timestamp a time with an offset")
        topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
        return Event(
            id=headers.get("ce_id") or f"{topic}/{partition}/{offset}",
            type=event_type,
            key=(message.key() or b"").decode(),
            data=data,
            time=time.astimezone(UTC),
            source=headers.get("ce_source", ""),
            tenant=headers.get("ce_tenant", "default"),
            actor=headers.get("ce_actor"),
            sequence=None if sequence is None else int(sequence),
            traceparent=headers.get("traceparent"),
            topic=topic,
            partition=partition,
            offset=offset,
        )
    except (LookupError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from error
