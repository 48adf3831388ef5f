"""Converts timestamps. All timestamps are in UTC and have microsecond precision."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(timestamp: datetime) -> int:
    """Return the number of microseconds since 1970 UTC."""
    return (timestamp - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Return the timestamp of a number of microseconds since 1970."""
    return _EPOCH + value * _MICROSECOND


def rfc3339(timestamp: datetime) -> str:
    """Format a timestamp as in events: `2024-01-15T10:30:00.000000Z`."""
    return rfc3339_of_micros(micros(timestamp))


def rfc3339_of_micros(value: int) -> str:
    """Format microseconds since 1970 as in events."""
    second, micro = divmod(value, 1_000_000)
    return f"{_rfc3339_second(second)}.{micro:06}Z"


@lru_cache(maxsize=64)
def _rfc3339_second(second: int) -> str:
    # The result is cached, because hundreds of events share one second.
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def to_proto(timestamp: datetime) -> Timestamp:
    """Convert a timestamp to protobuf."""
    seconds, micro = divmod(micros(timestamp), 1_000_000)
    return Timestamp(seconds=seconds, nanos=micro * 1000)


def to_proto_or_none(timestamp: datetime | None) -> Timestamp | None:
    """Convert an optional timestamp to protobuf."""
    return None if timestamp is None else to_proto(timestamp)
