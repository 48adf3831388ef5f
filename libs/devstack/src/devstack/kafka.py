"""Provides Kafka for tests and development: a given broker, Apache Kafka in a container, or the embedded broker."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from devstack import watchdog
from devstack.ports import free_ports
from devstack.process import Process
from shop_common.events import received
from shop_common.events.kafka_connection import KafkaConnection
from shopctl.events.topics import PARTITIONS, TOPICS
from shopctl.system import docker

if TYPE_CHECKING:
    from devstack.servers.containers import Container

EMBEDDED = "librdkafka's embedded broker"
IMAGE = "apache/kafka:4.1.1"
LOG_FOLDER = "/tmp/kraft-combined-logs"  # noqa: S108 - in the container
START_SECONDS = 120
CONTAINER_START_SECONDS = 180
REQUEST_SECONDS = 10
_BATCH = 500
_GROUPS_UNKNOWN_YET = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Record:
    """A message of a topic."""

    topic: str
    partition: int
    offset: int
    key: str | None
    headers: dict[str, str]
    value: bytes

    def json(self) -> Any:
        return json.loads(self.value)


class Kafka:
    """A running broker, with methods to read and write topics and to measure the lag of consumers."""

    def __init__(
        self,
        bootstrap: str,
        description: str,
        own: "Process | Container | None" = None,
        connection: KafkaConnection | None = None,
    ) -> None:
        self.bootstrap = bootstrap
        self.connection = connection or KafkaConnection(bootstrap)
        self.description = description
        self._own = own

    def consume(self, topic: str, until: Callable[[list[Record]], bool], within_seconds: float = 60) -> list[Record]:
        """Read the topic from its start until `until` returns true for the list of records. Returns the list.

        Records are in order within each partition. Raises TimeoutError with the last records in the message.
        """
        records: list[Record] = []
        deadline = time.monotonic() + within_seconds
        with self._consumer() as consumer:
            self._assign_all(consumer, topic, deadline)
            while not until(records):
                if time.monotonic() > deadline:
                    raise TimeoutError(_unmet(topic, records, within_seconds))
                records += map(_record, consumer.consume(_BATCH, _POLL_SECONDS))
        return records

    def produce(
        self, topic: str, key: str | None, value: bytes | str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write one message and wait for its acknowledgement. Raises KafkaException or TimeoutError."""
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error)

        producer = Producer(self.connection.configuration({"acks": "all", "partitioner": "murmur2_random"}))
        producer.produce(topic, value, key, headers=dict(headers or {}), on_delivery=delivered)
        if producer.flush(REQUEST_SECONDS):
            raise TimeoutError(f"{topic}: the broker did not acknowledge the message within {REQUEST_SECONDS} s")
        if failures:
            raise KafkaException(failures[0])

    def topics(self) -> dict[str, int]:
        """Return the number of partitions of each topic, without Kafka's internal topics. Raises KafkaException."""
        with self._consumer() as consumer:
            found = consumer.list_topics(timeout=REQUEST_SECONDS).topics
        return {name: len(found[name].partitions) for name in sorted(found) if not name.startswith("__")}

    def create_topics(self, *names: str, partitions: int = PARTITIONS, config: Mapping[str, str] | None = None) -> None:
        """Create topics. The embedded broker creates topics at first use instead. Raises KafkaException."""
        admin = self.admin()
        if str(admin.list_topics(timeout=REQUEST_SECONDS).cluster_id).startswith("mockCluster"):
            return
        topics = [NewTopic(name, partitions, 1, config=dict(config or {})) for name in names]
        for made in admin.create_topics(topics, operation_timeout=REQUEST_SECONDS).values():
            made.result(REQUEST_SECONDS)

    def admin(self) -> AdminClient:
        """Return an admin client. The embedded broker supports no administration."""
        return AdminClient(self.connection.configuration({"log_level": 0}))

    def size(self, topic: str) -> int:
        """Return the number of messages in the topic. Raises KafkaException."""
        with self._consumer() as consumer:
            partitions = consumer.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic].partitions
            return sum(_unread(consumer, TopicPartition(topic, number, 0)) for number in partitions)

    def lag(self, group: str, topic: str) -> int:
        """Return the number of messages that the group has not committed yet. Raises KafkaException."""
        with self._consumer(group) as consumer:
            partitions = consumer.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic].partitions
            positions = [TopicPartition(topic, number) for number in partitions]
            return sum(_unread(consumer, position) for position in _committed(consumer, positions))

    def freeze(self) -> None:
        """Freeze the broker that we started until `thaw`. Its connections stay open."""
        self._ours().freeze()

    def thaw(self) -> None:
        self._ours().thaw()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with self._ours().frozen():
            yield

    def kill(self) -> None:
        """Kill the broker (SIGKILL), which acts like a crash."""
        self._ours().kill()

    @property
    def pid(self) -> int:
        """The pid of the embedded broker."""
        own = self._ours()
        assert isinstance(own, Process), f"{self.description} runs in a container"
        return own.pid

    def start_again(self) -> None:
        """Restart the broker's container after `kill`, with the same port and topics. Raises TimeoutError."""
        self.container.start_again()
        self.wait_until_it_answers()

    @property
    def container(self) -> "Container":
        """The broker's container. The embedded broker has none, and loses everything at a restart."""
        own = self._ours()
        assert not isinstance(own, Process), f"{self.description} does not run in a container"
        return own

    def _ours(self) -> "Process | Container":
        if self._own is None:
            raise RuntimeError(f"{self.description} was not started by us, so it cannot be frozen or killed")
        return self._own

    def wait_until_it_answers(self) -> None:
        """Wait until the broker in the container responds. Raises TimeoutError, with the end of its log."""
        admin = self.admin()
        deadline = time.monotonic() + CONTAINER_START_SECONDS
        while True:
            try:
                # describe_cluster succeeds only when the controller works, too.
                admin.describe_cluster(request_timeout=2).result(3)
                return
            except (KafkaException, TimeoutError) as error:
                if not self.container.alive or time.monotonic() > deadline:
                    why = f"{self.description} does not respond: {error}"
                    raise TimeoutError(f"{why}\n{self.container.tail()}") from error
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def _consumer(self, group: str = "devstack") -> Iterator[Consumer]:
        # This consumer assigns partitions itself and commits nothing. It never joins the group, so it disturbs no other
        # consumer.
        consumer = Consumer(self.connection.configuration({"group.id": group, "enable.auto.commit": False}))
        try:
            yield consumer
        finally:
            consumer.close()

    def _assign_all(self, consumer: Consumer, topic: str, deadline: float) -> None:
        why = "no such topic"
        while (left := deadline - time.monotonic()) > 0:
            try:
                found = consumer.list_topics(topic, timeout=left).topics[topic]
            except KafkaException as failure:
                why = str(failure)
                continue
            if found.partitions and found.error is None:
                consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in found.partitions])
                return
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"{topic}: {why}")


