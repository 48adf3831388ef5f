"""Reads all events on Kafka since a point in time, with repeats."""

import json
import time
from collections.abc import Iterable, Iterator

from confluent_kafka import Consumer, KafkaException, TopicPartition

from devstack.kafka import Kafka, Record
from shop_common.events import received
from tests.faults.history import DEFAULT_TENANT, Event

ORDERS, INVENTORY = "order-events", "inventory-events"
TOPICS = (ORDERS, INVENTORY)
DEAD_LETTERS = tuple(f"{topic}.dlq" for topic in TOPICS)
_ASK_SECONDS = 15
_READ_SECONDS = 60


class Stream:
    """The records written to our topics since this object was created."""

    def __init__(self, kafka: Kafka) -> None:
        self._connection = kafka.connection
        with_letters = (*TOPICS, *DEAD_LETTERS)
        consumer = self._consumer()
        self._from = {
            (topic, number): consumer.get_watermark_offsets(TopicPartition(topic, number), _ASK_SECONDS)[1]
            for topic in with_letters
            for number in consumer.list_topics(topic, _ASK_SECONDS).topics[topic].partitions
        }
        consumer.close()

    def read(self, topics: Iterable[str] = TOPICS) -> list[Record]:
        """All records so far, in the order of each partition. Raises TimeoutError if Kafka does not return them."""
        consumer = self._consumer()
        try:
            return list(self._records(consumer, set(topics)))
        finally:
            consumer.close()

    def _records(self, consumer: Consumer, topics: set[str]) -> Iterator[Record]:
        left: dict[tuple[str, int], int] = {}
        for (topic, number), start in self._from.items():
            end = consumer.get_watermark_offsets(TopicPartition(topic, number), _ASK_SECONDS)[1]
            if topic in topics and end > start:
                left[topic, number] = end
        consumer.assign([TopicPartition(*where, self._from[where]) for where in left])
        deadline = time.monotonic() + _READ_SECONDS
        while left:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Kafka did not return all records of {sorted(left)}")
            for message in consumer.consume(500, 0.2):
                if message.error() is not None:
                    raise KafkaException(message.error())
                where = (message.topic() or "", message.partition() or 0)
                offset = message.offset() or 0
                if where in left and offset >= left[where] - 1:
                    del left[where]
                key = message.key()
                yield Record(
                    *where,
                    offset,
                    key.decode() if isinstance(key, bytes) else key,
                    {name: value.decode(errors="replace") for name, value in received.headers_of(message) or ()},
                    message.value() or b"",
                )

    def _consumer(self) -> Consumer:
        # Partitions are assigned by hand and nothing is committed, so that no consumer group is disturbed.
        return Consumer(self._connection.configuration({"group.id": "checker", "enable.auto.commit": False}))


def events(records: Iterable[Record], products: Iterable[int]) -> list[Event]:
    """The events that concern these products."""
    ours = set(products)
    found = []
    for record in records:
        try:
            data = json.loads(record.value)["data"]
        except ValueError:
            continue  # an invalid event of a test: the services write only JSON
        about = {item["product_id"] for item in data["items"]} if "items" in data else {data["product_id"]}
        if ours.intersection(about):
            headers = record.headers
            found.append(
                Event(
                    *(record.topic, record.partition, record.offset, record.key or ""),
                    *(headers["ce_id"], headers["ce_type"], int(headers["ce_sequence"]), data),
                    headers.get("ce_tenant", DEFAULT_TENANT),
                )
            )
    return found
