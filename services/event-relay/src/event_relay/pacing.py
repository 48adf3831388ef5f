"""When the relay looks again, which shards take part in a pass, and whether nobody ships the oldest event."""

import time

BUSY_POLLS = 0.1
"""After an event the next one is probably near: a full pause would be most of its delay."""

QUIET_SECONDS = 1.0
QUIET_POLLS = 5
"""A look costs about a millisecond of CPU, the database's included. Fifty a second for nothing are too many."""


class Pause:
    """Return the seconds to wait after an empty poll: more, the fewer events have arrived lately."""

    def __init__(self, poll_seconds: float) -> None:
        self._poll_seconds = poll_seconds
        self._found_at = float("-inf")

    def found(self) -> None:
        """A look found events."""
        self._found_at = time.monotonic()

    def seconds(self) -> float:
        since = time.monotonic() - self._found_at
        if since > QUIET_SECONDS:
            return self._poll_seconds * QUIET_POLLS
        return min(max(since, self._poll_seconds * BUSY_POLLS), self._poll_seconds)


class Halves:
    """Under load, the shards take turns in two halves, so that one is read while the other is being sent."""

    def __init__(self) -> None:
        self.active = False
        self._half = 0

    def shards_of_pass(self, shards: tuple[int, ...]) -> tuple[int, ...]:
        """All shards, or the half whose turn it is."""
        if not self.active:
            return shards
        self._half = 1 - self._half
        return shards[self._half :: 2]


class Stall:
    """Watches the oldest row while this relay owns no shard. The same row for long means that nobody ships.

    By row id and our own clock: the age of a row means nothing after the database's clock was set back.
    """

    def __init__(self) -> None:
        self._row_id: int | None = None
        self._since = float("inf")

    def observe(self, row_id: int | None) -> None:
        """The oldest row now; None if there is none, or if this relay owns shards."""
        if row_id != self._row_id or row_id is None:
            self._row_id = row_id
            self._since = float("inf") if row_id is None else time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since
