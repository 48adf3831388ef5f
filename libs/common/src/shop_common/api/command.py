"""What every request for a change carries besides its own content."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A request for a change, after parsing.

    `request_id` makes it safe to repeat: None if the caller sent none. `traceparent` continues the caller's trace in
    the events that the change emits; commands that differ in it alone are equal.
    """

    request_id: str | None = None
    traceparent: str | None = field(default=None, compare=False)
