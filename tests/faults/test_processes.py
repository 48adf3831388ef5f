"""Processes are killed and frozen, at random and at every failpoint, while clients call two processes of each kind."""

import random
import signal
from collections.abc import Iterator

import psutil
import pytest
from sqlalchemy import create_engine, text

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.process import Process
from devstack.stack import Databases
from shop_common.events.outbox import SHARDS
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY
from tests.faults import build
from tests.faults.build import StoppableBuild
from tests.faults.system import LEASE_SECONDS, System, running

pytestmark = pytest.mark.timeout(500)

RANDOM_KILLS, RANDOM_KILLS_SHORT = 4, 2
WAIT_SECONDS = 60
CONTINUE_SECONDS = 20
STOP_POINTS = [
    *((api, name) for api in (INVENTORY_API, ORDER_API) for name in (build.BEFORE_COMMIT, build.AFTER_COMMIT)),
    *((api, build.BEFORE_OFFSET) for api in (INVENTORY_API, ORDER_API)),
    (ORDER_API, build.BEFORE_INSERT),
    (ORDER_API, build.BEFORE_CONFIRMED),
    (ORDER_API, build.BEFORE_CHANGED),
    *((RELAY, name) for name in (build.BEFORE_PRODUCE, build.BEFORE_DELETE, build.BEFORE_COMMIT, build.AFTER_COMMIT)),
]


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory: pytest.TempPathFactory) -> StoppableBuild:
    return StoppableBuild(tmp_path_factory.mktemp("stoppable") / "build")


@pytest.fixture(scope="module")
def system(postgres_server: PostgresServer, own_broker: Kafka, stoppable: StoppableBuild) -> Iterator[System]:
    databases = Databases.on_server(postgres_server)
    with running(databases, own_broker, replicas=2, environment=stoppable.environment) as system:
        yield system


@pytest.mark.short
def test_killed_at_random(system: System, seed: int, is_short: bool) -> None:
    chance = random.Random(seed)
    with system.history(seed) as clients, clients.working():
        for _ in range(RANDOM_KILLS_SHORT if is_short else RANDOM_KILLS):
            clients.wait_for(chance.randint(5, 40))
            process = chance.choice(system.processes)
            process.kill()
            process.start()
            process.wait_ready(WAIT_SECONDS)
        clients.wait_for(20)


def test_killed_at_every_failpoint(system: System, stoppable: StoppableBuild, seed: int) -> None:
    chance = random.Random(seed)
    with system.history(seed) as clients, clients.working():
        for name, failpoint in chance.sample(STOP_POINTS, len(STOP_POINTS)):
            stoppable.arm(name, failpoint, "kill", passes=chance.randint(0, 5))
            system.eventually(lambda: ended(system), WAIT_SECONDS, f"{name} reaches {failpoint}")
            (process,) = ended(system)
            assert (process.name, process.exit_code) == (name, -signal.SIGKILL)
            process.start()
            process.wait_ready(WAIT_SECONDS)
        clients.wait_for(20)


@pytest.mark.parametrize(
    "failpoint", [build.BEFORE_PRODUCE, pytest.param(build.BEFORE_DELETE, marks=pytest.mark.short), build.BEFORE_COMMIT]
)
def test_a_relay_frozen_for_longer_than_its_lease_only_repeats_events(
    system: System, stoppable: StoppableBuild, seed: int, failpoint: str
) -> None:
    with system.history(seed) as clients, clients.working():
        clients.wait_for(20)
        frozen = freeze(system, stoppable, RELAY, failpoint)
        system.eventually(lambda: len(owners(system)) == 1, 10 * LEASE_SECONDS, "the other relay has all leases")
        (other,) = owners(system)
        clients.wait_for(40)
        assert owners(system) == {other}
        frozen.thaw()
        system.eventually(lambda: len(owners(system)) == 2, 10 * LEASE_SECONDS, "both relays have leases")
        clients.wait_for(20)


@pytest.mark.parametrize("name", [pytest.param(INVENTORY_API, marks=pytest.mark.short), ORDER_API])
def test_the_other_process_serves_while_an_api_is_frozen_in_its_transaction(
    system: System, stoppable: StoppableBuild, seed: int, name: str
) -> None:
    with system.history(seed) as clients, clients.working():
        clients.wait_for(20)
        frozen = freeze(system, stoppable, name, build.BEFORE_COMMIT)
        # The database ends the idle transaction, and the transactions that wait for its rows continue. These clients
        # call only
        # the healthy process: clients that call both would spend half of their calls on timeouts.
        (healthy,) = (stack for stack in system.stacks if frozen not in stack.processes)
        others = clients.at_addresses(healthy.inventory_address, healthy.orders_address)
        with others.working(weights=(1, 0, 0) if name == ORDER_API else (0, 3, 1)):
            others.wait_for(60, within_seconds=CONTINUE_SECONDS)
        frozen.thaw()
        frozen.wait_ready(WAIT_SECONDS)
        clients.wait_for(20)


@pytest.mark.short
def test_events_that_commit_in_another_order_than_their_ids(system: System, seed: int) -> None:
    chance = random.Random(seed)
    topic = f"late-{seed}"
    system.kafka.create_topics(topic)
    late = create_engine(system.stacks[0].databases.orders)
    rows = [
        {"shard": shard, "id": f"{seed:08x}-0000-4000-8000-{number:012x}", "topic": topic, "key": str(shard)}
        for number, shard in enumerate(chance.sample(range(SHARDS), SHARDS))
    ]
    with system.history(seed) as clients, clients.working(), late.connect() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox (shard, event_id, topic, key, type, payload, created_at)"
                " VALUES (:shard, CAST(:id AS uuid), :topic, :key, 'LATE', '{}', now())"
            ),
            rows,
        )
        # Meanwhile rows with higher ids are written, shipped and deleted.
        clients.wait_for(100)
        assert system.kafka.size(topic) == 0
        connection.commit()
        system.eventually(lambda: system.kafka.size(topic) == len(rows), WAIT_SECONDS, "late events are shipped")
    late.dispose()


def ended(system: System) -> list[Process]:
    return [process for process in system.processes if not process.alive]


def freeze(system: System, stoppable: StoppableBuild, name: str, failpoint: str) -> Process:
    """Freeze one process of this name at the failpoint. Returns the process."""
    stoppable.arm(name, failpoint, "freeze")

    def stopped() -> list[Process]:
        return [each for each in system.processes if psutil.Process(each.pid).status() == psutil.STATUS_STOPPED]

    system.eventually(stopped, WAIT_SECONDS, f"{name} reaches {failpoint}")
    (frozen,) = stopped()
    assert frozen.name == name
    return frozen


def owners(system: System) -> set[str]:
    """The owners of the leases of shards, membership slots left out."""
    return {owner for shard, owner in system.readers.owners().items() if int(shard) >= 0}
