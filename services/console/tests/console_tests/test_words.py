"""Numbers and times as people read them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from console import words

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0123, "12 ms"), (3.44, "3.4 s"), (306, "5 min 06 s"), (7400, "2 h 03 min")],
)
def test_a_duration_has_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_numbers_have_separators() -> None:
    assert (words.whole(12345.0), words.rate(1234.4), words.rate(0.25), words.rate(0)) == (
        "12,345",
        "1,234 / s",
        "0.25 / s",
        "0 / s",
    )


@pytest.mark.parametrize(
    ("amount", "text"), [("1234.5", "1,234.50 EUR"), ("0.000000001", "0.000000001 EUR"), ("3", "3.00 EUR")]
)
def test_an_amount_is_exact_and_has_at_least_two_decimals(amount: str, text: str) -> None:
    assert words.amount(Decimal(amount), "EUR") == text


def test_a_countdown_ends_as_due() -> None:
    assert words.countdown(NOW + timedelta(seconds=59), NOW) == "59 s left"
    assert words.countdown(NOW + timedelta(seconds=125), NOW) == "2 min 05 s left"
    assert words.countdown(NOW - timedelta(seconds=1), NOW) == "due"


def test_times_are_in_the_viewers_zone_or_else_in_utc() -> None:
    assert words.at(NOW, words.zone_named("Asia/Tokyo")) == "2026-03-01 21:00:00"
    for unknown in (None, "Nowhere/Land", "../../etc/passwd"):
        assert words.at(NOW, words.zone_named(unknown)) == "2026-03-01 12:00:00"


def test_a_buyer_who_was_erased_has_no_id() -> None:
    assert (words.buyer(7), words.buyer(0)) == ("user 7", "an erased user")
