"""Points in time, to the microsecond and always in UTC."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shop_common.timestamps import from_micros, micros, rfc3339, rfc3339_of_micros, to_proto, to_proto_or_none

moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - given one


@settings(deadline=None)  # a slow machine is not a failure
@given(moments)
def test_microseconds_are_exact(moment: datetime) -> None:
    assert from_micros(micros(moment)) == moment


@settings(deadline=None)  # a slow machine is not a failure
@given(moments)
def test_a_timestamp_is_the_same_moment(moment: datetime) -> None:
    timestamp = to_proto(moment)

    assert timestamp.seconds * 1_000_000 + timestamp.nanos // 1000 == micros(moment)
    assert 0 <= timestamp.nanos < 10**9
    assert timestamp.nanos % 1000 == 0


@settings(deadline=None)  # a slow machine is not a failure
@given(moments.filter(lambda moment: moment.year >= 1000), st.integers(-14 * 60, 14 * 60))
def test_a_moment_is_written_in_utc_wherever_it_comes_from(moment: datetime, offset_minutes: int) -> None:
    elsewhere = moment.astimezone(timezone(timedelta(minutes=offset_minutes)))

    assert rfc3339(elsewhere) == rfc3339(moment)
    assert datetime.fromisoformat(rfc3339(moment)) == moment


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2024, 1, 15, 10, 30, tzinfo=UTC), "2024-01-15T10:30:00.000000Z"),
        (datetime(2024, 1, 15, 10, 30, 59, 7, tzinfo=UTC), "2024-01-15T10:30:59.000007Z"),
    ],
)
def test_a_moment_always_has_six_decimals(moment: datetime, written: str) -> None:
    assert rfc3339(moment) == written


def test_a_time_that_is_absent_stays_absent() -> None:
    assert to_proto_or_none(None) is None
    assert to_proto_or_none(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)) == to_proto(from_micros(1_000_000))


@settings(deadline=None)  # a slow machine is not a failure
@given(moments.filter(lambda moment: moment.year >= 1000))
def test_microseconds_are_written_as_their_moment_is(moment: datetime) -> None:
    assert rfc3339_of_micros(micros(moment)) == rfc3339(moment)
