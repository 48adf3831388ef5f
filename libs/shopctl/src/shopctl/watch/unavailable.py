"""The result of a query to a part of the system that did not respond."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unavailable:
    """A part of the system that did not respond, with the reason."""

    reason: str
