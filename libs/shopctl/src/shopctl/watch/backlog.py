"""Decides whether a backlog of events is usual or a problem."""

OLDEST_SECONDS_MAX = 10.0
"""An older event in an outbox is a problem. While the relay and the broker work, events wait for less time."""
