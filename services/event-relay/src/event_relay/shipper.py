"""Rows to Kafka: produced in order, reported only when the broker has them for good.

What is promised: of the rows of a key, first occurrences in the topic are in the order of the rows, whatever fails.
librdkafka alone does not promise that, even with idempotence. Of messages 1, 2, 3, 4 it may deliver 1, let 2 and 3
time out, and deliver 4. So here no single message ever times out or is skipped:

- Messages have no timeout of their own; the whole batch has one. When it is up, everything is purged.
- A refusal by the broker is fatal for the producer (gapless guarantee), so nothing more is sent. What was in flight
  behind the refused one the broker refuses too, by its sequence number.
- After any failure the producer is thrown away, and the caller begins again from its oldest rows.

An event that can't be shipped as it is, too large for its topic say, holds back its own shard and nothing else. The
broker refuses whole batches, so after such a refusal messages go one by one for a while: that shows which it was.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import orjson
from confluent_kafka import KafkaError, KafkaException, Producer
from opentelemetry.trace import SpanContext
from opentelemetry.util.types import AttributeValue

from event_relay.flight import Flight, serve, told
from event_relay.pending import Pending
from shop_common.telemetry import logs, telemetry
from shop_common.timestamps import rfc3339_of_micros

PARTITIONS = 3
"""Of a new topic, as the shop makes them by default."""

IN_FLIGHT_MAX = 2
"""Requests to a broker. While they are answered messages gather for the next, so that none has to wait for others."""
MEMORY_KILOBYTES_MAX = 65_536
"""What the producer holds at most; rows beyond that wait for the next batch."""

BROKER_ANSWER_SECONDS = 2.0
PURGE_SECONDS = 1.0
ABSENT_TOPIC_SECONDS = 1.0
"""How long rows of a topic that does not exist are left alone before the broker is asked again."""

REFUSED_SECONDS = 10.0
"""How long a shard is left alone before its refused event is tried again."""

ALONE_SECONDS = 60.0
"""How long after a refusal each message still goes alone."""

_log = logs.get(__name__)


class BrokerAway(Exception):
    """No broker answers. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a batch: `acknowledged` rows may be deleted, in `failure` stands why others were not."""

    acknowledged: Sequence[Pending]
    failure: str | None


@dataclass(slots=True)
class _Refusal:
    """An event that can't be shipped as it is; the others of its shard wait for it."""

    row_id: int
    event_id: str
    ask_again_at: float


