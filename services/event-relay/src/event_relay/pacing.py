"""Decides when the relay polls again and which shards a pass reads. Detects that no relay ships the oldest row."""

import time

BUSY_POLLS = 0.1
"""The shortest pause, as a fraction of `poll_seconds`. After an event, another event probably follows soon, and a full
pause would be most of that event's delay."""

QUIET_SECONDS = 1.0
QUIET_POLLS = 5
"""The pause after a second without events, as a multiple of `poll_seconds`. An empty poll costs about a millisecond of
CPU, including the database. Fifty empty polls a second are too many."""


class Pause:
    """The pause after an empty poll. It grows with the time since the last event."""

    def __init__(self, poll_seconds: float) -> None:
        self._poll_seconds = poll_seconds
        self._found_at = float("-inf")

    def found(self) -> None:
        """Record that a poll found events."""
        self._found_at = time.monotonic()

    def seconds(self) -> float:
        since = time.monotonic() - self._found_at
        if since > QUIET_SECONDS:
            return self._poll_seconds * QUIET_POLLS
        return min(max(since, self._poll_seconds * BUSY_POLLS), self._poll_seconds)


class Halves:
    """Under load, passes alternate between two halves of the shards. The relay reads one half while it sends the other.

    So no row is read while it is outstanding.
    """

    def __init__(self) -> None:
        self.active = False
        self._half = 0

    def shards_of_pass(self, shards: tuple[int, ...]) -> tuple[int, ...]:
        """Return the next half of the shards if `active`, else all shards."""
        if not self.active:
            return shards
        self._half = 1 - self._half
        return shards[self._half :: 2]


class Stall:
    """Watches the oldest row while this relay owns no shard. If the row stays the same for long, no relay ships it.

    It compares row ids, and measures time by the clock of this process. The age of the row would be wrong after the
    database's clock was set back.
    """

    def __init__(self) -> None:
        self._row_id: int | None = None
        self._since = float("inf")

    def observe(self, row_id: int | None) -> None:
        """Record the id of the oldest row. `row_id` is None if there is no row, or if this relay owns shards."""
        if row_id != self._row_id or row_id is None:
            self._row_id = row_id
            self._since = float("inf") if row_id is None else time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since
