"""Times on a command line: relative to now, or absolute."""

import argparse
import re
from datetime import UTC, datetime, timedelta

FORMS = "30m, 2h, 7d ago, or an ISO 8601 time"

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse(text: str) -> datetime:
    """Return the time in UTC. A time without a zone is in the local time zone. Use it as the type of an option."""
    try:
        if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be 30m, 2h or 7d, or a time such as 2024-01-15T10:30:00Z") from None
