"""The checker finds violations in the histories of mutants, which are builds with one safeguard disabled."""

from collections.abc import Callable
from pathlib import Path

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from shop_protos.inventory.v1.maintenance_pb2 import VerifyStockRequest
from shopctl.client import Shop
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY
from tests.faults import mutants
from tests.faults.build import BEFORE_PRODUCE, Build, Mutant, StoppableBuild
from tests.faults.checker import check_tenants
from tests.faults.system import Recording, System, running
from tests.faults.test_database import execute

pytestmark = [pytest.mark.timeout(400), pytest.mark.short]
WORKERS = {name: {"WORKERS": "2"} for name in (INVENTORY_API, ORDER_API)}
RESTART_SECONDS = 120
ANSWERS, ANSWERS_SHORT = 600, 450
ANSWERS_OF_PAGES = 150
ANSWERS_OF_MOVEMENTS = 150
DAMAGED_REST_SECONDS, DAMAGED_REST_SECONDS_SHORT = 20, 10
"""A mutant may never come to rest, which is a violation, too."""


def violations(
    system: System, seed: int, is_short: bool, during: Callable[[], None] = lambda: None, answers: int | None = None
) -> list[str]:
    """Run clients, and `during` after half of their calls. Returns the violations that the checker finds."""
    answers = answers or (ANSWERS_SHORT if is_short else ANSWERS)
    rest_seconds = DAMAGED_REST_SECONDS_SHORT if is_short else DAMAGED_REST_SECONDS
    recording = Recording(system, seed)
    with recording.clients.working():
        recording.clients.wait_for(answers // 2)
        during()
        recording.clients.wait_for(answers // 2)
    return check_tenants(recording.at_rest(fault_free=True, within_seconds=rest_seconds))


@pytest.mark.parametrize(
    ("mutant", "expected"),
    [
        pytest.param(mutants.ROW_LOCK, "item", id="row lock"),
        pytest.param(mutants.RESERVATION_STATE, "follows", id="state of a reservation"),
        pytest.param(mutants.ORDER_STATUS, "follows", id="state of an order"),
        pytest.param(mutants.IDEMPOTENCY_CLAIM, "took effect 2 times", id="idempotency claim"),
        pytest.param(mutants.CHANGE_WITHOUT_STOCK, "has the reservations", id="stock of a change"),
        pytest.param(mutants.TARGETS_AGAIN, "were let go", id="totals of an order"),
    ],
)
def test_on_postgresql(
    mutant: Mutant,
    expected: str,
    postgres_server: PostgresServer,
    own_broker: Kafka,
    tmp_path: Path,
    seed: int,
    is_short: bool,
) -> None:
    build = Build(tmp_path / "build", mutant)
    databases = Databases.on_server(postgres_server)
    with running(databases, own_broker, replicas=2, environment=build.environment) as system:
        found = violations(system, seed, is_short)
    assert any(expected in violation for violation in found), "\n".join(found) or "no violation was found"


def test_stock_without_its_tenant(
    postgres_server: PostgresServer, own_broker: Kafka, tmp_path: Path, seed: int, is_short: bool
) -> None:
    build = Build(tmp_path / "build", mutants.STOCK_OF_TENANT)
    databases = Databases.on_server(postgres_server)
    with running(databases, own_broker, environment=build.environment) as system:
        # Both tenants are in the same batch, so row-level security lets the transaction see the rows of both. Drop this
        # foreign key: it would refuse the allocation from an item of another tenant, and the coalescer would then give
        # each tenant a batch of its own.
        key = "fk_reservation_allocations_tenant_item_id"
        execute(databases, f"ALTER TABLE IF EXISTS reservation_allocations DROP CONSTRAINT IF EXISTS {key}")
        found = violations(system, seed, is_short)
    assert any("has an allocation from None" in violation for violation in found), "\n".join(found) or "no violation"


def test_a_page_without_its_tenant(
    postgres_server: PostgresServer, own_broker: Kafka, tmp_path: Path, seed: int
) -> None:
    build = Build(tmp_path / "build", mutants.PAGE_OF_TENANT)
    databases = Databases.on_server(postgres_server)
    with running(databases, own_broker, environment=build.environment) as system:
        # Row-level security is the second line: it hides the rows of other tenants, so the mutant does no harm.
        with system.history(seed, fault_free=True) as clients, clients.working():
            clients.wait_for(ANSWERS_OF_PAGES)
        execute(databases, "ALTER TABLE IF EXISTS inventory_items DISABLE ROW LEVEL SECURITY")
        recording = Recording(system, seed)
        with recording.clients.working():
            recording.clients.wait_for(ANSWERS_OF_PAGES)
        found = check_tenants(recording.at_rest(fault_free=True))
    assert found
    assert all("a page has the row" in violation for violation in found), "\n".join(found)


def test_delete_after_acknowledge(
    postgres_server: PostgresServer, own_broker: Kafka, tmp_path: Path, seed: int, is_short: bool
) -> None:
    build = StoppableBuild(tmp_path / "build", mutants.DELETE_AFTER_ACKNOWLEDGEMENT)
    with running(Databases.on_server(postgres_server), own_broker, environment=build.environment) as system:

        def kill_relay() -> None:
            relay = system.named(RELAY)
            build.arm(RELAY, BEFORE_PRODUCE, "kill")
            system.eventually(lambda: not relay.alive, RESTART_SECONDS, "the relay has rows to ship")
            relay.start()
            relay.wait_ready(RESTART_SECONDS)

        found = violations(system, seed, is_short, kill_relay)
    # An order or a reservation lost all of its events, its last ones, or some before the last.
    lost = "has no events", "but its events are", "follows"
    assert any(text in violation for text in lost for violation in found), "\n".join(found) or "no violation was found"


@pytest.mark.parametrize(
    ("mutant", "expected"),
    [
        pytest.param(mutants.AUTOINCREMENT, "was assigned to the events", id="AUTOINCREMENT"),
        pytest.param(mutants.BEGIN_IMMEDIATE, "got no response although no fault was injected", id="BEGIN IMMEDIATE"),
    ],
)
def test_on_sqlite(
    mutant: Mutant, expected: str, small_broker: Kafka, tmp_path: Path, seed: int, is_short: bool
) -> None:
    build = Build(tmp_path / "build", mutant)
    databases = Databases.in_folder(tmp_path / "data")
    with running(databases, small_broker, environment=build.environment, per_process=WORKERS) as system:
        found = violations(system, seed, is_short)
    assert any(expected in violation for violation in found), "\n".join(found) or "no violation was found"


@pytest.mark.parametrize(
    ("mutant", "expected"),
    [
        pytest.param(mutants.MOVEMENT_SKIPPED, "but its movements add up to", id="skipped"),
        pytest.param(mutants.MOVEMENT_TWICE, "but its movements add up to", id="twice"),
        pytest.param(mutants.COUNTER_LEFT, "but by its events it is", id="counter left"),
    ],
)
def test_wrong_movements_are_found_by_verify_stock_too(
    mutant: Mutant, expected: str, small_broker: Kafka, tmp_path: Path, seed: int, is_short: bool
) -> None:
    build = Build(tmp_path / "build", mutant)
    databases = Databases.in_folder(tmp_path / "data")
    with running(databases, small_broker, environment=build.environment, is_secured=False) as system:
        found = violations(system, seed, is_short, answers=ANSWERS_OF_MOVEMENTS)
        stack = system.stacks[0]
        with Shop.connect(stack.inventory_address, stack.orders_address) as api:
            verified = api.call(api.inventory_maintenance.VerifyStock, VerifyStockRequest())
    assert any(expected in violation for violation in found), "\n".join(found) or "no violation was found"
    assert verified.mismatches
