"""Durations on a command line."""

import argparse
import re
from datetime import timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse(text: str) -> timedelta:
    """Return the duration. Use it as the type of an option."""
    try:
        if found := re.fullmatch(r"(\d{1,9})([smhd])", text):
            return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        pass
    raise argparse.ArgumentTypeError("must be a number and a unit: 30m, 2h or 90d")
