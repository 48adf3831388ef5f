"""Bad values for every field of every request, generated from the descriptors: a new field needs no new test.

The number of entries that a repeated field takes is read from its comment in the proto, where callers read it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

PROTOS = Path(__file__).resolve().parents[2] / "proto"
TWO_DAYS_SECONDS = 2 * 24 * 3600
REQUEST_BYTES = 1_000_000
"""A request of this size is read: servers accept up to 1 MiB."""

A_UUID = "018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b11"

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# Free text accepts every character that is not a control character.
FREE_TEXT = {
    "actor", "carrier", "external_reference", "label", "reason", "reference", "region", "subject", "tracking_number",
    "value"
}  # fmt: skip

# Numbers that may be negative.
SIGNED = {"adjusted", "shop.inventory.v1.StockWithholding.quantity"}


NOT_TOGETHER = {
    "shop.order.v1.ListOrdersRequest": {
        "product_id", "external_reference", "label", "updated_after", "updated_before"
    },
    # The first change is `received`, which releases no reservations.
    "shop.inventory.v1.StockChange": {"release_shortfall"},
    # The first treatment withholds no units.
    "shop.order.v1.ReturnedUnits": {"withholding_reason"},
}  # fmt: skip
"""Fields that a valid request may not have together with its other fields. The tests set one of them at a time."""


NOT_BESIDE = {"shop.inventory.v1.StockChange.withheld": {"reason"}}
"""Fields that a valid message may not have together with a field of a oneof."""


@dataclass(frozen=True)
class Case:
    """A request with one bad field. `must_refuse` if no field of this type accepts the value."""

    method: MethodDescriptor
    path: str
    description: str
    request: Message
    must_refuse: bool

    def __str__(self) -> str:
        return f"{self.method.name} {self.path} {self.description}"


Change = Callable[[Any], None]
"""Sets a bad value in the message that has the field."""


def cases(method: MethodDescriptor) -> Iterator[Case]:
    """One case for each bad value of each field of the method's request, nested fields included."""
    for path, reach, change, description, must_refuse in _changes(method.input_type, ""):
        request = good(method.input_type)
        change(reach(request))
        yield Case(method, path, description, request, must_refuse)


def good(kind: Descriptor) -> Message:
    """A valid request in which every field is set, and each repeated field has one entry.

    Only the first field of a oneof is set.
    """
    message: Any = GetMessageClass(kind)()
    for field in kind.fields:
        oneof = field.containing_oneof
        if oneof and not oneof.name.startswith("_") and field.name != oneof.fields[0].name:
            continue
        if field.name in NOT_TOGETHER.get(kind.full_name, ()):
            continue
        value = _good_value(field)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        elif isinstance(value, Message):
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)
    built: Message = message
    return built


def _good_value(field: FieldDescriptor) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        kind = _kind(field)
        known = _GOOD_MESSAGES.get(kind.full_name)
        return known() if known else good(kind)
    if field.enum_type is not None:
        return field.enum_type.values[1].number
    if field.type == FieldDescriptor.TYPE_STRING:
        if field.name in {"page_token", "traceparent"}:
            return ""
        # A UUID is also a valid identifier, location and text. Each request gets a new request_id.
        if field.name == "permissions":
            return "inventory.read"
        if field.name == "tenant":
            return "default"
        return str(uuid4()) if field.name == "request_id" else A_UUID
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    return 1


_GOOD_MESSAGES: dict[str, Callable[[], Message]] = {
    "google.protobuf.Duration": lambda: Duration(seconds=TWO_DAYS_SECONDS),
    "google.protobuf.Timestamp": lambda: Timestamp(seconds=1_700_000_000),
    "google.type.Money": lambda: Money(currency_code="EUR", units=1),
}

_BAD_MESSAGES: dict[str, list[tuple[str, Message]]] = {
    "google.protobuf.Duration": [
        ("negative", Duration(seconds=-1)),
        ("zero", Duration()),
        ("largest", Duration(seconds=315_576_000_000)),
        ("overflowing", Duration(seconds=INT64_MAX)),
        ("smallest", Duration(seconds=INT64_MIN)),
        ("of contradicting signs", Duration(seconds=TWO_DAYS_SECONDS, nanos=-1)),
        ("with too many nanos", Duration(seconds=TWO_DAYS_SECONDS, nanos=INT32_MAX)),
    ],
    "google.protobuf.Timestamp": [
        ("before year 1", Timestamp(seconds=-62_135_596_801)),
        ("after year 9999", Timestamp(seconds=253_402_300_800)),
        ("overflowing", Timestamp(seconds=INT64_MAX)),
        ("smallest", Timestamp(seconds=INT64_MIN)),
        ("with negative nanos", Timestamp(nanos=-1)),
        ("with too many nanos", Timestamp(nanos=1_000_000_000)),
    ],
    "google.type.Money": [
        ("negative units", Money(currency_code="EUR", units=-1)),
        ("negative nanos", Money(currency_code="EUR", nanos=-1)),
        ("too many nanos", Money(currency_code="EUR", nanos=1_000_000_000)),
        ("overflowing", Money(currency_code="EUR", units=INT64_MAX)),
        ("without currency", Money(units=1)),
        ("of no currency", Money(currency_code="e\x00r", units=1)),
        ("of a long currency", Money(currency_code="E" * 10_000, units=1)),
    ],
}


