"""Points in time: always UTC, to the microsecond."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """The moment so many microseconds after 1970."""
    return _EPOCH + value * _MICROSECOND


def rfc3339(moment: datetime) -> str:
    """As events write it: `2024-01-15T10:30:00.000000Z`."""
    return rfc3339_of_micros(micros(moment))


def rfc3339_of_micros(value: int) -> str:
    """As events write the moment so many microseconds after 1970."""
    second, micro = divmod(value, 1_000_000)
    return f"{_rfc3339_second(second)}.{micro:06}Z"


@lru_cache(maxsize=64)
def _rfc3339_second(second: int) -> str:
    # Events come by the hundreds from within one second.
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def to_proto(moment: datetime) -> Timestamp:
    """As the API writes it."""
    seconds, micro = divmod(micros(moment), 1_000_000)
    return Timestamp(seconds=seconds, nanos=micro * 1000)


def to_proto_or_none(moment: datetime | None) -> Timestamp | None:
    """As the API writes a time that may be absent."""
    return None if moment is None else to_proto(moment)
