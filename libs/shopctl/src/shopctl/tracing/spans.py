"""A span, parsed from OTLP."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

Value: TypeAlias = "str | int | float | bool | list[Value] | None"
SpanId: TypeAlias = tuple[str, str]
"""The ids of the trace and the span, in hexadecimal digits."""


@dataclass(frozen=True)
class Event:
    """An event of a span, such as an exception."""

    name: str
    at_ns: int
    attributes: Mapping[str, Value]


@dataclass(frozen=True)
class Span:
    """A span. Times are Unix nanoseconds; `parent` is None for the root of a trace."""

    id: SpanId
    parent: SpanId | None
    name: str
    kind: str
    process: str
    instance: str
    start_ns: int
    end_ns: int
    failed: bool
    message: str
    attributes: Mapping[str, Value]
    events: Sequence[Event]
    links: Sequence[SpanId]

    @classmethod
    def of(cls, span: pb.Span, process: str, instance: str) -> Self:
        """Parse an OTLP span; process and instance come from its resource."""
        trace_id = span.trace_id.hex()
        return cls(
            id=(trace_id, span.span_id.hex()),
            parent=(trace_id, span.parent_span_id.hex()) if span.parent_span_id else None,
            name=span.name,
            kind=pb.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            process=process,
            instance=instance,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            failed=span.status.code == pb.Status.STATUS_CODE_ERROR,
            message=span.status.message,
            attributes=attributes_of(span.attributes),
            events=tuple(
                Event(event.name, event.time_unix_nano, attributes_of(event.attributes)) for event in span.events
            ),
            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        )

    @property
    def orders(self) -> frozenset[str]:
        """The ids of the orders that the span is about."""
        return frozenset(orders_in(self.attributes))

    @property
    def reason(self) -> str | None:
        """Why the span failed or was refused, or None if it succeeded."""
        kind = self.attributes.get("error.type")
        if not self.failed and kind is None:
            return None
        raised = [event.attributes.get("exception.message") for event in self.events if event.name == "exception"]
        parts = [str(part) for part in (kind, self.message or (raised[-1] if raised else None)) if part]
        return ": ".join(dict.fromkeys(parts)) or "failed"


def attributes_of(pairs: Sequence[KeyValue]) -> dict[str, Value]:
    """Return attributes by their keys."""
    return {pair.key: _value(pair.value) for pair in pairs}


def orders_in(attributes: Mapping[str, Value]) -> Iterator[str]:
    """Yield the ids of the orders that a span with these attributes is about."""
    one, several = attributes.get("shop.order_id"), attributes.get("shop.order_ids")
    if one:
        yield str(one)
    if isinstance(several, list):
        yield from map(str, several)


def _value(any_value: AnyValue) -> Value:
    match any_value.WhichOneof("value"):
        case "string_value":
            return any_value.string_value
        case "int_value":
            return any_value.int_value
        case "double_value":
            return any_value.double_value
        case "bool_value":
            return any_value.bool_value
        case "array_value":
            return [_value(each) for each in any_value.array_value.values]
        case "bytes_value":
            return any_value.bytes_value.hex()
        case _:
            return None  # maps, which attributes of spans do not use
