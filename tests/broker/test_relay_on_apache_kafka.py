"""event-relay with Apache Kafka: outages of the broker, missing topics, and events over the topic's size limit."""

import re
from collections.abc import Iterator
from functools import partial
from uuid import uuid4

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from devstack.kafka import LOG_FOLDER, Kafka
from devstack.postgres import PostgresServer
from shop_common.events.outbox import shard_of
from testkit.eventually import eventually
from tests.broker.stream import Stream

pytestmark = pytest.mark.timeout(500)

AWAY_SECONDS = 90
SOON_SECONDS = 90


@pytest.fixture
def stream(postgres_server: PostgresServer, broker: Kafka) -> Iterator[Stream]:
    url = postgres_server.new_database("stream")
    with Stream(url, broker) as stream:
        broker.create_topics(stream.topic)
        yield stream
    postgres_server.drop_database(url)


def configure(broker: Kafka, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = broker.admin()  # must live until the futures below have their results
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(10)


def test_no_event_is_lost_when_the_broker_is_killed(stream: Stream, broker: Kafka) -> None:
    with stream.writing():
        for _ in range(3):
            eventually(stream.relay.is_ready)
            so_far = stream.metric("shop_relay_shipped_events_total")
            eventually(partial(stream.has_shipped, so_far + 1000))
            broker.kill()
            eventually(lambda: not stream.relay.is_ready())
            broker.start_again()
    stream.wait_until_all_arrived()

    # The message is logged once for the batch and once for the broker, and again for each batch that a slow broker
    # acknowledges too late.
    assert len(stream.log_lines("relay interrupted")) <= 5 * 3
    assert stream.log_lines("relay works again")


def test_no_event_is_lost_in_a_long_outage_and_it_is_logged_once(stream: Stream, broker: Kafka) -> None:
    with stream.writing(keys=20, each=1):
        eventually(stream.relay.is_ready)
        with broker.frozen():
            eventually(lambda: not stream.relay.is_ready())
            stream.relay.wait_for_line("kind=BrokerAway", 60)
            eventually(lambda: stream.metric("shop_outbox_oldest_event_age_seconds") > AWAY_SECONDS, 2 * AWAY_SECONDS)
            assert stream.metric("shop_outbox_pending_events") > 1000
            interrupted = stream.log_lines("relay interrupted")
            assert len(interrupted) <= 2, "\n".join(interrupted)
            stream.relay.wait_ready(SOON_SECONDS, "liveness")
        eventually(stream.relay.is_ready)
    stream.wait_until_all_arrived()

    eventually(lambda: stream.metric("shop_outbox_pending_events") == 0)


def test_the_brokers_log_segment_shows_an_idempotent_producer(stream: Stream, broker: Kafka) -> None:
    """librdkafka's idempotent producer accepts only acks=all."""
    stream.write("a")
    (record,) = stream.wait_until_all_arrived()
    segment = f"{LOG_FOLDER}/{stream.topic}-{record.partition}/00000000000000000000.log"

    dump = broker.container.execute(
        "/opt/kafka/bin/kafka-run-class.sh", "kafka.tools.DumpLogSegments", "--files", segment
    )

    producers = re.findall(r"producerId: (-?\d+)", dump)
    assert producers
    assert "-1" not in producers
    with pytest.raises(KafkaException, match="acks"):
        Producer({"enable.idempotence": True, "acks": "1"})


def test_events_of_a_missing_topic_wait_and_those_of_others_are_sent(stream: Stream, broker: Kafka) -> None:
    missing = f"missing-{uuid4().hex}"
    stream.write("a", "b", "c", topic=missing)
    line = stream.relay.wait_for_line("topic cannot be used: its events wait", 60)
    assert f"kafka-topics.sh --bootstrap-server {broker.bootstrap} --create --topic {missing}" in line

    stream.write("a", "b", "c")
    eventually(lambda: stream.backlog() == 3)
    stream.write("a", "b", "c")
    eventually(lambda: stream.backlog() == 3)
    stream.relay.wait_ready(SOON_SECONDS)

    broker.create_topics(missing)
    stream.wait_until_all_arrived(missing)
    assert broker.size(missing) == 3
    assert broker.size(stream.topic) == 6
    assert len(stream.log_lines("topic cannot be used")) == 1
    assert len(stream.log_lines("topic can be used again")) == 1


def test_an_event_over_the_topics_size_limit_blocks_only_its_shard_and_is_reported(
    stream: Stream, broker: Kafka
) -> None:
    configure(broker, stream.topic, "max.message.bytes", "20000")
    keys = (f"key-{number}" for number in range(300))
    others = [key for key in keys if shard_of(key) != shard_of("big")]
    # All events together exceed the limit, so a batch of all of them would be refused. "big" exceeds it alone.
    stream.write(*others)
    stream.write("big", size=50_000)
    stream.write("big", *others)

    line = stream.relay.wait_for_line("event cannot be shipped: the events of its shard wait", 60)
    assert "key=big" in line
    assert "max.message.bytes" in line
    eventually(lambda: stream.backlog() == 2)
    stream.write("big", *others)
    eventually(lambda: stream.backlog() == 3)
    eventually(lambda: stream.metric("shop_relay_blocked_shards") == 1)
    stream.relay.wait_ready(SOON_SECONDS)

    configure(broker, stream.topic, "max.message.bytes", "1000000")
    stream.wait_until_all_arrived()
    eventually(lambda: stream.metric("shop_relay_blocked_shards") == 0)
    assert len(stream.log_lines("event cannot be shipped")) == 1
    assert len(stream.log_lines("shard can be shipped again")) == 1