def entries_allowed(field: FieldDescriptor) -> tuple[int, int]:
    """(minimum, maximum) from the field's comment in the proto: `// 1–200 lines, …`."""
    message = field.containing_type
    assert message is not None, "extensions are not supported here"
    text = (PROTOS / message.file.name).read_text()
    (body,) = re.findall(rf"^message {message.name} \{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE)
    limits = re.search(rf"// ([\d,]+)–([\d,]+) .*\n(?: *//.*\n)* *repeated [\w.]+ {field.name} = ", body)
    assert limits, f"{field.full_name}: its comment must begin with the number of entries, such as `1–200 lines`"
    fewest, most = (int(limit.replace(",", "")) for limit in limits.groups())
    return fewest, most


_Found = tuple[str, Callable[[Any], Any], Change, str, bool]


def _changes(kind: Descriptor, prefix: str) -> Iterator[_Found]:
    """For each bad value: path of the field, function from request to its message, change, name, must_refuse."""
    for field in kind.fields:
        path = prefix + field.name
        if field.is_repeated:
            yield from _repeated(field, path)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _message(field, path)
        else:
            for description, value, must_refuse in _scalars(field):
                yield path, _itself, _set(field.name, value), description, must_refuse


def _repeated(field: FieldDescriptor, path: str) -> Iterator[_Found]:
    fewest, most = entries_allowed(field)
    entry = _good_value(field)
    largest = REQUEST_BYTES // entry.ByteSize() if isinstance(entry, Message) else 10 * most
    for count in {0, max(fewest - 1, 0), most + 1, min(10 * most, largest)}:
        yield path, _itself, _fill(field, count), f"with {count} entries", not fewest <= count <= most
    if field.message_type is None:
        for description, value, must_refuse in _scalars(field):
            yield f"{path}[0]", _itself, _set_first(field.name, value), description, must_refuse
        return
    for nested, reach, change, description, must_refuse in _changes(_kind(field), f"{path}[0]."):
        yield nested, _first(field.name, reach), change, description, must_refuse


def _message(field: FieldDescriptor, path: str) -> Iterator[_Found]:
    bad = _BAD_MESSAGES.get(_kind(field).full_name)
    if bad is not None:
        for description, value in bad:
            yield path, _itself, _copy(field.name, value), description, True
        return
    for nested, reach, change, description, must_refuse in _changes(_kind(field), f"{path}."):
        yield nested, _part(field, reach), change, description, must_refuse


def _scalars(field: FieldDescriptor) -> Iterator[tuple[str, Any, bool]]:
    if field.type == FieldDescriptor.TYPE_STRING:
        yield "empty", "", False
        yield "with NUL", "a\x00b", True
        yield "of 10,000 characters", "x" * 10_000, True
        yield "of 65 characters", "x" * 65, field.name not in FREE_TEXT
        for odd in ("日本語", "a\u202eb", "🎲", "e\u0301", "\ufeff", "\u2028", "\U0010ffff"):
            yield f"of odd Unicode {odd!a}", odd, field.name not in FREE_TEXT
        yield "with a line's end", "a\n", field.name not in FREE_TEXT
        yield "of SQL", "'; DROP TABLE orders; --", False
    elif field.type == FieldDescriptor.TYPE_ENUM:
        yield "zero", 0, False
        for number in (999, -1, INT32_MAX, INT32_MIN):
            yield f"unknown {number}", number, True
    elif field.type == FieldDescriptor.TYPE_BOOL:
        yield "false", False, False
    elif field.type in (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_INT32):
        wide = field.type == FieldDescriptor.TYPE_INT64
        yield "zero", 0, False
        yield "negative", -1, not SIGNED & {field.name, field.full_name}
        yield "smallest", INT64_MIN if wide else INT32_MIN, True
        yield "largest", INT64_MAX if wide else INT32_MAX, False


def _kind(field: FieldDescriptor) -> Descriptor:
    """The type of a message field."""
    assert field.message_type is not None
    return field.message_type


def _itself(message: Any) -> Any:
    return message


def _part(field: FieldDescriptor, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def part(message: Any) -> Any:
        if not message.HasField(field.name):  # the valid request has another field of the oneof
            getattr(message, field.name).CopyFrom(good(_kind(field)))
            for other in NOT_BESIDE.get(field.full_name, ()):
                message.ClearField(other)
        return then(getattr(message, field.name))

    return part


def _first(name: str, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda message: then(getattr(message, name)[0])


def _set(name: str, value: Any) -> Change:
    return lambda message: setattr(message, name, value)


def _set_first(name: str, value: Any) -> Change:
    def change(message: Any) -> None:
        getattr(message, name)[0] = value

    return change


def _copy(name: str, value: Message) -> Change:
    return lambda message: getattr(message, name).CopyFrom(value)


def _fill(field: FieldDescriptor, count: int) -> Change:
    def fill(message: Any) -> None:
        entry = _good_value(field)
        message.ClearField(field.name)
        getattr(message, field.name).extend([entry] * count)

    return fill
