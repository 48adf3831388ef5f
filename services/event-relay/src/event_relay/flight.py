"""Rows on their way to the broker: what was produced, and what is reported of it."""

import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode

from event_relay.pending import Pending
from shop_common.telemetry import telemetry


class Flight:
    """Rows on their way to the broker, and what became of them."""

    def __init__(
        self, producer: Producer, until: float, members: Mapping[int, SpanContext], span: SpanContext | None
    ) -> None:
        self.producer = producer
        self.until = until
        self.members = members
        self.produced: list[Pending] = []
        self.too_large: list[Pending] = []
        self.failure: str | None = None
        self._span = span
        self._spans: dict[int, Span] = {}
        self._lost: set[int] = set()

    @property
    def in_the_air(self) -> int:
        """How many events neither the broker has nor anybody reported as lost."""
        return len(self.producer)

    def wait_until(self, moment: float) -> None:
        """Take in reports until nothing is in the air, or the moment (monotonic clock) has come."""
        failure = serve(self.producer, moment)
        if failure is not None:
            self.failed(failure)

    def open_span(self, row: Pending) -> str | None:
        """The traceparent for the row's message: of a span that lasts until the flight has landed, or the row's own."""
        member = self.members.get(row.id)
        if member is None:
            return row.traceparent
        attributes = {
            "messaging.system": "kafka",
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "messaging.destination.name": row.topic,
            "messaging.message.id": row.event_id,
            "messaging.kafka.message.key": row.key,
            "shop.event_type": row.type,
        }
        span = telemetry.open_span(
            f"send {row.topic}", member, SpanKind.PRODUCER, batches=[self._span], attributes=attributes
        )
        self._spans[row.id] = span
        return telemetry.traceparent_of(span)

    def end_spans(self) -> None:
        """Of what was lost as of what has arrived: the next try makes new ones."""
        for row_id, span in self._spans.items():
            if row_id in self._lost:
                span.set_status(StatusCode.ERROR, "not acknowledged")
            span.end()
        self._spans.clear()

    def lost(self, row: Pending, error: KafkaError, _: Message) -> None:
        """The broker has not got the row, or not for certain."""
        self._lost.add(row.id)
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self.too_large.append(row)
        else:
            self.failed(f"{told(error)}: event {row.event_id} of topic {row.topic}")

    def failed(self, why: str) -> None:
        # The first failure is the cause, the others follow from it.
        self.failure = self.failure or why

    def acknowledged_prefixes(self) -> Sequence[Pending]:
        """Of each shard the rows before the first that was lost, once everything was reported; else none.

        What was acknowledged after it stays and is sent again: should the broker have taken rows out of turn all the
        same, the last that a consumer sees of a key is then still the latest.
        """
        if self.in_the_air:
            return []
        if not self._lost:
            return self.produced
        gaps: set[int] = set()
        prefixes = []
        for row in self.produced:
            if row.id in self._lost:
                gaps.add(row.shard)
            elif row.shard not in gaps:
                prefixes.append(row)
        return prefixes


def serve(producer: Producer, until: float) -> str | None:
    """Take in its reports until there are no more to come, or `until` (monotonic clock). Returns the first failure."""
    failure = None
    # Not flush(): it goes on calling back after a fatal error, with that error pending in the interpreter.
    while len(producer):
        seconds_left = max(0.0, until - time.monotonic())
        served = 0
        try:
            served = producer.poll(seconds_left)
        except KafkaException as error:
            failure = failure or told(error.args[0])
        # What is there already is taken in, however late it is.
        if not served and not seconds_left:
            break
    return failure


def told(error: KafkaError) -> str:
    """What went wrong, in the words of the library."""
    return str(error.str())
