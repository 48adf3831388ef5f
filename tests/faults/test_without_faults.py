"""Without faults, every call gets a response, and the history is correct, on both kinds of database."""

from pathlib import Path

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from shopctl.system.layout import INVENTORY_API, ORDER_API
from tests.faults.build import Build
from tests.faults.system import running

pytestmark = pytest.mark.timeout(400)
WORKERS = {name: {"WORKERS": "2"} for name in (INVENTORY_API, ORDER_API)}


@pytest.mark.short
def test_a_history_without_faults_on_sqlite(small_broker: Kafka, tmp_path: Path, seed: int) -> None:
    with (
        running(Databases.in_folder(tmp_path), small_broker, per_process=WORKERS) as system,
        system.history(seed, fault_free=True) as clients,
        clients.working(),
    ):
        clients.wait_for(400)


def test_a_history_without_faults_on_postgresql(
    postgres_server: PostgresServer, own_broker: Kafka, tmp_path: Path, seed: int
) -> None:
    build = Build(tmp_path / "build")
    databases = Databases.on_server(postgres_server)
    with (
        running(databases, own_broker, replicas=2, environment=build.environment) as system,
        system.history(seed, fault_free=True) as clients,
        clients.working(),
    ):
        clients.wait_for(600)
