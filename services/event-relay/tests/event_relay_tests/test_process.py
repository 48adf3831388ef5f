"""The real process: killed, frozen, stopped by SIGTERM, and without its databases or tables."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from devstack.ports import free_ports
from devstack.process import Process
from shopctl.system.grpc_health import health
from testkit.drivers.relay import OutboxDriver, values_by_key
from testkit.eventually import eventually

Start = Callable[..., Process]


@pytest.fixture
def start(driver: OutboxDriver) -> Iterator[Start]:
    """Starts a relay process on the driver's database. Keyword arguments are further settings."""
    with ExitStack() as after_the_test:

        def start(**settings: str) -> Process:
            (port,) = free_ports(1)
            defaults = {
                "ORDERS_DATABASE_URL": driver.url,
                "KAFKA_BOOTSTRAP_SERVERS": driver.kafka.bootstrap,
                "HEALTH_PORT": str(port),
                "METRICS_PORT": "0",
                "LEASE_SECONDS": "1",
                "DRAIN_SECONDS": "0",
            }
            process = Process(
                "event-relay",
                [sys.executable, "-m", "event_relay"],
                defaults | settings,
                health_address=f"127.0.0.1:{port}",
            )
            after_the_test.callback(process.stop)
            return process.start()

        yield start


def test_after_a_kill_a_new_relay_ships_everything_in_order(driver: OutboxDriver, start: Start) -> None:
    driver.write_numbered(keys=2, each=6000)
    victim = start()
    eventually(lambda: driver.backlog() < 12_000)
    victim.kill()
    assert driver.backlog() > 0

    start()
    eventually(lambda: driver.backlog() == 0)

    records = driver.shipped(events=12_000)
    assert values_by_key(records, first_occurrences=True) == {f"key-{key}": list(range(6000)) for key in range(2)}


def test_a_frozen_owner_neither_ships_nor_deletes_events_of_lost_shards(driver: OutboxDriver, start: Start) -> None:
    # Long enough that a stall of a busy machine costs no lease. Otherwise events would be repeated, as they should be.
    frozen, successor = start(LEASE_SECONDS="3"), start(LEASE_SECONDS="3")
    eventually(lambda: sorted(driver.owners().values()) == [8, 8])
    with frozen.frozen():
        eventually(lambda: list(driver.owners().values()) == [16])
        driver.write_numbered(keys=50, each=10)
        eventually(lambda: driver.backlog() == 0)
        # These wait when the frozen relay continues and still believes that it has half of the shards.
        driver.write_numbered(keys=50, each=100, first=10)
    eventually(lambda: sorted(driver.owners().values()) == [8, 8])
    driver.write_numbered(keys=50, each=10, first=110)
    eventually(lambda: driver.backlog() == 0)

    records = driver.shipped(6000)
    assert len(records) == 6000
    assert values_by_key(records) == {f"key-{key}": list(range(120)) for key in range(50)}
    assert successor.alive


def test_on_sigterm_a_relay_releases_its_leases_and_exits_with_zero(driver: OutboxDriver, start: Start) -> None:
    relay = start(LEASE_SECONDS="60")
    relay.wait_ready(20)
    eventually(lambda: list(driver.owners().values()) == [16])
    driver.write_numbered(keys=5, each=1)

    relay.terminate()

    assert relay.wait(15) == 0
    assert driver.owners() == {}


def test_a_relay_is_alive_but_not_ready_until_its_tables_exist(driver: OutboxDriver, start: Start) -> None:
    driver.metadata.drop_all(driver.database.engine)
    relay = start()
    relay.wait_ready(20, "liveness")
    relay.wait_for_line("no table outbox", 10)
    assert health(str(relay.health_address)) == "NOT_SERVING"

    driver.metadata.create_all(driver.database.engine)

    relay.wait_ready(10)


def test_an_unavailable_database_does_not_delay_the_other(driver: OutboxDriver, start: Start) -> None:
    relay = start(INVENTORY_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    driver.write_numbered(keys=5, each=1)
    eventually(lambda: driver.backlog() == 0)
    relay.wait_ready(10)
    relay.wait_for_line("database is not available", 10)


def test_a_relay_without_a_database_exits_with_an_error(start: Start) -> None:
    relay = start(ORDERS_DATABASE_URL="")
    assert relay.wait(20) == 2
    assert "INVENTORY_DATABASE_URL" in relay.log
