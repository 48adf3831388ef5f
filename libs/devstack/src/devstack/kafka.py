"""Kafka for tests and development: a broker that was named, Apache Kafka, or the embedded one; read and written."""

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
    """A message as it lies in its topic."""

    topic: str
    partition: int
    offset: int
    key: str | None
    headers: dict[str, str]
    value: bytes

    def json(self) -> Any:
        return json.loads(self.value)


class Kafka:
    """A running broker, read and written by tests and by whoever must know how far consumers are."""

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
        """Everything in the topic from its start on, once `until` is content with it.

        In order within each partition. Raises TimeoutError, which shows what was there.
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
        """Write one message and wait until the broker has it. Raises KafkaException or TimeoutError."""
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error)

        producer = Producer(self.connection.configuration({"acks": "all", "partitioner": "murmur2_random"}))
        producer.produce(topic, value, key, headers=dict(headers or {}), on_delivery=delivered)
        if producer.flush(REQUEST_SECONDS):
            raise TimeoutError(f"{topic}: the broker did not take the message within {REQUEST_SECONDS} s")
        if failures:
            raise KafkaException(failures[0])

    def topics(self) -> dict[str, int]:
        """The number of partitions of each topic, Kafka's own left out. Raises KafkaException."""
        with self._consumer() as consumer:
            found = consumer.list_topics(timeout=REQUEST_SECONDS).topics
        return {name: len(found[name].partitions) for name in sorted(found) if not name.startswith("__")}

    def create_topics(self, *names: str, partitions: int = PARTITIONS, config: Mapping[str, str] | None = None) -> None:
        """Make new topics; the embedded broker makes each at its first use. Raises KafkaException."""
        admin = self.admin()
        if str(admin.list_topics(timeout=REQUEST_SECONDS).cluster_id).startswith("mockCluster"):
            return
        wanted = [NewTopic(name, partitions, 1, config=dict(config or {})) for name in names]
        for made in admin.create_topics(wanted, operation_timeout=REQUEST_SECONDS).values():
            made.result(REQUEST_SECONDS)

    def admin(self) -> AdminClient:
        """For what only administrators do. The embedded broker knows none of it."""
        return AdminClient(self.connection.configuration({"log_level": 0}))

    def size(self, topic: str) -> int:
        """How many messages are in the topic. Raises KafkaException."""
        with self._consumer() as consumer:
            partitions = consumer.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic].partitions
            return sum(_unread(consumer, TopicPartition(topic, number, 0)) for number in partitions)

    def lag(self, group: str, topic: str) -> int:
        """How many messages of the topic the group has not committed yet. Raises KafkaException."""
        with self._consumer(group) as consumer:
            partitions = consumer.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic].partitions
            wanted = [TopicPartition(topic, number) for number in partitions]
            return sum(_unread(consumer, position) for position in _committed(consumer, wanted))

    def freeze(self) -> None:
        """Stop a broker of ours where it is, connections open, until `thaw`."""
        self._ours().freeze()

    def thaw(self) -> None:
        self._ours().thaw()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with self._ours().frozen():
            yield

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        self._ours().kill()

    @property
    def pid(self) -> int:
        """Of the embedded broker."""
        own = self._ours()
        assert isinstance(own, Process), f"{self.description} runs in a container"
        return own.pid

    def start_again(self) -> None:
        """After `kill`: on the port and with the topics that it had. Raises TimeoutError."""
        self.container.start_again()
        self.wait_until_it_answers()

    @property
    def container(self) -> "Container":
        """In which it runs; the embedded broker runs in none, and keeps nothing over a restart."""
        own = self._ours()
        assert not isinstance(own, Process), f"{self.description} runs in no container"
        return own

    def _ours(self) -> "Process | Container":
        if self._own is None:
            raise RuntimeError(f"{self.description} is not ours to freeze")
        return self._own

    def wait_until_it_answers(self) -> None:
        """A container that was started. Raises TimeoutError, with the end of its log."""
        admin = self.admin()
        deadline = time.monotonic() + CONTAINER_START_SECONDS
        while True:
            try:
                # Not before its controller works, too.
                admin.describe_cluster(request_timeout=2).result(3)
                return
            except (KafkaException, TimeoutError) as error:
                if not self.container.alive or time.monotonic() > deadline:
                    why = f"{self.description} does not answer: {error}"
                    raise TimeoutError(f"{why}\n{self.container.tail()}") from error
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def _consumer(self, group: str = "devstack") -> Iterator[Consumer]:
        # It assigns itself and commits nothing: the group is never joined, and no other reader is disturbed.
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
    """That broker could not be had; the message says why."""


