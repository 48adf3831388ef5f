"""What Prometheus is told of consumers."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram


class ConsumerMetrics:
    """The metrics of the consumer of one topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def handled(self, event_type: str, count: int, seconds: float) -> None:
        """So many events of a type were handled at once, in so long."""
        _handled().labels(self._topic, event_type).inc(count)
        _seconds().labels(self._topic, event_type).observe(seconds)

    def set_aside(self, reason: str) -> None:
        """A message became a dead letter."""
        _dead_letters().labels(self._topic, reason).inc()

    def missed(self, count: int) -> None:
        """So many messages were deleted from the topic before they were handled."""
        _missed().labels(self._topic).inc(count)

    def lag(self, messages: int) -> None:
        """So many messages are still to be done."""
        _lag().labels(self._topic).set(messages)


@cache
def _handled() -> Counter:
    return Counter("consumer_events_total", "Events handled", ("topic", "type"))


@cache
def _seconds() -> Histogram:
    return Histogram(
        "consumer_handling_seconds",
        "Time to handle a list of events of one type, with what it waited for the database",
        ("topic", "type"),
    )


@cache
def _dead_letters() -> Counter:
    return Counter("consumer_dead_letters_total", "Messages set aside in the dead-letter topic", ("topic", "reason"))


@cache
def _missed() -> Counter:
    return Counter("consumer_missed_total", "Messages deleted from the topic before they were handled", ("topic",))


@cache
def _lag() -> Gauge:
    # With several processes of one service, theirs together.
    return Gauge("consumer_lag_messages", "Messages not handled yet", ("topic",), multiprocess_mode="livesum")
