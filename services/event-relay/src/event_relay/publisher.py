"""Publishes rows to Kafka in order, one batch at a time.

Guarantee: whatever fails, the events of a key first occur in the topic in the order of their rows. librdkafka alone
does not guarantee that, even with idempotence: of messages 1, 2, 3, 4 it may deliver 1, let 2 and 3 time out, and
deliver 4. So here no single message times out or is skipped:

- Messages have no timeout of their own, but the whole batch has a deadline. When the deadline passes, all outstanding
  messages are purged.
- A refusal by the broker is fatal for the producer (gapless guarantee), so nothing more is sent. The broker also
  refuses the outstanding messages after the refused one, because of their sequence numbers.
- After any failure the producer is discarded, and the caller starts again from its oldest rows.

An event that cannot be published, for example because it is too large for its topic, blocks only its own shard. The
broker refuses whole requests, so after such a refusal each message is sent alone for a while, to find the event that
was refused.
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

from event_relay.batch import Batch, Delivery, poll_reports
from event_relay.outbox_rows import OutboxRow
from shop_common.environment.files import FileUnusable
from shop_common.events.kafka_connection import CredentialFiles, ErrorCause, KafkaConnection, text_of
from shop_common.events.outbox import TENANT_HEADER
from shop_common.identity import tenant
from shop_common.telemetry import logs, tracing
from shop_common.timestamps import rfc3339_of_micros

PARTITIONS = 3
"""The number of partitions in the logged command that creates an absent topic. It is the system's default."""

IN_FLIGHT_MAX = 2
"""The maximum number of concurrent requests to a broker. While they run, messages collect for the next request. So no
message has to wait for others when no request is running."""
MEMORY_KILOBYTES_MAX = 65_536
"""The size of the producer's queue. Rows that do not fit wait for the next batch."""

CONNECT_SECONDS = 5.0
"""Time limit for a new producer's first response, which comes after TLS and login."""

BROKER_ANSWER_SECONDS = 2.0
PURGE_SECONDS = 1.0
ABSENT_TOPIC_SECONDS = 1.0
"""Time until the broker is queried again for a topic that cannot be used. Meanwhile the rows of the topic wait."""

REFUSED_SECONDS = 10.0
"""Time until the refused event of a shard is retried. Meanwhile the shard waits."""

ALONE_SECONDS = 60.0
"""Time after a refusal during which each message is sent alone."""

NOTHING = Delivery((), None)
"""The delivery that `wait` returns if no batch was outstanding."""

_log = logs.get(__name__)


class BrokerAway(Exception):
    """No broker responded, or the connection settings cannot be used. Nothing was sent."""


@dataclass(slots=True)
class _Refusal:
    """An event that cannot be published. The later events of its shard wait for it."""

    row_id: int
    event_id: str
    ask_again_at: float


