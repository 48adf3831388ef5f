"""Three brokers, and each in turn is lost with all partitions that it leads: killed, or frozen where it stands."""

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


def test_each_leader_is_lost(postgres_server: PostgresServer, cluster: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    with (
        running(Databases.on_server(postgres_server), cluster.kafka) as system,
        system.history(seed, calm=True) as clients,
        clients.at_work(),
    ):
        for number in chance.sample(list(cluster.brokers), len(cluster.brokers)):
            clients.wait_for(20)
            assert number in cluster.leaders().values(), f"broker {number} leads nothing that could be lost"
            broker = cluster.brokers[number]
            killed = chance.random() < 0.5
            (broker.kill if killed else broker.freeze)()
            system.eventually(lambda: moved(cluster, number), MOVED_SECONDS, f"others lead instead of {number}")  # noqa: B023 - called at once
            ships(system)
            clients.wait_for(20)
            (broker.start_again if killed else broker.thaw)()
            what = f"broker {number}, which was {'killed' if killed else 'frozen'}, has caught up"
            system.eventually(cluster.is_whole, CAUGHT_UP_SECONDS, what)
            ships(system)
        clients.wait_for(20)


def moved(cluster: Cluster, lost: int) -> bool:
    return set(cluster.leaders().values()).isdisjoint({lost, -1})


def ships(system: System) -> None:
    """What waits now is gone in a while, though more comes all the time."""
    waiting = system.readers.waiting()
    system.eventually(lambda: waiting.isdisjoint(system.readers.waiting()), SHIPPED_SECONDS, "the backlog is shipped")
