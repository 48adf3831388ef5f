"""Validates request fields. A `Fields` collects all violations, so that the caller gets them in one error.

An error has at most VIOLATIONS_MAX violations, each of limited length. If there are more, it has one further violation
that reports this.

    with Fields() as check:
        product_id = check.between("product_id", request.product_id, 1, INT64_MAX)
        order_id = check.identifier("order_id", request.order_id)

The end of the block raises InvalidInput if there was a violation. So the return value of a failed check is never used.
"""

import re
from collections.abc import Sized
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from shop_common.errors import InvalidInput, Violation
from shop_common.telemetry import tracing
from shop_common.timestamps import from_micros

INT64_MAX = 2**63 - 1
IDENTIFIER_LENGTH_MAX = 64
UUID_LENGTH = 36
TEXT_LENGTH_MAX = 500
VIOLATIONS_MAX = 20
VIOLATION_BYTES_MAX = 200
UUID_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
IDENTIFIER_PATTERN = re.compile(r"[\x20-\x7e]{1,64}\Z")
LOCATION_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

# C0 and C1 controls, line and paragraph separators, and characters that are invisible or change the text direction.
# The two joiners (200C, 200D) are allowed, because Persian, Indic scripts and emoji need them.
_NOT_TEXT = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_NANOS = 1_000_000_000

# The bounds of google.protobuf.Timestamp: years 1 to 9999.
_TIMESTAMP_SECONDS_MIN = -62_135_596_800
_TIMESTAMP_SECONDS_MAX = 253_402_300_799

_MORE = Violation("request", "has more fields that are wrong")

_T = TypeVar("_T")


class Fields:
    """Collects the violations of one request. `prefix` is the path of the validated message within the request."""

    __slots__ = ("_prefix", "_violations")

    def __init__(self, prefix: str = "", violations: list[Violation] | None = None) -> None:
        self._prefix = prefix
        self._violations: list[Violation] = [] if violations is None else violations

    def at(self, path: str) -> "Fields":
        """Return a Fields for the message at `path`, such as `lines[3]`. Both record violations in the same list."""
        return Fields(f"{self._prefix}{path}.", self._violations)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._violations:
            raise InvalidInput(self._violations)

    def violate(self, field: str, description: str) -> None:
        """Record a violation. A description may quote only text whose length was checked."""
        found = self._violations
        if len(found) < VIOLATIONS_MAX:
            found.append(Violation(_short(self._prefix + field), _short(description)))
        elif len(found) == VIOLATIONS_MAX:
            found.append(_MORE)

    def between(self, field: str, value: int, low: int, high: int) -> int:
        """Check that a whole number is between `low` and `high`, inclusive."""
        if not low <= value <= high:
            self.violate(field, f"must be between {low} and {high}")
        return value

    def identity(self, field: str, value: int) -> int:
        """Check the id of a product, user or item: a positive int64."""
        if value < 1:
            self.violate(field, f"must be between 1 and {INT64_MAX}")
        return value

    def identifier(self, field: str, value: str) -> str:
        """Check an identifier: 1 to 64 printable ASCII characters."""
        if not IDENTIFIER_PATTERN.match(value):
            self.violate(field, f"must be 1 to {IDENTIFIER_LENGTH_MAX} printable ASCII characters")
        return value

    def location(self, field: str, value: str) -> str:
        """Check the name of a location: 1 to 64 characters of `A-Z a-z 0-9 _ -`."""
        if not LOCATION_PATTERN.match(value):
            self.violate(field, "must be 1 to 64 characters of A-Z a-z 0-9 _ -")
        return value

    def request_id(self, value: str, field: str = "request_id") -> str | None:
        """Check an idempotency key. Returns None if the caller sent none."""
        return self.identifier(field, value) if value else None

    def uuid(self, field: str, value: str) -> str:
        """Check a UUID in canonical text form, with capital letters allowed. Returns it in lower case."""
        lowered = value.lower() if len(value) == UUID_LENGTH else ""
        if not UUID_PATTERN.match(lowered):
            self.violate(field, "must be a UUID such as 018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b11")
        return lowered

    def text(self, field: str, value: str, length_max: int = TEXT_LENGTH_MAX) -> str:
        """Check one line of free text: at most `length_max` characters, without control or invisible characters."""
        if len(value) > length_max or _NOT_TEXT.search(value):
            self.violate(
                field, f"must be one line of at most {length_max} characters, none of them control or invisible"
            )
        return value

    def size(self, field: str, values: Sized, low: int, high: int) -> bool:
        """Return whether a repeated field has between `low` and `high` entries. Records a violation if not."""
        if low <= len(values) <= high:
            return True
        self.violate(field, f"must have between {low} and {high} entries")
        return False

    def page_size(self, value: int, default: int = 50, largest: int = 1000) -> int:
        """Return the number of entries on a page: `default` if `value` is 0, and at most `largest`."""
        if value < 0:
            self.violate("page_size", "must not be negative")
        return min(value, largest) if value else default

    def duration(self, field: str, value: Duration, low_seconds: float, high_seconds: float) -> float:
        """Check that a Duration is between `low_seconds` and `high_seconds`, inclusive. Returns seconds."""
        return self.between_seconds(field, seconds_of(value), low_seconds, high_seconds)

    def between_seconds(self, field: str, seconds: float | None, low: float, high: float) -> float:
        """Check that `seconds` is between `low` and `high`, inclusive. None, from a malformed Duration, is invalid."""
        if seconds is None or not low <= seconds <= high:
            self.violate(field, f"must be a duration between {low:g} s and {high:g} s")
            return low
        return seconds

    def instant(self, field: str, value: Timestamp) -> datetime:
        """Check a Timestamp. Returns the time in UTC, rounded down to microseconds."""
        if not _TIMESTAMP_SECONDS_MIN <= value.seconds <= _TIMESTAMP_SECONDS_MAX or not 0 <= value.nanos < _NANOS:
            self.violate(field, "must be a time in the years 1 to 9999, with nanos between 0 and 999999999")
            return from_micros(0)
        return from_micros(value.seconds * 1_000_000 + value.nanos // 1000)

    def traceparent(self, value: str) -> str | None:
        """Check a W3C traceparent. Returns None if the caller sent none."""
        if value and tracing.valid_traceparent(value) is None:
            self.violate("traceparent", "must be a W3C traceparent of version 00")
        return value or None

    def member(self, field: str, value: int, known: dict[int, _T]) -> _T | None:
        """Return the domain value of an enum number. An unknown number is a violation."""
        found = known.get(value)
        if found is None:
            self.violate(field, "must be a known value of its enum, and not the unspecified one")
        return found


def _short(text: str) -> str:
    text = text[:VIOLATION_BYTES_MAX]
    return text if text.isascii() else text.encode()[:VIOLATION_BYTES_MAX].decode(errors="ignore")


def seconds_of(value: Duration) -> float | None:
    """Return a Duration in seconds, or None if it is malformed."""
    if not -_NANOS < value.nanos < _NANOS or (
        value.seconds and value.nanos and (value.seconds < 0) != (value.nanos < 0)
    ):
        return None
    return value.seconds + value.nanos / _NANOS