class Publisher:
    """Publishes rows through one producer, which is replaced after each failure. Use it from one thread only.

    At most one batch is outstanding. `source` is the CloudEvents source of the events, such as /shop/order-api.
    """

    def __init__(self, kafka: KafkaConnection, source: str) -> None:
        self._connection = kafka
        self._credentials = CredentialFiles(kafka)
        self._common_headers: list[tuple[str, str | bytes | None]] = [
            ("ce_specversion", "1.0"),
            ("ce_source", source),
            ("content-type", "application/json"),
            (TENANT_HEADER, tenant.DEFAULT),  # the headers of a row override it
        ]
        self._producer: Producer | None = None
        self._batch: Batch | None = None
        self._known_topics: set[str] = set()
        self._absent_topics: dict[str, float] = {}
        self._refusals: dict[int, _Refusal] = {}
        self._alone_until = 0.0
        self._alone = False
        self._error_cause = ErrorCause()
        # While a broker is unavailable, librdkafka's own log lines would flood the log. Our lines have the same facts.
        self._unheard = logging.getLogger("librdkafka")
        self._unheard.disabled = True

    def connect(self) -> Producer:
        """Return the producer. Creates one if there is none, and waits for its broker. Raises BrokerAway."""
        if self._producer is not None and self._alone and time.monotonic() >= self._alone_until:
            self._discard()
        # Replace the producer only between batches, because its outstanding messages must be delivered first.
        if self._producer is not None and self._batch is None and self._credentials.renewed():
            self._discard()
        if self._producer is None:
            self._producer = self._new_producer()
        return self._producer

    def absent_topics(self) -> frozenset[str]:
        """Return the topics that do not exist or are denied. Do not read their rows now; other rows do not wait."""
        now = time.monotonic()
        return frozenset(topic for topic, ask_again_at in self._absent_topics.items() if now < ask_again_at)

    def waiting_shards(self) -> frozenset[int]:
        """Return the shards whose oldest event was refused less than REFUSED_SECONDS ago.

        Do not read their rows now. Other shards do not wait.
        """
        now = time.monotonic()
        return frozenset(shard for shard, refusal in self._refusals.items() if now < refusal.ask_again_at)

    def refused_shards(self) -> frozenset[int]:
        """Return the shards whose oldest event was refused at the last attempt."""
        return frozenset(self._refusals)

    @property
    def in_doubt(self) -> bool:
        """Return whether an event was refused less than ALONE_SECONDS ago. Do not read ahead then.

        Each message is sent alone during this time.
        """
        return time.monotonic() < self._alone_until

    def send(self, rows: Sequence[OutboxRow], *, deadline: float) -> None:
        """Produce the rows as one batch, without waiting for the broker: `wait` does that, up to the deadline.

        The rows of each shard must be sorted by id and begin with its oldest. No batch may be outstanding. `deadline`
        is by time.monotonic. Raises BrokerAway.
        """
        producer = self.connect()
        # Check topics once per batch: a topic that is created in the middle must not get only the later rows.
        present = {topic for topic in {row.topic for row in rows} if self._exists(producer, topic)}
        members = _recorded(rows)
        attributes: dict[str, AttributeValue] = {
            "messaging.system": "kafka",
            "messaging.batch.message_count": len(rows),
        }
        with tracing.batch_span("ship batch", list(members.values()), attributes=attributes) as span:
            self._batch = Batch(producer, deadline, members, span)
            self._produce(rows, present, self._batch)

    def wait(self) -> Delivery:
        """Wait until the broker has acknowledged the outstanding batch, or until its deadline. Returns its delivery.

        Nothing is outstanding afterwards. An event that cannot be published is not a failure of the batch. Once
        that event is identified, it is logged, and its shard is one of `waiting_shards`.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            return NOTHING
        batch.wait()
        if batch.failure is not None or batch.too_large:
            self._discard()
        batch.end_spans()
        acknowledged = batch.acknowledged()
        self._forget_refusals(acknowledged)
        if batch.too_large:
            # The broker refuses a whole request if one of its messages is too large. A message that is sent alone gets
            # a response of its own.
            if self._alone:
                for row in batch.too_large:
                    self._refuse(row, "too large for the topic: raise its max.message.bytes")
            self._alone_until = time.monotonic() + ALONE_SECONDS
            # All other failures of the batch follow from this refusal.
            return Delivery(acknowledged, None)
        return Delivery(acknowledged, batch.failure)

    def close(self) -> None:
        """Discard the producer. Nothing may be outstanding."""
        self._discard()

    def _new_producer(self) -> Producer:
        """Return a new producer whose broker has responded. Raises BrokerAway."""
        self._alone = time.monotonic() < self._alone_until
        self._known_topics.clear()
        self._error_cause = ErrorCause()
        self._credentials.note()
        try:
            producer = Producer(self._connection.configuration(self._settings()), logger=self._unheard)
        except (KafkaException, FileUnusable) as error:
            raise BrokerAway(text_of(error)) from error
        try:
            producer.list_topics(timeout=CONNECT_SECONDS)
        except KafkaException as error:
            poll_reports(producer, time.monotonic())
            raise BrokerAway(self._error_cause.text or text_of(error)) from error
        return producer

    def _produce(self, rows: Sequence[OutboxRow], present: Collection[str], batch: Batch) -> None:
        held_back: set[int] = set()
        produce, deadline, lost = batch.producer.produce, batch.deadline, batch.lost
        for row in rows:
            if row.topic not in present or row.shard in held_back:
                continue
            # This process may be frozen at any instruction, so the clock is checked for each row.
            if time.monotonic() >= deadline:
                return
            try:
                headers = self._headers(row, batch.open_span(row) if batch.members else row.traceparent)
                produce(row.topic, row.payload, row.key, on_delivery=partial(lost, row), headers=headers)
            except BufferError:
                return
            except KafkaException as error:
                cause = error.args[0]
                if cause.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    # The producer itself has failed, for example because the broker refused an earlier row.
                    batch.failed(cause.str())
                    return
                self._refuse(row, cause.str())
                held_back.add(row.shard)
            except (TypeError, ValueError) as error:
                # The row's headers are not a JSON object. Only its own shard waits until an operator repairs the row.
                self._refuse(row, str(error))
                held_back.add(row.shard)
            else:
                batch.produced.append(row)

    def _refuse(self, row: OutboxRow, why: str) -> None:
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

    def _forget_refusals(self, acknowledged: Sequence[OutboxRow]) -> None:
        """Forget the refusals of shards in which a later row was acknowledged.

        The refused event was published, or an operator removed it.
        """
        if not self._refusals:
            return
        for row in acknowledged:
            refusal = self._refusals.get(row.shard)
            if refusal is not None and row.id >= refusal.row_id:
                del self._refusals[row.shard]
                _log.info("shard can be shipped again", topic=row.topic, shard=row.shard)

    def _headers(self, row: OutboxRow, traceparent: str | None) -> list[tuple[str, str | bytes | None]]:
        headers: list[tuple[str, str | bytes | None]] = [
            *self._common_headers,
            ("ce_id", row.event_id),
            ("ce_type", row.type),
            ("ce_time", rfc3339_of_micros(row.created_micros)),
            ("ce_subject", row.key),
            # Pad the id with zeros to the length of the largest number, so that sequences also sort as text.
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
            raise BrokerAway(text_of(error)) from error
        if found.error is None and found.partitions:
            self._known_topics.add(topic)
            if self._absent_topics.pop(topic, None) is not None:
                _log.info("topic can be used again", topic=topic)
            return True
        if topic not in self._absent_topics:
            # A topic without partitions counts as absent, although it has no error.
            absent = found.error is None or found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
            brokers = self._connection.bootstrap_servers
            command = f"kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic}"
            _log.warning(
                "topic cannot be used: its events wait",
                topic=topic,
                answer=str(found.error),
                **({"create_it_with": f"{command} --partitions {PARTITIONS}"} if absent else {}),
            )
        self._absent_topics[topic] = time.monotonic() + ABSENT_TOPIC_SECONDS
        return False

    def _discard(self) -> None:
        """Discard the producer and everything outstanding. Each message is reported as lost."""
        if self._producer is None:
            return
        self._producer.purge()
        # `Batch.acknowledged` needs these reports. An unprocessed report would also keep its row in memory.
        poll_reports(self._producer, time.monotonic() + PURGE_SECONDS)
        self._producer = None

    def _settings(self) -> dict[str, object]:
        return {
            "client.id": "event-relay",
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            # Report only failures: a report per delivered message would cost a tenth of publishing it.
            "delivery.report.only.error": True,
            # Messages have no timeout, because the batch has a deadline (see the start of this module).
            "message.timeout.ms": 0,
            "partitioner": "murmur2_random",
            "linger.ms": 0,
            "max.in.flight.requests.per.connection": IN_FLIGHT_MAX,
            "queue.buffering.max.kbytes": MEMORY_KILOBYTES_MAX,
            "reconnect.backoff.max.ms": 1000,
            "error_cb": self._error_cause.note,
        } | ({"batch.num.messages": 1} if self._alone else {})


def _recorded(rows: Sequence[OutboxRow]) -> Mapping[int, SpanContext]:
    """Return the span contexts of the rows that are traced, by row id."""
    if tracing.tracer() is None:
        return {}
    return {row.id: span for row in rows if (span := tracing.sampled_remote_span(row.traceparent))}
