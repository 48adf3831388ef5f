"""What stands in the place of an answer that did not come."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Away:
    """No answer; why."""

    reason: str