@dataclass(frozen=True)
class Source:
    """A place that has a broker, from the beginning of `run` to its end. It raises KafkaUnavailable."""

    description: str
    run: Callable[[], AbstractContextManager[Kafka]]


def sources(bootstrap: str | None = None, *, containers: bool = False) -> list[Source]:
    """Where a broker can be had, best first, nothing started. One that is named is never replaced by another."""
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
    """The broker that is named, else Apache Kafka where `containers` are asked for and Docker is, else the embedded.

    Until the block ends. It has the shop's topics, unless it was named. `tell` hears why a container did not start.
    """
    with ExitStack() as at_the_end:
        yield _first_that_works(sources(bootstrap, containers=containers), at_the_end, tell)


def _first_that_works(candidates: list[Source], at_the_end: ExitStack, tell: Callable[[str], None]) -> Kafka:
    *better, last = candidates
    for source in better:
        try:
            return at_the_end.enter_context(source.run())
        except KafkaUnavailable as failure:
            tell(f"tests run on {last.description} instead: {failure}")
    return at_the_end.enter_context(last.run())


@contextmanager
def _in_a_container() -> Iterator[Kafka]:
    # Loaded only where Docker is: tests alone have what it needs.
    from devstack.servers.containers import Container, ContainerUnavailable  # noqa: PLC0415

    (port,) = free_ports(1)
    try:
        # It listens on the port by which it is reached, since that is what it tells its clients.
        own = Container.start(IMAGE, port, _container_settings(port), inside=port)
    except ContainerUnavailable as error:
        raise KafkaUnavailable(str(error)) from error
    try:
        kafka = Kafka(f"127.0.0.1:{port}", f"{IMAGE} in a container", own)
        kafka.wait_until_it_answers()
        kafka.create_topics(*TOPICS)
        yield kafka
    finally:
        own.stop()


def _container_settings(port: int) -> dict[str, str]:
    """One node, as small and as quick to start as can be; topics are made by hand, as in production."""
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
        # Its own minimum is six seconds, which tests would wait for a member that does not leave properly.
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "500",
        # 128 MB of the heap if nothing is said: with less than that in one piece the broker ends at its start.
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
    """The embedded broker's process, not started yet. It listens on a port that the system chooses, or on this one."""
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
    """Start the process of `embedded` and wait until it serves. Raises ProcessEnded or TimeoutError."""
    broker.start()
    broker.wait_for_line("broker ready", START_SECONDS)
    return Kafka(address_file.read_text(), EMBEDDED, broker)


def _committed(consumer: Consumer, wanted: list[TopicPartition]) -> list[TopicPartition]:
    """What the group has committed. A broker that has just started is asked again until it knows its groups."""
    deadline = time.monotonic() + REQUEST_SECONDS
    while True:
        try:
            return consumer.committed(wanted, REQUEST_SECONDS)
        except KafkaException as error:
            if error.args[0].code() not in _GROUPS_UNKNOWN_YET or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _unread(consumer: Consumer, committed: TopicPartition) -> int:
    lowest, highest = consumer.get_watermark_offsets(committed, timeout=REQUEST_SECONDS)
    # A negative one stands for "none yet".
    return int(highest - max(lowest, committed.offset))


def _record(message: Message) -> Record:
    """Raises KafkaException for what is no message but an error in its place."""
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
    return f"{topic}: not what was awaited within {within_seconds:g} s; {len(records)} there, the last:\n{shown}"
