"""Servers for these tests: PostgreSQL on a disk that a test can fill, and Apache Kafka with three brokers."""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy.engine import URL
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from devstack import kafka as kafka_brokers
from devstack import postgres, watchdog
from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.postgres import PostgresServer
from devstack.servers import postmaster
from devstack.servers.containers import Container
from shopctl.events.topics import PARTITIONS, TOPICS
from shopctl.system import docker

DISK_MEGABYTES = 192
BROKERS = 3
_CONTROLLER = 100
_DATA = "/var/lib/postgresql/data"
_BALLAST = f"{_DATA}/ballast"
_IN_MEMORY = ("type=tmpfs", "device=tmpfs", f"o=size={DISK_MEGABYTES}m")
_SMALL = {"min_wal_size": "32MB", "max_wal_size": "48MB"}
_ADMIN_SECONDS = 10
_START_SECONDS = 240
_POLL_SECONDS = 0.1


def start(
    at_the_end: ExitStack, image: str, environment: Mapping[str, str], command: Sequence[str] | None, **options: Any
) -> Container:
    """Start a container with options that `Container.start` does not support. `at_the_end` removes it."""
    testcontainers_config.ryuk_disabled = True
    container = DockerContainer(image, env=dict(environment), **options)
    if command is not None:
        container.with_command(list(command))
    at_the_end.callback(container.stop)
    container.start()
    started = Container(container)
    watchdog.run(started.name, ["docker", "rm", "--force", "--volumes", started.name])
    at_the_end.callback(watchdog.forget, started.name)
    return started


class SmallDisk:
    """The disk of a server: a tmpfs of a fixed size.

    A second container keeps the disk mounted, so that its contents survive the end of the server's container.
    """

    def __init__(self, keeper: Container) -> None:
        self._keeper = keeper

    def fill(self) -> None:
        """Fill the disk. Repeat it while the disk should stay full: the server may delete files."""
        self._keeper.execute("sh", "-c", f"cat /dev/zero >> {_BALLAST} 2>/dev/null; [ -s {_BALLAST} ]")

    def clear(self) -> None:
        self._keeper.execute("rm", "-f", _BALLAST)


@contextmanager
def postgres_on_a_small_disk() -> Iterator[tuple[PostgresServer, SmallDisk, Container]]:
    """The server, its disk and its container, until the block ends."""
    (port,) = free_ports(1)
    password = secrets.token_urlsafe(24)
    # Use the host's network, so that the server keeps its port when its container is restarted.
    settings = postmaster.settings(durable=False) | _SMALL | {"listen_addresses": "127.0.0.1", "port": str(port)}
    with ExitStack() as at_the_end:
        disk = [(_volume(at_the_end), _DATA, "rw")]
        keeper = start(at_the_end, postgres.IMAGE, {}, ["infinity"], volumes=disk, entrypoint=["sleep"])
        server = start(
            at_the_end,
            postgres.IMAGE,
            {
                "POSTGRES_PASSWORD": password,
                "POSTGRES_INITDB_ARGS": "--no-sync --locale=C --encoding=UTF8",
                # A subfolder of the mount: initdb needs an empty folder, and the ballast lies beside it.
                "PGDATA": f"{_DATA}/server",
            },
            ["postgres", *(option for name, value in settings.items() for option in ("-c", f"{name}={value}"))],
            volumes=disk,
            network_mode="host",
        )
        url = URL.create("postgresql+psycopg", "postgres", password, "127.0.0.1", port, "postgres")
        postgres.wait_until_it_answers(url)
        yield PostgresServer(url, f"{postgres.IMAGE} on a small disk", server), SmallDisk(keeper), server


def _volume(at_the_end: ExitStack) -> str:
    name = f"shop-faults-{secrets.token_hex(6)}"
    options = [argument for option in _IN_MEMORY for argument in ("--opt", option)]
    docker.run("volume", "create", *options, name)
    watchdog.run(name, ["docker", "volume", "rm", "--force", name])
    at_the_end.callback(watchdog.forget, name)
    at_the_end.callback(docker.run, "volume", "rm", "--force", name)
    return name


class Cluster:
    """Three brokers. Each partition has a replica on all of them and needs two in sync (min.insync.replicas)."""

    def __init__(self, kafka: Kafka, brokers: Mapping[int, Container]) -> None:
        self.kafka = kafka
        self.brokers = brokers

    def leaders(self) -> dict[tuple[str, int], int]:
        """(topic, partition) → its leader's broker id, -1 without a leader."""
        return {where: leader for where, (leader, _) in self._partitions().items()}

    def is_in_sync(self) -> bool:
        """True if all replicas of all partitions are in sync."""
        return all(len(in_sync) == BROKERS for _, in_sync in self._partitions().values())

    def _partitions(self) -> dict[tuple[str, int], tuple[int, list[int]]]:
        known = self.kafka.admin().list_topics(timeout=_ADMIN_SECONDS).topics
        return {
            (topic, number): (partition.leader, partition.isrs)
            for topic in TOPICS
            for number, partition in known[topic].partitions.items()
        }


@contextmanager
def three_brokers() -> Iterator[Cluster]:
    """Apache Kafka with three brokers and our topics, until the block ends."""
    controller, *ports = free_ports(1 + BROKERS)
    bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports)
    common = {
        # A separate controller, so that a partition's leader can be killed without the controller that elects the next.
        "KAFKA_CONTROLLER_QUORUM_VOTERS": f"{_CONTROLLER}@127.0.0.1:{controller}",
        "KAFKA_MIN_INSYNC_REPLICAS": str(BROKERS - 1),
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": str(BROKERS),
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": str(BROKERS),
    }
    with ExitStack() as at_the_end:

        def launch(number: int, port: int, own: Mapping[str, str]) -> Container:
            settings = {**kafka_brokers.container_settings(port), **common, "KAFKA_NODE_ID": str(number), **own}
            if own["KAFKA_PROCESS_ROLES"] == "controller":
                # Only brokers are advertised to clients.
                del settings["KAFKA_ADVERTISED_LISTENERS"]
            return start(at_the_end, kafka_brokers.IMAGE, settings, None, network_mode="host")

        own = {"KAFKA_PROCESS_ROLES": "controller", "KAFKA_LISTENERS": f"CONTROLLER://127.0.0.1:{controller}"}
        launch(_CONTROLLER, controller, own)
        brokers = {}
        for number, port in enumerate(ports, start=1):
            own = {"KAFKA_PROCESS_ROLES": "broker", "KAFKA_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}"}
            brokers[number] = launch(number, port, own)
        kafka = Kafka(bootstrap, f"{BROKERS} brokers of {kafka_brokers.IMAGE}", brokers[1])
        admin = kafka.admin()
        deadline = time.monotonic() + _START_SECONDS
        while _joined(admin) < BROKERS:
            assert time.monotonic() < deadline, f"not all brokers have joined\n{brokers[1].tail()}"
            threading.Event().wait(_POLL_SECONDS)
        topics = [NewTopic(name, PARTITIONS, BROKERS) for name in TOPICS]
        for created in admin.create_topics(topics, operation_timeout=_ADMIN_SECONDS).values():
            created.result(_ADMIN_SECONDS)
        yield Cluster(kafka, brokers)


def _joined(admin: AdminClient) -> int:
    """The number of brokers that have joined."""
    try:
        return len(admin.list_topics(timeout=_ADMIN_SECONDS).brokers)
    except KafkaException:
        return 0
