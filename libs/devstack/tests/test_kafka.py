import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from confluent_kafka import Consumer

from devstack import kafka as brokers
from devstack.kafka import Kafka, Record
from devstack.ports import free_ports
from devstack.process import Process
from shopctl.events.topics import PARTITIONS, TOPICS
from testkit.pytest_plugin import KAFKA_VARIABLE


@pytest.fixture(params=["embedded_broker", "best_broker"])
def kafka(request: pytest.FixtureRequest) -> Kafka:
    """Every kind of broker that is available."""
    broker: Kafka = request.getfixturevalue(request.param)
    return broker


@pytest.fixture
def in_container(docker_engine: str, best_broker: Kafka) -> Kafka:
    if os.environ.get(KAFKA_VARIABLE):
        pytest.skip(f"{KAFKA_VARIABLE} names a broker that is not ours to kill")
    return best_broker


@pytest.fixture
def embedded() -> Iterator[Kafka]:
    """A broker for one test, which may break it."""
    with brokers.provide() as started:
        yield started


def test_messages_are_read_back_in_order_with_their_keys_and_headers(kafka: Kafka) -> None:
    topic, key = _new_topic(kafka), str(uuid4())
    for number in range(3):
        kafka.produce(topic, key, f'{{"number": {number}}}', {"ce_type": "TOLD"})

    records = kafka.consume(topic, until=lambda records: len(records) >= 3)

    assert [record.json()["number"] for record in records] == [0, 1, 2]
    assert {(record.topic, record.key, record.headers["ce_type"]) for record in records} == {(topic, key, "TOLD")}
    assert len({record.partition for record in records}) == 1


def test_each_reader_sees_the_topic_from_its_start(kafka: Kafka) -> None:
    topic = _new_topic(kafka)
    kafka.produce(topic, "a", b"1")

    for _ in range(2):
        assert [record.value for record in kafka.consume(topic, until=_any)] == [b"1"]


def test_a_reader_may_come_before_the_first_message(kafka: Kafka) -> None:
    topic = _new_topic(kafka)
    with ThreadPoolExecutor(1) as other:
        reading = other.submit(kafka.consume, topic, _any, 20)
        kafka.produce(topic, "a", b"1")

    assert [record.value for record in reading.result()] == [b"1"]


def test_a_timeout_shows_the_last_records(kafka: Kafka) -> None:
    topic = _new_topic(kafka)
    kafka.produce(topic, "a", b"something else")

    with pytest.raises(TimeoutError, match=r"1 records.*\n.*something else"):
        kafka.consume(topic, until=lambda records: len(records) > 1, within_seconds=3)


def test_the_lag_of_a_group_is_the_number_of_uncommitted_messages(kafka: Kafka) -> None:
    topic, group = _new_topic(kafka), str(uuid4())
    for number in range(5):
        kafka.produce(topic, str(number), b"x")
    assert kafka.lag(group, topic) == 5

    consumer = Consumer(
        kafka.connection.configuration(
            {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        )
    )
    consumer.subscribe([topic])
    read = 0
    while read < 5:
        read += len(consumer.consume(5, 10))
    consumer.commit(asynchronous=False)
    consumer.close()

    assert kafka.lag(group, topic) == 0


def test_the_shops_topics_are_there_from_the_start(embedded: Kafka) -> None:
    assert embedded.topics() == dict.fromkeys(sorted(TOPICS), PARTITIONS)


def test_a_killed_broker_in_a_container_comes_back_with_its_topics_on_its_port(in_container: Kafka) -> None:
    topic = _new_topic(in_container)
    in_container.produce(topic, "a", b"before")

    in_container.kill()
    with pytest.raises(TimeoutError):
        in_container.consume(topic, until=_any, within_seconds=1)
    in_container.start_again()

    assert [record.value for record in in_container.consume(topic, until=_any)] == [b"before"]
    assert in_container.topics().items() >= dict.fromkeys(TOPICS, PARTITIONS).items()


def test_a_frozen_broker_in_a_container_takes_nothing_and_a_thawed_one_goes_on(in_container: Kafka) -> None:
    topic = _new_topic(in_container)
    in_container.produce(topic, "a", b"before")

    with in_container.frozen(), pytest.raises(TimeoutError):
        in_container.consume(topic, until=_any, within_seconds=1)

    assert [record.value for record in in_container.consume(topic, until=_any)] == [b"before"]


def test_without_its_image_the_next_source_is_used_and_the_reason_reported(
    docker_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers, "IMAGE", "localhost:1/no-such-image:1")
    reports: list[str] = []
    with brokers.provide(containers=True, tell=reports.append) as started:
        assert started.description == brokers.EMBEDDED

    assert len(reports) == 1
    assert "no-such-image" in reports[0]


def test_a_frozen_broker_takes_nothing_and_a_thawed_one_goes_on(embedded: Kafka) -> None:
    topic = "order-events"
    embedded.produce(topic, "a", b"before")

    with embedded.frozen(), pytest.raises(TimeoutError):
        embedded.consume(topic, until=_any, within_seconds=1)

    assert [record.value for record in embedded.consume(topic, until=_any)] == [b"before"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_broker_ends_cleanly_and_takes_its_address_with_it(tmp_path: Path, signum: signal.Signals) -> None:
    address = tmp_path / "run" / "address"
    process = Process(
        "broker", [sys.executable, "-m", "devstack.servers.embedded_broker", "--run-file", str(address)]
    ).start()
    try:
        line = process.wait_for_line("broker ready", 20)
        assert address.read_text() in line

        process.send_signal(signum)

        assert process.wait(10) == 0
        assert not address.exists()
        assert process.log == line
    finally:
        process.stop()


def _new_topic(kafka: Kafka) -> str:
    topic = f"topic-{uuid4()}"
    kafka.create_topics(topic)
    return topic


def _any(records: list[Record]) -> bool:
    return bool(records)


def test_the_embedded_broker_listens_on_the_given_port_each_time(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for run in ("first", "second"):
        process = brokers.embedded(tmp_path / "address", port=port)
        try:
            broker = brokers.start(process, tmp_path / "address")
            assert broker.bootstrap == f"127.0.0.1:{port}"
            # Clients connect to the address that the broker returns, so this proves that it uses no other port.
            broker.produce("order-events", "key", run)
            (record,) = broker.consume("order-events", lambda records: len(records) == 1)
            connections = psutil.Process(process.pid).net_connections("tcp")
            listening = {one.laddr[1:2] for one in connections if one.status == psutil.CONN_LISTEN}
        finally:
            process.stop()
        assert record.value == run.encode()
        assert listening == {(port,)}