class KafkaUnavailable(Exception):
    """The broker could not be started or reached; the message contains the reason."""


@dataclass(frozen=True)
class Source:
    """A way to get a broker, which runs while the context `run` is open. `run` raises KafkaUnavailable if it fails."""

    description: str
    run: Callable[[], AbstractContextManager[Kafka]]


def sources(bootstrap: str | None = None, *, containers: bool = False) -> list[Source]:
    """Return the possible sources, best first, without starting one. A given broker is the only source."""
    if bootstrap:
        description = f"Kafka at {bootstrap} (given)"
        return [Source(description, lambda: nullcontext(Kafka(bootstrap, description)))]
    engine = docker.engine() if containers else None
    in_container = [Source(f"{IMAGE} in a container ({engine})", _in_a_container)] if engine else []
    return [*in_container, Source(EMBEDDED, _embedded)]


@contextmanager
def provide(
    bootstrap: str | None = None, *, containers: bool = False, tell: Callable[[str], None] = print
) -> Iterator[Kafka]:
    """Provide a broker for the block: the given one, or with `containers` Apache Kafka in Docker, or the embedded one.

    A broker that we start has the shop's topics. If the container does not start, `tell` is called with the reason, and
    the embedded broker is used instead.
    """
    with ExitStack() as at_the_end:
        yield _first_that_works(sources(bootstrap, containers=containers), at_the_end, tell)


