"""When works are due."""

from datetime import UTC, datetime, timedelta

import pytest

from reservation_reaper.triggers import Cron, Every

NOW = datetime(2026, 11, 27, 12, 30, tzinfo=UTC)
YEAR = timedelta(days=365)
SECOND = timedelta(seconds=1)


def test_an_interval_begins_at_once_and_goes_on_with_jitter() -> None:
    every = Every(10)
    waits = [every.get_next_fire_time(NOW, NOW) - NOW for _ in range(200)]

    assert every.get_next_fire_time(None, NOW) == NOW
    assert all(9 * SECOND <= wait <= 11 * SECOND for wait in waits)
    assert len(set(waits)) > 1


def test_the_times_of_a_cron_expression_are_utc_and_at_most_half_a_minute_late() -> None:
    cron = Cron("0 3 * * *")
    first = cron.get_next_fire_time(None, NOW)
    second = cron.get_next_fire_time(first, first)

    assert timedelta() <= first - datetime(2026, 11, 28, 3, tzinfo=UTC) <= 30 * SECOND
    assert timedelta() <= second - datetime(2026, 11, 29, 3, tzinfo=UTC) <= 30 * SECOND


def test_sunday_is_sunday() -> None:
    assert Cron("0 3 * * sun").get_next_fire_time(None, NOW).isoweekday() == 7


@pytest.mark.parametrize("trigger", [Every(0.05), Cron("* * * * *")])
def test_runs_that_were_missed_are_not_listed_one_by_one(trigger: Every | Cron) -> None:
    begun = trigger.get_next_fire_time(None, NOW)

    assert trigger.get_next_fire_time(begun, NOW + 50 * YEAR) > NOW + 50 * YEAR


def test_a_clock_that_is_set_back_a_little_repeats_no_run() -> None:
    cron = Cron("0 3 * * *")
    ran_at = datetime(2026, 11, 28, 3, tzinfo=UTC)

    assert cron.get_next_fire_time(ran_at, ran_at - SECOND) > ran_at + 23 * timedelta(hours=1)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("0 3 * *", "must have five fields: minute, hour, day, month, day_of_week"),
        ("@daily", "must have five fields"),
        ("60 3 * * *", "the last value (60) is higher than the maximum value (59)"),
        ("x 3 * * *", 'Unrecognized expression "x" for field "minute"'),
        ("0 3 * * 0", "must name weekdays: mon, tue, wed, thu, fri, sat, sun"),
        ("0 3 30 2 *", "must be a cron expression that comes true on some day"),
    ],
)
def test_a_wrong_expression_is_refused_with_the_reason(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match="must") as refused:
        Cron(expression)

    assert why in str(refused.value)
