"""The metrics of consumers."""

from shop_common.telemetry import metrics

_handled = metrics.counter(__name__, "shop_consumer_events_total", "Events handled", "topic", "type")
_seconds = metrics.histogram(
    __name__,
    "shop_consumer_handling_seconds",
    "Time to handle a list of events of one type, including waits for the database",
    "topic",
    "type",
)
_dead_letters = metrics.counter(
    __name__, "shop_consumer_dead_letters_total", "Messages set aside in the dead-letter topic", "topic", "reason"
)
_missed = metrics.counter(
    __name__, "shop_consumer_missed_total", "Messages deleted from the topic before they were handled", "topic"
)
_lag = metrics.gauge(
    __name__,
    "shop_consumer_lag_messages",
    "Messages not handled yet, in the partitions assigned to this process",
    "topic",
)

_stalled = metrics.gauge(
    __name__,
    "shop_consumer_stalled_partitions",
    "Partitions with waiting messages of which none was handled for a minute, while the database is available",
    "topic",
)


class ConsumerMetrics:
    """The metrics of the consumer of one topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def handled(self, event_type: str, count: int, seconds: float) -> None:
        """Record that a list of events of one type was handled, and how long that took."""
        _handled(self._topic, event_type).inc(count)
        _seconds(self._topic, event_type).observe(seconds)

    def set_aside(self, reason: str) -> None:
        """Count a message that was set aside."""
        _dead_letters(self._topic, reason).inc()

    def missed(self, count: int) -> None:
        """Count messages that were deleted from the topic before they were handled."""
        _missed(self._topic).inc(count)

    def measured(self, lag: int, stalled: int) -> None:
        """Set the lag in messages and the number of stalled partitions."""
        _lag(self._topic).set(lag)
        _stalled(self._topic).set(stalled)
