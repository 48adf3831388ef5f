"""Three brokers: each in turn is killed or frozen, with all partitions that it leads."""

import random
from collections.abc import Iterator

import pytest

from devstack.postgres import PostgresServer
from devstack.stack import Databases
from tests.faults.containers import Cluster, three_brokers
from tests.faults.system import System, running

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("docker_engine")]

MOVED_SECONDS = 60
CAUGHT_UP_SECONDS = 120
SHIPPED_SECONDS = 60


@pytest.fixture(scope="module")
def cluster(docker_engine: str) -> Iterator[Cluster]:
    with three_brokers() as cluster:
        yield cluster


def test_each_broker_is_lost_in_turn(postgres_server: PostgresServer, cluster: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    with (
        running(Databases.on_server(postgres_server), cluster.kafka) as system,
        system.history(seed, fault_free=True) as clients,
        clients.working(),
    ):
        for number in chance.sample(list(cluster.brokers), len(cluster.brokers)):
            clients.wait_for(20)
            assert number in cluster.leaders().values(), f"broker {number} leads no partition"
            broker = cluster.brokers[number]
            killed = chance.random() < 0.5
            (broker.kill if killed else broker.freeze)()
            system.eventually(lambda: moved(cluster, number), MOVED_SECONDS, f"broker {number} leads nothing")  # noqa: B023 - called at once
            wait_until_shipped(system)
            clients.wait_for(20)
            (broker.start_again if killed else broker.thaw)()
            description = f"broker {number}, which was {'killed' if killed else 'frozen'}, is in sync again"
            system.eventually(cluster.is_in_sync, CAUGHT_UP_SECONDS, description)
            wait_until_shipped(system)
        clients.wait_for(20)


def moved(cluster: Cluster, lost: int) -> bool:
    return set(cluster.leaders().values()).isdisjoint({lost, -1})


def wait_until_shipped(system: System) -> None:
    """Wait until all events that are in the outboxes now are shipped."""
    waiting = system.readers.waiting()
    system.eventually(lambda: waiting.isdisjoint(system.readers.waiting()), SHIPPED_SECONDS, "the backlog is shipped")
