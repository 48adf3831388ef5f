"""Renders numbers, durations and times for people."""

from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

NONE = "–"


def whole(value: float | None) -> str:
    """Return 12,345, or a dash for None."""
    return NONE if value is None else f"{value:,.0f}"


def rate(per_second: float | None) -> str:
    """Return 1,234 / s or 0.25 / s."""
    if per_second is None:
        return NONE
    return f"{per_second:,.0f} / s" if per_second >= 10 or not per_second else f"{per_second:.2g} / s"


def duration(seconds: float | None) -> str:
    """Return 12 ms, 3.4 s, 5 min 06 s or 2 h 03 min."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def countdown(until: datetime, now: datetime) -> str:
    """Return the time left in whole seconds, or that it is over."""
    left = int((until - now).total_seconds())
    if left <= 0:
        return "due"
    return f"{left} s left" if left < 60 else f"{duration(left)} left"


def amount(value: Decimal, currency: str) -> str:
    """Return 1,234.50 EUR: at least two decimals, and no further zeros."""
    text = f"{value:,.9f}".rstrip("0")
    whole_part, _, decimals = text.partition(".")
    return f"{whole_part}.{decimals.ljust(2, '0')} {currency}"


def buyer(user_id: int) -> str:
    """Return the buyer of an order. The id 0 stands for a buyer who was erased."""
    return f"user {user_id}" if user_id else "an erased user"


def at(time: datetime, zone: tzinfo) -> str:
    """Return the date and the time in the viewer's zone."""
    return time.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def clock(time: datetime, zone: tzinfo) -> str:
    """Return the time of day in the viewer's zone, to the millisecond."""
    return time.astimezone(zone).isoformat(sep=" ", timespec="milliseconds")[11:23]


def zone_named(name: str | None) -> tzinfo:
    """Return the zone that a browser reports, or UTC if this machine does not know it."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return UTC
