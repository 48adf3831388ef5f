"""A long outage of the broker: no call fails, and all events are shipped once when the broker is back."""

from collections.abc import Iterator

import pytest

from devstack import kafka as kafka_brokers
from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from tests.faults.system import running

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("docker_engine")]

BACKLOG_SECONDS = 240
AWAY_EVENTS = 5_000
AWAY_EVENTS_SHORT = 500


@pytest.fixture(scope="module")
def apache_kafka(docker_engine: str) -> Iterator[Kafka]:
    with kafka_brokers.provide(containers=True) as broker:
        assert broker.container.alive
        yield broker


def test_the_broker_is_unavailable_while_the_backlog_grows(
    postgres_server: PostgresServer, apache_kafka: Kafka, seed: int, is_short: bool
) -> None:
    with (
        running(Databases.on_server(postgres_server), apache_kafka) as system,
        system.history(seed, fault_free=True) as clients,
        clients.working(),
    ):
        clients.wait_for(20)
        apache_kafka.kill()
        backlog = AWAY_EVENTS_SHORT if is_short else AWAY_EVENTS
        system.eventually(lambda: system.readers.unshipped() > backlog, BACKLOG_SECONDS, f"{backlog} events wait")
        apache_kafka.start_again()
        clients.wait_for(20)
