"""When periodic tasks are due."""

from datetime import UTC, datetime, timedelta

import pytest

from reservation_reaper.triggers import Cron, Every

NOW = datetime(2026, 11, 27, 12, 30, tzinfo=UTC)
YEAR = timedelta(days=365)
SECOND = timedelta(seconds=1)


def test_an_interval_starts_at_once_and_has_jitter() -> None:
    every = Every(10)
    waits = [every.get_next_fire_time(NOW, NOW) - NOW for _ in range(200)]

    assert every.get_next_fire_time(None, NOW) == NOW
    assert all(9 * SECOND <= wait <= 11 * SECOND for wait in waits)
    assert len(set(waits)) > 1


def test_cron_times_are_in_utc_and_at_most_half_a_minute_late() -> None:
    cron = Cron("0 3 * * *")
    first = cron.get_next_fire_time(None, NOW)
    second = cron.get_next_fire_time(first, first)

    assert timedelta() <= first - datetime(2026, 11, 28, 3, tzinfo=UTC) <= 30 * SECOND
    assert timedelta() <= second - datetime(2026, 11, 29, 3, tzinfo=UTC) <= 30 * SECOND


def test_sunday_is_sunday() -> None:
    assert Cron("0 3 * * sun").get_next_fire_time(None, NOW).isoweekday() == 7


@pytest.mark.parametrize("trigger", [Every(0.05), Cron("* * * * *")])
def test_missed_runs_are_not_listed_one_by_one(trigger: Every | Cron) -> None:
    first = trigger.get_next_fire_time(None, NOW)

    assert trigger.get_next_fire_time(first, NOW + 50 * YEAR) > NOW + 50 * YEAR


def test_no_run_is_repeated_after_the_clock_is_set_back_a_little() -> None:
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
        ("0 3 30 2 *", "must be a cron expression that matches some day"),
    ],
)
def test_an_invalid_expression_is_rejected_with_the_reason(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match="must") as rejected:
        Cron(expression)

    assert why in str(rejected.value)