def _first_that_works(candidates: list[Source], at_the_end: ExitStack, tell: Callable[[str], None]) -> Kafka:
    *better, last = candidates
    for source in better:
        try:
            return at_the_end.enter_context(source.run())
        except KafkaUnavailable as failure:
            tell(f"using {last.description} instead: {failure}")
    return at_the_end.enter_context(last.run())


@contextmanager
def _in_a_container() -> Iterator[Kafka]:
    # Import this only if there is Docker: the dependencies of this module are installed only for tests.
    from devstack.servers.containers import Container, ContainerUnavailable  # noqa: PLC0415

    (port,) = free_ports(1)
    try:
        # The broker must listen on the published port, because it sends this port to its clients.
        own = Container.start(IMAGE, port, container_settings(port), inside=port)
    except ContainerUnavailable as error:
        raise KafkaUnavailable(str(error)) from error
    try:
        kafka = Kafka(f"127.0.0.1:{port}", f"{IMAGE} in a container", own)
        kafka.wait_until_it_answers()
        kafka.create_topics(*TOPICS)
        yield kafka
    finally:
        own.stop()


def container_settings(port: int) -> dict[str, str]:
    """Return settings for one small node that starts quickly. As in production, it does not create topics by itself."""
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://localhost:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LOG_DIRS": LOG_FOLDER,
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "3",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        # With the default minimum of six seconds, tests would wait that long for a member that did not leave the group.
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "500",
        # The default of 128 MB does not fit the heap below: the broker would end at its start.
        "KAFKA_LOG_CLEANER_DEDUPE_BUFFER_SIZE": str(8 * 2**20),
        "KAFKA_HEAP_OPTS": "-Xms128m -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }


@contextmanager
def _embedded() -> Iterator[Kafka]:
    folder = Path(tempfile.mkdtemp(prefix="shop-broker-"))
    process = embedded(folder / "address")
    try:
        started = start(process, folder / "address")
        watchdog.watch(process.pid, then_remove=folder)
        yield started
    finally:
        process.stop()
        shutil.rmtree(folder, ignore_errors=True)


def embedded(address_file: Path, on_line: Callable[[str], None] | None = None, port: int = 0) -> Process:
    """Return the embedded broker's process, not started yet. With port 0 it listens on a free port."""
    arguments = [
        sys.executable,
        "-m",
        "devstack.servers.embedded_broker",
        "--run-file",
        str(address_file),
        "--port",
        str(port),
    ]
    return Process("broker", arguments, on_line=on_line)


def start(broker: Process, address_file: Path) -> Kafka:
    """Start the process from `embedded` and wait until it serves. Raises ProcessEnded or TimeoutError."""
    broker.start()
    broker.wait_for_line("broker ready", START_SECONDS)
    return Kafka(address_file.read_text(), EMBEDDED, broker)


def _committed(consumer: Consumer, positions: list[TopicPartition]) -> list[TopicPartition]:
    """Return the group's committed offsets. Retries while a broker that has just started is loading its groups."""
    deadline = time.monotonic() + REQUEST_SECONDS
    while True:
        try:
            return consumer.committed(positions, REQUEST_SECONDS)
        except KafkaException as error:
            if error.args[0].code() not in _GROUPS_UNKNOWN_YET or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _unread(consumer: Consumer, committed: TopicPartition) -> int:
    lowest, highest = consumer.get_watermark_offsets(committed, timeout=REQUEST_SECONDS)
    # A negative offset means that nothing was committed yet.
    return int(highest - max(lowest, committed.offset))


def _record(message: Message) -> Record:
    """Convert a message. Raises KafkaException if it is an error."""
    if (error := message.error()) is not None:
        raise KafkaException(error)
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=_text(message.key()),
        headers={name: _text(value) or "" for name, value in received.headers_of(message) or ()},
        value=message.value() or b"",
    )


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _unmet(topic: str, records: list[Record], within_seconds: float) -> str:
    shown = "\n".join(f"    {record.key} {record.value.decode(errors='replace')}" for record in records[-10:])
    return f"{topic}: condition not met within {within_seconds:g} s; {len(records)} records, the last:\n{shown}"