class Shipper:
    """One producer, made anew after each failure. For one thread. One flight is on its way at a time.

    `source` is the CloudEvents source of its events, such as /shop/order-api.
    """

    def __init__(self, bootstrap_servers: str, source: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._common_headers: list[tuple[str, str | bytes | None]] = [
            ("ce_specversion", "1.0"),
            ("ce_source", source),
            ("content-type", "application/json"),
        ]
        self._producer: Producer | None = None
        self._known_topics: set[str] = set()
        self._absent_topics: dict[str, float] = {}
        self._refusals: dict[int, _Refusal] = {}
        self._alone_until = 0.0
        self._alone = False
        self._complaint = ""
        # Its own lines would flood the log while a broker is away; what matters of them is in ours.
        self._unheard = logging.getLogger("librdkafka")
        self._unheard.disabled = True

    def connect(self) -> Producer:
        """The producer, whose broker has answered at least once. Raises BrokerAway."""
        if self._producer is not None and self._alone and time.monotonic() >= self._alone_until:
            self._discard()
        if self._producer is None:
            self._alone = time.monotonic() < self._alone_until
            self._producer = Producer(self._settings(), logger=self._unheard)
            self._known_topics.clear()
            try:
                self._producer.list_topics(timeout=BROKER_ANSWER_SECONDS)
            except KafkaException as error:
                self._discard()
                raise BrokerAway(self._complaint or told(error.args[0])) from error
        return self._producer

    def absent_topics(self) -> frozenset[str]:
        """Topics that do not exist, or not for us. Their rows need not be read now; others don't wait for them."""
        now = time.monotonic()
        return frozenset(topic for topic, ask_again_at in self._absent_topics.items() if now < ask_again_at)

    def waiting_shards(self) -> frozenset[int]:
        """Shards whose oldest event was refused lately. Their rows need not be read now; others don't wait for them."""
        now = time.monotonic()
        return frozenset(shard for shard, refusal in self._refusals.items() if now < refusal.ask_again_at)

    def refused_shards(self) -> frozenset[int]:
        """Shards whose oldest event was refused when it was last tried."""
        return frozenset(self._refusals)

    @property
    def in_doubt(self) -> bool:
        """Whether an event was refused lately, so that each goes alone: nobody should count on the next batch."""
        return time.monotonic() < self._alone_until

    def send(self, rows: Sequence[Pending], *, until: float) -> Flight:
        """Produce the rows; `landed` waits for the broker, until then (monotonic clock) at most. Raises BrokerAway.

        Rows of a shard must come in their order, from its oldest. The flight before must have landed.
        """
        producer = self.connect()
        # Decided once for the batch: a topic that appears in the middle must not get the later rows only.
        present = {topic for topic in {row.topic for row in rows} if self._exists(producer, topic)}
        members = _recorded(rows)
        attributes: dict[str, AttributeValue] = {
            "messaging.system": "kafka",
            "messaging.batch.message_count": len(rows),
        }
        with telemetry.batch_span("ship batch", list(members.values()), attributes=attributes) as span:
            flight = Flight(producer, until, members, span)
            self._produce(rows, present, flight)
        return flight

    def landed(self, flight: Flight) -> Delivery:
        """Wait until the broker has all of the flight, or its time is up; nothing is on its way on return.

        An event that is refused for what it is makes no failure: it is told of in the log, and its shard is one of
        `waiting_shards`.
        """
        flight.wait_until(flight.until)
        if flight.in_the_air:
            flight.failed(f"{flight.in_the_air} of {len(flight.produced)} events not acknowledged in time")
        if flight.failure is not None or flight.too_large:
            self._discard()
        flight.end_spans()
        acknowledged = flight.acknowledged_prefixes()
        self._welcome(acknowledged)
        if flight.too_large:
            # Of several that went together only one need be too large. Alone each answers for itself.
            if self._alone:
                for row in flight.too_large:
                    self._refuse(row, "too large for the topic: raise its max.message.bytes")
            self._alone_until = time.monotonic() + ALONE_SECONDS
            # All other failures follow from this one.
            return Delivery(acknowledged, None)
        return Delivery(acknowledged, flight.failure)

    def close(self) -> None:
        """Let the producer go. Nothing may be on its way."""
        self._discard()

    def _produce(self, rows: Sequence[Pending], present: Collection[str], flight: Flight) -> None:
        held_back: set[int] = set()
        produce, until, lost = flight.producer.produce, flight.until, flight.lost
        for row in rows:
            if row.topic not in present or row.shard in held_back:
                continue
            # This process may be frozen at any instruction, so each row looks at the clock.
            if time.monotonic() >= until:
                return
            try:
                headers = self._headers(row, flight.open_span(row) if flight.members else row.traceparent)
                produce(row.topic, row.payload, row.key, on_delivery=partial(lost, row), headers=headers)
            except BufferError:
                return
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    # Of the producer and not of this row, such as a refusal of an earlier one that was fatal to it.
                    flight.failed(told(cause))
                    return
                self._refuse(row, told(cause))
                held_back.add(row.shard)
            except (TypeError, ValueError) as error:
                # Its headers are no JSON object. Only its own shard waits until someone has mended it.
                self._refuse(row, str(error))
                held_back.add(row.shard)
            else:
                flight.produced.append(row)

    def _refuse(self, row: Pending, why: str) -> None:
        known = self._refusals.get(row.shard)
        if known is None or known.event_id != row.event_id:
            _log.error(
                "event cannot be shipped: the events of its shard wait",
                topic=row.topic,
                key=row.key,
                event_id=row.event_id,
                outbox_id=row.id,
                shard=row.shard,
                payload_bytes=len(row.payload.encode()),
                error=why,
            )
        self._refusals[row.shard] = _Refusal(row.id, row.event_id, time.monotonic() + REFUSED_SECONDS)

    def _welcome(self, acknowledged: Sequence[Pending]) -> None:
        """Forget refusals of shards that got beyond them: the event was shipped, or someone took it away."""
        if not self._refusals:
            return
        for row in acknowledged:
            refusal = self._refusals.get(row.shard)
            if refusal is not None and row.id >= refusal.row_id:
                del self._refusals[row.shard]
                _log.info("shard can be shipped again", topic=row.topic, shard=row.shard)

    def _headers(self, row: Pending, traceparent: str | None) -> list[tuple[str, str | bytes | None]]:
        headers: list[tuple[str, str | bytes | None]] = [
            *self._common_headers,
            ("ce_id", row.event_id),
            ("ce_type", row.type),
            ("ce_time", rfc3339_of_micros(row.created_micros)),
            ("ce_subject", row.key),
            # Padded to the digits of the largest number, so that sequences compare as text, too.
            ("ce_sequence", f"{row.id:019d}"),
        ]
        if traceparent:
            headers.append(("traceparent", traceparent))
        if row.headers:
            return [(name, str(value)) for name, value in (dict(headers) | orjson.loads(row.headers)).items()]
        return headers

    def _exists(self, producer: Producer, topic: str) -> bool:
        if topic in self._known_topics:
            return True
        try:
            found = producer.list_topics(topic, timeout=BROKER_ANSWER_SECONDS).topics[topic]
        except KafkaException as error:
            self._discard()
            raise BrokerAway(told(error.args[0])) from error
        if found.error is None and found.partitions:
            self._known_topics.add(topic)
            if self._absent_topics.pop(topic, None) is not None:
                _log.info("topic can be used again", topic=topic)
            return True
        if topic not in self._absent_topics:
            # An error of its own is a KafkaError; a topic without partitions has none.
            absent = found.error is None or found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
            command = f"kafka-topics.sh --bootstrap-server {self._bootstrap_servers} --create --topic {topic}"
            _log.warning(
                "topic cannot be used: its events wait",
                topic=topic,
                answer=str(found.error),
                **({"create_it_with": f"{command} --partitions {PARTITIONS}"} if absent else {}),
            )
        self._absent_topics[topic] = time.monotonic() + ABSENT_TOPIC_SECONDS
        return False

    def _discard(self) -> None:
        """Give up the producer, and all that is on its way. Each message is reported as lost."""
        if self._producer is None:
            return
        self._producer.purge()
        # They change nothing any more; each that is not taken would keep its row in memory.
        serve(self._producer, time.monotonic() + PURGE_SECONDS)
        self._producer = None

    def _settings(self) -> dict[str, object]:
        return {
            "bootstrap.servers": self._bootstrap_servers,
            "client.id": "event-relay",
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            # A report of each that arrived would cost a tenth of its way. All that is not lost has arrived.
            "delivery.report.only.error": True,
            # Without end: see above. `ship` has the time limit.
            "message.timeout.ms": 0,
            "partitioner": "murmur2_random",
            "linger.ms": 0,
            "max.in.flight.requests.per.connection": IN_FLIGHT_MAX,
            "queue.buffering.max.kbytes": MEMORY_KILOBYTES_MAX,
            "reconnect.backoff.max.ms": 1000,
            "error_cb": self._complained,
        } | ({"batch.num.messages": 1} if self._alone else {})

    def _complained(self, error: KafkaError) -> None:
        self._complaint = told(error)


def _recorded(rows: Sequence[Pending]) -> Mapping[int, SpanContext]:
    """The spans of those rows whose trace is recorded; of the others nothing is."""
    if telemetry.tracer() is None:
        return {}
    return {row.id: span for row in rows if (span := telemetry.sampled_traceparent(row.traceparent))}
