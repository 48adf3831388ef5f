"""The side `debezium`: Kafka Connect with the outbox event router, tuned for throughput and a short delay.

Debezium reads only inserts, and the rows are not deleted while it is measured. It has less work than the other sides,
so the comparison is in its favour.
"""

import hashlib
import json
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from benchmarks.http2 import LoadError
from benchmarks.relay_outbox import Outbox
from devstack import watchdog
from devstack.kafka import IMAGE, Kafka
from devstack.ports import free_ports
from devstack.postgres import PostgresServer
from shopctl.system import docker

VERSION = "3.6.3.Final"
SHA256 = "68dfbd3aa0e22cbc164017311449f69dfe6b96b70e72c72c7a3a24ef5c7810e0"
PLUGIN = f"debezium-connector-postgres-{VERSION}-plugin.tar.gz"
PLUGIN_PATH = f"io/debezium/debezium-connector-postgres/{VERSION}/{PLUGIN}"
START_SECONDS = 240
DOWNLOAD_SECONDS = 120
_POLL_SECONDS = 0.2

_WORKER = """\
bootstrap.servers={brokers}
listeners=http://127.0.0.1:{port}
plugin.path=/plugins
plugin.discovery=service_load
offset.storage.file.filename=/tmp/connect.offsets
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.storage.StringConverter
"""

# Batches and queues are far above the defaults (2,048 and 8,192). The producer is idempotent and lingers like the
# relay's producer.
_CONNECTOR = """\
name=outbox
connector.class=io.debezium.connector.postgresql.PostgresConnector
tasks.max=1
database.hostname={host}
database.port={database_port}
database.user={user}
database.password={password}
database.dbname={database}
topic.prefix=debezium
plugin.name=pgoutput
slot.name=outbox
publication.name=outbox
publication.autocreate.mode=disabled
table.include.list=public.outbox
snapshot.mode=no_data
tombstones.on.delete=false
poll.interval.ms=10
max.batch.size=8192
max.queue.size=32768
producer.override.enable.idempotence=true
producer.override.max.in.flight.requests.per.connection=5
producer.override.linger.ms=1
producer.override.batch.size=262144
transforms=outbox
transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
transforms.outbox.table.field.event.id=event_id
transforms.outbox.table.field.event.key=key
transforms.outbox.table.field.event.type=type
transforms.outbox.table.field.event.payload=payload
transforms.outbox.table.fields.additional.placement=type:header:ce_type,id:header:ce_sequence,created_at:header:ce_time
transforms.outbox.route.by.field=topic
transforms.outbox.route.topic.replacement=${{routedByValue}}
"""


class Debezium:
    """Kafka Connect in a container on the host network, so that no proxy is between it and the servers."""

    name = "debezium"
    deletes = False

    def __init__(self, server: PostgresServer, kafka: Kafka, plugin: Path) -> None:
        self.server = server
        self._plugin = plugin
        _decode_logically(server)
        self.outbox = Outbox(server, kafka, "relay-debezium")
        self._folder = tempfile.TemporaryDirectory(prefix="shop-connect-")
        self._container: str | None = None
        (self._port,) = free_ports(1)

    def start(self) -> None:
        self.outbox.execute("CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert')")
        # The container's user must be able to read this folder; a parent folder keeps other users out.
        folder = Path(self._folder.name) / "settings"
        folder.mkdir()
        url = make_url(self.outbox.url)
        values = {
            "brokers": self.outbox.kafka.bootstrap,
            "port": self._port,
            "host": url.host,
            "database_port": url.port,
            "user": url.username,
            "password": url.password,
            "database": url.database,
        }
        (folder / "worker.properties").write_text(_WORKER.format(**values))
        (folder / "connector.properties").write_text(_CONNECTOR.format(**values))
        self._container = docker.run(
            *("run", "--detach", "--network", "host", "--env", "KAFKA_HEAP_OPTS=-Xms512m -Xmx1g"),
            *("--volume", f"{self._plugin}:/plugins/debezium:ro", "--volume", f"{folder}:/settings:ro"),
            *("--entrypoint", "/opt/kafka/bin/kafka-run-class.sh", IMAGE),
            *("org.apache.kafka.connect.cli.ConnectStandalone", "/settings/worker.properties"),
            "/settings/connector.properties",
        ).strip()
        watchdog.run(self._container, ["docker", "rm", "--force", "--volumes", self._container])
        self._wait_until_it_streams(self._container)

    def stop(self) -> None:
        if self._container is not None:
            docker.run("rm", "--force", "--volumes", self._container)
            watchdog.forget(self._container)
        self.outbox.close()
        self._folder.cleanup()

    def hold(self) -> None:
        # Do not use `docker pause`: it fails on a busy machine.
        docker.run("kill", "--signal", "STOP", self._running)

    def go(self) -> None:
        docker.run("kill", "--signal", "CONT", self._running)

    def pids(self) -> Mapping[str, int]:
        return {self.name: int(docker.run("inspect", "--format", "{{.State.Pid}}", self._running))}

    @property
    def _running(self) -> str:
        assert self._container is not None
        return self._container

    def _wait_until_it_streams(self, container: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._streams():
            if time.monotonic() > deadline or docker.run("inspect", "-f", "{{.State.Running}}", container) != "true\n":
                log = docker.run("logs", "--tail", "30", container, errors_too=True)
                raise LoadError(f"Kafka Connect did not stream within {START_SECONDS} s\n{log}")
            time.sleep(_POLL_SECONDS)

    def _streams(self) -> bool:
        if self.outbox.execute("SELECT active FROM pg_replication_slots") != [(True,)]:
            return False
        status = f"http://127.0.0.1:{self._port}/connectors/outbox/status"
        with suppress(OSError), urllib.request.urlopen(status, timeout=2) as answer:
            return [task["state"] for task in json.load(answer)["tasks"]] == ["RUNNING"]
        return False


class PluginMissing(LoadError):
    """Debezium cannot be measured; the message contains the reason."""


def unpacked(archive: Path, folder: Path) -> Path:
    """Verify the checksum of the archive, and unpack the plugin into the folder. Raises PluginMissing."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise PluginMissing(f"{archive.name} has the checksum {found} instead of {SHA256}")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / "debezium-connector-postgres"


def downloaded(repository: str, folder: Path) -> Path:
    """Download the plugin's archive from a Maven repository. Raises PluginMissing."""
    archive = folder / PLUGIN
    try:
        with urllib.request.urlopen(f"{repository.rstrip('/')}/{PLUGIN_PATH}", timeout=DOWNLOAD_SECONDS) as answer:
            archive.write_bytes(answer.read())
    except OSError as error:
        raise PluginMissing(f"cannot download {PLUGIN} from the Maven repository: {error}") from error
    return archive


def _decode_logically(server: PostgresServer) -> None:
    admin = make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET wal_level = 'logical'")
        # While other sides are measured, Debezium is frozen for longer than PostgreSQL's default sender timeout.
        connection.execute("ALTER SYSTEM SET wal_sender_timeout = 0")
    server.kill()
    server.start_again()
