"""Times on a command line: relative to now, or absolute."""

import argparse
from contextlib import suppress
from datetime import UTC, datetime

from shopctl.terminal import durations

FORMS = "30m, 2h, 7d ago, or an ISO 8601 time"


def parse(text: str) -> datetime:
    """Return the time in UTC. A time without a zone is in the local time zone. Use it as the type of an option."""
    try:
        with suppress(argparse.ArgumentTypeError):
            return datetime.now(UTC) - durations.parse(text)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be 30m, 2h or 7d, or a time such as 2024-01-15T10:30:00Z") from None
