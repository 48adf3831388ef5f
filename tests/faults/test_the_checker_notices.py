"""With a guard of ours switched off, in a throw-away build, the checker finds the damage. Else it is too weak."""

from collections.abc import Callable
from pathlib import Path

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY
from tests.faults import mutants
from tests.faults.build import BEFORE_PRODUCE, Build, Mutant, SteppedBuild
from tests.faults.checker import check
from tests.faults.system import Recorded, System, running

pytestmark = [pytest.mark.timeout(400), pytest.mark.short]
WORKERS = {name: {"WORKERS": "2"} for name in (INVENTORY_API, ORDER_API)}
RESTART_SECONDS = 120
ANSWERS, ANSWERS_SHORT = 600, 450
DAMAGED_REST_SECONDS, DAMAGED_REST_SECONDS_SHORT = 20, 10
"""What is damaged may never come to rest, which is damage, too."""


def damage(system: System, seed: int, is_short: bool, during: Callable[[], None] = lambda: None) -> list[str]:
    """What the checker says after some work."""
    answers = ANSWERS_SHORT if is_short else ANSWERS
    rest_seconds = DAMAGED_REST_SECONDS_SHORT if is_short else DAMAGED_REST_SECONDS
    recorded = Recorded(system, seed)
    with recorded.clients.at_work():
        recorded.clients.wait_for(answers // 2)
        during()
        recorded.clients.wait_for(answers // 2)
    return check(recorded.at_rest(calm=True, within_seconds=rest_seconds))


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        pytest.param(mutants.ROW_LOCK, "item", id="row lock"),
        pytest.param(mutants.RESERVATION_STATE, "was told after", id="state of a reservation"),
        pytest.param(mutants.ORDER_STATUS, "was told after", id="state of an order"),
        pytest.param(mutants.IDEMPOTENCY_CLAIM, "its effect is there 2 times", id="idempotency claim"),
    ],
)
def test_on_postgresql(
    mutant: Mutant,
    said: str,
    postgres_server: PostgresServer,
    own_broker: Kafka,
    tmp_path: Path,
    seed: int,
    is_short: bool,
) -> None:
    build = Build(tmp_path / "build", mutant)
    databases = Databases.on_server(postgres_server)
    with running(databases, own_broker, replicas=2, environment=build.environment) as system:
        found = damage(system, seed, is_short)
    assert any(said in sentence for sentence in found), "\n".join(found) or "nothing was found"


def test_delete_after_acknowledge(
    postgres_server: PostgresServer, own_broker: Kafka, tmp_path: Path, seed: int, is_short: bool
) -> None:
    build = SteppedBuild(tmp_path / "build", mutants.DELETE_AFTER_ACKNOWLEDGEMENT)
    with running(Databases.on_server(postgres_server), own_broker, environment=build.environment) as system:

        def kill_relay() -> None:
            relay = system.named(RELAY)
            build.arm(RELAY, BEFORE_PRODUCE, "kill")
            system.eventually(lambda: not relay.alive, RESTART_SECONDS, "the relay has rows to ship")
            relay.start()
            relay.wait_ready(RESTART_SECONDS)

        found = damage(system, seed, is_short, kill_relay)
    # Of an order or a reservation all events are lost, its last ones, or some before the last.
    lost = "nothing was told of it", "told were", "was told after"
    assert any(word in sentence for word in lost for sentence in found), "\n".join(found) or "nothing was found"


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        pytest.param(mutants.AUTOINCREMENT, "was given to the events", id="AUTOINCREMENT"),
        pytest.param(mutants.BEGIN_IMMEDIATE, "had no answer though nothing was wrong", id="BEGIN IMMEDIATE"),
    ],
)
def test_on_sqlite(mutant: Mutant, said: str, small_broker: Kafka, tmp_path: Path, seed: int, is_short: bool) -> None:
    build = Build(tmp_path / "build", mutant)
    databases = Databases.in_folder(tmp_path / "data")
    with running(databases, small_broker, environment=build.environment, per_process=WORKERS) as system:
        found = damage(system, seed, is_short)
    assert any(said in sentence for sentence in found), "\n".join(found) or "nothing was found"
