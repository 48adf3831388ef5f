"""Processes killed and frozen, at random and at every named step, while clients work on two of each."""

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
from tests.faults.build import SteppedBuild
from tests.faults.system import LEASE_SECONDS, System, running

pytestmark = pytest.mark.timeout(500)

RANDOM_KILLS, RANDOM_KILLS_SHORT = 4, 2
STEP_SECONDS = 60
GO_ON_SECONDS = 20
STEPS = [
    *((api, step) for api in (INVENTORY_API, ORDER_API) for step in (build.BEFORE_COMMIT, build.AFTER_COMMIT)),
    *((api, build.BEFORE_OFFSET) for api in (INVENTORY_API, ORDER_API)),
    (ORDER_API, build.BEFORE_INSERT),
    (ORDER_API, build.BEFORE_CONFIRMED),
    *((RELAY, step) for step in (build.BEFORE_PRODUCE, build.BEFORE_DELETE, build.BEFORE_COMMIT, build.AFTER_COMMIT)),
]


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> SteppedBuild:
    return SteppedBuild(tmp_path_factory.mktemp("stepped") / "build")


@pytest.fixture(scope="module")
def system(postgres_server: PostgresServer, own_broker: Kafka, stepped: SteppedBuild) -> Iterator[System]:
    databases = Databases.on_server(postgres_server)
    with running(databases, own_broker, replicas=2, environment=stepped.environment) as system:
        yield system


@pytest.mark.short
def test_killed_at_random(system: System, seed: int, is_short: bool) -> None:
    chance = random.Random(seed)
    with system.history(seed) as clients, clients.at_work():
        for _ in range(RANDOM_KILLS_SHORT if is_short else RANDOM_KILLS):
            clients.wait_for(chance.randint(5, 40))
            process = chance.choice(system.processes)
            process.kill()
            process.start()
            process.wait_ready(STEP_SECONDS)
        clients.wait_for(20)


def test_killed_at_every_step(system: System, stepped: SteppedBuild, seed: int) -> None:
    chance = random.Random(seed)
    with system.history(seed) as clients, clients.at_work():
        for name, step in chance.sample(STEPS, len(STEPS)):
            stepped.arm(name, step, "kill", passes=chance.randint(0, 5))
            system.eventually(lambda: dead(system), STEP_SECONDS, f"{name} comes by: {step}")
            (process,) = dead(system)
            assert (process.name, process.exit_code) == (name, -signal.SIGKILL)
            process.start()
            process.wait_ready(STEP_SECONDS)
        clients.wait_for(20)


@pytest.mark.parametrize(
    "step", [build.BEFORE_PRODUCE, pytest.param(build.BEFORE_DELETE, marks=pytest.mark.short), build.BEFORE_COMMIT]
)
def test_a_relay_frozen_for_longer_than_its_lease_repeats_at_most(
    system: System, stepped: SteppedBuild, seed: int, step: str
) -> None:
    with system.history(seed) as clients, clients.at_work():
        clients.wait_for(20)
        frozen = freeze(system, stepped, RELAY, step)
        # Each shard has gone to the other relay.
        system.eventually(lambda: len(owners(system)) == 1, 10 * LEASE_SECONDS, "the other takes over")
        (other,) = owners(system)
        clients.wait_for(40)
        assert owners(system) == {other}
        frozen.thaw()
        system.eventually(lambda: len(owners(system)) == 2, 10 * LEASE_SECONDS, "it has shards again")
        clients.wait_for(20)


@pytest.mark.parametrize("name", [pytest.param(INVENTORY_API, marks=pytest.mark.short), ORDER_API])
def test_others_go_on_while_an_api_is_frozen_in_its_transaction(
    system: System, stepped: SteppedBuild, seed: int, name: str
) -> None:
    with system.history(seed) as clients, clients.at_work():
        clients.wait_for(20)
        frozen = freeze(system, stepped, name, build.BEFORE_COMMIT)
        # The database throws it out, and lets those go on who wait for its rows. They ask the other process: of
        # those who ask both, half wait for nothing.
        (healthy,) = (stack for stack in system.stacks if frozen not in stack.processes)
        others = clients.elsewhere(healthy.inventory_address, healthy.orders_address)
        with others.at_work(deeds=(1, 0, 0) if name == ORDER_API else (0, 3, 1)):
            others.wait_for(60, within_seconds=GO_ON_SECONDS)
        frozen.thaw()
        frozen.wait_ready(STEP_SECONDS)
        clients.wait_for(20)


@pytest.mark.short
def test_events_that_commit_in_another_order_than_their_numbers_were_drawn(system: System, seed: int) -> None:
    chance = random.Random(seed)
    topic = f"late-{seed}"
    system.kafka.create_topics(topic)
    late = create_engine(system.stacks[0].databases.orders)
    rows = [
        {"shard": shard, "id": f"{seed:08x}-0000-4000-8000-{number:012x}", "topic": topic, "key": str(shard)}
        for number, shard in enumerate(chance.sample(range(SHARDS), SHARDS))
    ]
    with system.history(seed) as clients, clients.at_work(), late.connect() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox (shard, event_id, topic, key, type, payload, created_at)"
                " VALUES (:shard, CAST(:id AS uuid), :topic, :key, 'LATE', '{}', now())"
            ),
            rows,
        )
        # Rows with higher numbers are written, shipped and deleted meanwhile.
        clients.wait_for(100)
        assert system.kafka.size(topic) == 0
        connection.commit()
        system.eventually(lambda: system.kafka.size(topic) == len(rows), STEP_SECONDS, "late events are shipped")
    late.dispose()


def dead(system: System) -> list[Process]:
    return [process for process in system.processes if not process.alive]


def freeze(system: System, stepped: SteppedBuild, name: str, step: str) -> Process:
    """One of that name, at that step."""
    stepped.arm(name, step, "freeze")

    def stopped() -> list[Process]:
        return [each for each in system.processes if psutil.Process(each.pid).status() == psutil.STATUS_STOPPED]

    system.eventually(stopped, STEP_SECONDS, f"{name} comes by: {step}")
    (frozen,) = stopped()
    assert frozen.name == name
    return frozen


def owners(system: System) -> set[str]:
    """Of the shards of both databases' outboxes, seats left out."""
    return {owner for shard, owner in system.readers.owners().items() if int(shard) >= 0}
