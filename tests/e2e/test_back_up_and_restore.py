"""Runs the commands of docs/backup.md: both databases are lost and restored, and the system works again."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from devstack import kafka as kafka_brokers
from devstack.kafka import Kafka, Record
from devstack.postgres import PostgresServer
from devstack.servers import postmaster
from devstack.stack import Databases, Options, Stack
from shop_common.errors import NotFound
from shop_protos.inventory.v1.inventory_pb2 import ReleaseStockRequest
from tests.e2e.docs import ROOT, shell_lines
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, ShopDriver

LINE_SECONDS = 120
LINES = [line.command for line in shell_lines() if line.document == "docs/backup.md"]
OF_POSTGRESQL = re.compile(r"pg_dump|pg_restore|psql")


@pytest.fixture
def broker() -> Iterator[Kafka]:
    """This test has its own broker, because the broker will have events of lost orders, and sequence numbers start
    again.
    """
    with kafka_brokers.provide() as broker:
        yield broker


@pytest.fixture
def databases(database_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Databases:
    if database_kind == "sqlite":
        return Databases.in_folder(tmp_path / "run" / "data")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return Databases.on_server(server)


@pytest.mark.timeout(600)
def test_both_databases_are_lost_and_restored(databases: Databases, broker: Kafka, tmp_path: Path) -> None:
    page = Page(databases, tmp_path)
    # No reservation may expire while the databases are restored.
    options = Options(environment={"RESERVATION_TTL": "3600"})
    with Stack(databases, broker, options=options) as stack:
        with ShopDriver.connect(stack) as shop:
            shop.wait_ready()
            product = shop.stocked_product(units=10)
            kept = shop.change_status(shop.create_order((product, 1)).id, CONFIRMED)
            page.back_up("orders")
            between = shop.change_status(shop.create_order((product, 2)).id, CONFIRMED)
            page.back_up("inventory")
            lost = shop.create_order((product, 3))
            shop.order_events(lost.id, "ORDER_CREATED")
            before = sequences(broker)
        stack.stop()
        page.lose()
        page.restore()
        stack.start()

        with ShopDriver.connect(stack) as shop:
            shop.wait_ready()
            assert shop.order(kept.id).status == CONFIRMED
            for order in (between, lost):
                with pytest.raises(NotFound):
                    shop.order(order.id)
            assert shop.available(product) == 10 - 1 - 2
            # As on the page: an operator releases the stock of an order that the restored database does not have.
            (orphan,) = (each for each in shop.reservations(product) if each.order_id == between.id)
            shop.api.call(shop.api.inventory.ReleaseStock, ReleaseStockRequest(reservation_id=orphan.id))
            shop.assert_consistent(product, stocked=10)
            # The system works again, and no sequence number is used twice.
            new = shop.create_order((product, 4))
            shop.order_events(new.id, "ORDER_CREATED")
            shop.change_status(kept.id, CANCELLED)
            shop.eventually(lambda: shop.available(product) == 10 - 4)
            # The relay sends the events of each database for itself.
            shop.eventually(
                lambda: all(
                    sequence > before.get(source, 0) + 1_000_000 for source, sequence in sequences(broker).items()
                )
            )
            shop.assert_consistent(product, stocked=10)


def test_the_page_has_commands_for_both_kinds_of_database() -> None:
    assert len([line for line in LINES if OF_POSTGRESQL.match(line)]) == 7
    assert len([line for line in LINES if not OF_POSTGRESQL.match(line)]) == 7


class Page:
    """Runs the page's commands for one kind of database, unchanged, in a folder."""

    def __init__(self, databases: Databases, folder: Path) -> None:
        self._databases = databases
        self._folder = folder
        self._is_sqlite = databases.orders.startswith("sqlite")
        self._lines = [line for line in LINES if bool(OF_POSTGRESQL.match(line)) != self._is_sqlite]
        (folder / ".venv").symlink_to(ROOT / ".venv")

    def back_up(self, name: str) -> None:
        (line,) = (each for each in self._lines if is_backup(each) and f"{name}.backup" in each)
        self._run(line)

    def restore(self) -> None:
        for line in self._lines:
            if not is_backup(line):
                self._run(line)

    def lose(self) -> None:
        for url in (self._databases.orders, self._databases.inventory):
            if self._is_sqlite:
                Path(str(make_url(url).database)).write_bytes(b"lost")
            else:
                engine = create_engine(url, isolation_level="AUTOCOMMIT")
                with engine.connect() as connection:
                    connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
                engine.dispose()

    def _run(self, line: str) -> None:
        environment = os.environ | {
            "ORDERS_URL": plain(self._databases.orders),
            "INVENTORY_URL": plain(self._databases.inventory),
            "PATH": f"{tools()}{os.pathsep}{os.environ['PATH']}",
        }
        done = subprocess.run(
            line,
            shell=True,
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LINE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def is_backup(line: str) -> bool:
    return line.startswith("pg_dump") or ".backup(" in line


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def tools() -> Path:
    """The folder of the newest pg_dump and psql on this machine. Older ones refuse a newer server."""
    installations = [each for each in (postmaster.on_this_machine(), postmaster.from_the_wheel()) if each is not None]
    assert installations, "no PostgreSQL on this machine, and no wheel of it"
    return max(installations, key=lambda installation: installation.version).bin_folder


def sequences(broker: Kafka) -> dict[str, int]:
    """The highest ce_sequence on Kafka by ce_source."""
    highest: dict[str, int] = {}
    for topic in ("order-events", "inventory-events"):
        for record in all_records(broker, topic):
            source, sequence = record.headers["ce_source"], int(record.headers["ce_sequence"])
            highest[source] = max(sequence, highest.get(source, 0))
    return highest


def all_records(broker: Kafka, topic: str) -> list[Record]:
    size = broker.size(topic)
    return broker.consume(topic, lambda records: len(records) >= size)
