"""One batch of rows: the rows that were produced to Kafka, and their delivery reports."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode

from event_relay.outbox_rows import OutboxRow
from shop_common.telemetry import tracing


@dataclass(frozen=True, slots=True)
class Delivery:
    """The result of a batch. The `acknowledged` rows may be deleted. `failure` is the reason if the batch failed."""

    acknowledged: Sequence[OutboxRow]
    failure: str | None


class Batch:
    """Rows that were handed to the producer, and the delivery reports on them."""

    def __init__(
        self, producer: Producer, deadline: float, members: Mapping[int, SpanContext], span: SpanContext | None
    ) -> None:
        self.producer = producer
        self.deadline = deadline
        self.members = members
        self.produced: list[OutboxRow] = []
        self.too_large: list[OutboxRow] = []
        self.failure: str | None = None
        self._span = span
        self._spans: dict[int, Span] = {}
        self._lost: set[int] = set()

    @property
    def outstanding(self) -> int:
        """Return the number of events that the broker has neither acknowledged nor rejected."""
        return len(self.producer)

    def wait(self) -> None:
        """Process delivery reports until nothing is outstanding or the deadline has passed."""
        failure = poll_reports(self.producer, self.deadline)
        if failure is not None:
            self.failed(failure)
        if self.outstanding:
            self.failed(f"{self.outstanding} of {len(self.produced)} events not acknowledged in time")

    def open_span(self, row: OutboxRow) -> str | None:
        """Return the traceparent for the row's message.

        If the row is traced, the traceparent names a new span, which ends with the batch. Otherwise the result is the
        row's own traceparent.
        """
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
        span = tracing.open_span(
            f"send {row.topic}", member, SpanKind.PRODUCER, batches=[self._span], attributes=attributes
        )
        self._spans[row.id] = span
        return tracing.traceparent_of(span)

    def end_spans(self) -> None:
        """End the spans of all rows. A new attempt opens new spans."""
        for row_id, span in self._spans.items():
            if row_id in self._lost:
                span.set_status(StatusCode.ERROR, "not acknowledged")
            span.end()
        self._spans.clear()

    def lost(self, row: OutboxRow, error: KafkaError, _: Message) -> None:
        """Handle the delivery report of a row that the broker rejected or may not have."""
        self._lost.add(row.id)
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self.too_large.append(row)
        else:
            self.failed(f"{text_of(error)}: event {row.event_id} of topic {row.topic}")

    def failed(self, why: str) -> None:
        # Keep the first failure: the later ones follow from it.
        self.failure = self.failure or why

    def acknowledged(self) -> Sequence[OutboxRow]:
        """Return the rows of each shard before its first lost row. Returns no rows while a message is outstanding.

        Acknowledged rows after a lost row are sent again. So even if the broker stored rows out of order, the last
        event of a key that a consumer receives is the latest one.
        """
        if self.outstanding:
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


def poll_reports(producer: Producer, deadline: float) -> str | None:
    """Process delivery reports until none is left or the deadline (time.monotonic) has passed.

    Returns the first failure, or None.
    """
    failure = None
    # Do not use flush(): after a fatal error it continues to call back, with that error pending in the interpreter.
    while len(producer):
        seconds_left = max(0.0, deadline - time.monotonic())
        served = 0
        try:
            served = producer.poll(seconds_left)
        except KafkaException as error:
            failure = failure or text_of(error.args[0])
        # Process the reports that have already arrived, even after the deadline.
        if not served and not seconds_left:
            break
    return failure


def text_of(error: KafkaError) -> str:
    """Return the library's description of the error."""
    return str(error.str())
