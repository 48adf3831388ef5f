"""Times on a command line: as far back from now, or by the calendar."""

import argparse
import re
from datetime import UTC, datetime, timedelta

FORMS = "30m, 2h, 7d ago, or an ISO 8601 time"

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> datetime:
    """In UTC, for argparse. A time without a zone is that of the person who typed it."""
    try:
        if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be 30m, 2h or 7d, or a time such as 2024-01-15T10:30:00Z") from None
