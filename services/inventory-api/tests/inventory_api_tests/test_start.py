"""The inventory-api process with a missing or wrong database, or with wrong settings."""

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from devstack.ports import free_ports
from devstack.process import Process
from inventory_api.migrations import SCHEMA
from shop_common.db.address import sqlite_url
from shop_common.db.database import Database
from testkit.eventually import eventually


def inventory_api(settings: Mapping[str, str]) -> Process:
    (port,) = free_ports(1)
    return Process(
        "inventory-api",
        [sys.executable, "-m", "inventory_api"],
        {"GRPC_PORT": str(port), "HEALTH_PORT": "0", "CONSUMER_ENABLED": "false", "DRAIN_SECONDS": "0", **settings},
        health_address=f"localhost:{port}",
    )


def test_without_a_database_it_is_alive_but_not_ready_and_logs_the_cause_once() -> None:
    (unused_port,) = free_ports(1)
    process = inventory_api({"DATABASE_URL": f"postgresql://shop:secret@127.0.0.1:{unused_port}/inventory"})
    try:
        process.start().wait_ready(30, service="liveness")
        process.wait_for_line("the database is unavailable at the start; not ready", 10)

        assert not process.is_ready()
        assert process.log.count("the database is unavailable at the start; not ready") == 1
        assert "secret" not in process.log
        assert process.stop() == 0
    finally:
        process.kill()


def test_it_is_not_ready_while_its_database_file_is_missing_and_logs_the_path(tmp_path: Path) -> None:
    path = tmp_path / "what? a shop" / "inventory.db"
    path.parent.mkdir()
    address = sqlite_url(path)
    with closing(Database(address)) as database:
        SCHEMA.upgrade(database)
    process = inventory_api({"DATABASE_URL": address})
    try:
        process.start().wait_ready(120)
        aside = path.rename(tmp_path / "aside")
        process.wait_for_line(f"{path} was removed while it was in use", 120)
        eventually(lambda: not process.is_ready())
        assert process.is_ready(service="liveness")
        assert not path.exists()

        aside.rename(path)

        process.wait_ready(120)
        assert process.log.count("the database needs a repair") == 1
    finally:
        process.kill()


def test_it_refuses_a_database_without_schema_and_names_the_command_to_run(tmp_path: Path) -> None:
    process = inventory_api({"DATABASE_URL": f"sqlite:///{tmp_path / 'empty.db'}"})
    try:
        assert process.start().wait(30) == 1
        assert "./task db-init" in process.log
        assert "Traceback" not in process.log
    finally:
        process.kill()


def test_wrong_settings_are_all_reported_at_once(tmp_path: Path) -> None:
    process = inventory_api({"DATABASE_URL": "mysql://secret", "GRPC_THREADS": "many", "RESERVATION_TTL": "0"})
    try:
        assert process.start().wait(30) == 2
        for name in ("DATABASE_URL", "GRPC_THREADS", "RESERVATION_TTL"):
            assert name in process.log
        assert "secret" not in process.log
        assert "Traceback" not in process.log
    finally:
        process.kill()
