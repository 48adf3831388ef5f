"""`./task postgres-create-roles`: each process works with its own role, and each role is refused everything else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL, make_url

from devstack import kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Stack
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY
from tests.e2e.shop_driver import CONFIRMED, PROCESSING, SHIPPED, ShopDriver

KINDS = ("owner", "api", "relay", "console")
MODULES = {"inventory": "inventory_api", "orders": "order_api"}


@dataclass(frozen=True)
class Site:
    """A database with its four roles, and the files with their passwords."""

    admin: URL
    name: str
    folder: Path

    def role(self, kind: str) -> str:
        return f"{self.name}_{kind}"

    def password_file(self, kind: str) -> Path:
        return self.folder / f"{self.name}-{kind}"

    def settings(self, kind: str, prefix: str = "DATABASE") -> dict[str, str]:
        """The settings of a process that connects as this role."""
        at = f"{self.admin.host}:{self.admin.port}"
        return {
            f"{prefix}_URL": f"postgresql://{self.role(kind)}@{at}/{self.name}",
            f"{prefix}_PASSWORD_FILE": str(self.password_file(kind)),
        }

    def connect(self, kind: str, database: str | None = None) -> psycopg.Connection:
        return psycopg.connect(
            host=self.admin.host,
            port=self.admin.port,
            dbname=database or self.name,
            user=self.role(kind),
            password=self.password_file(kind).read_text(),
            autocommit=True,
        )

    def create_roles(self, *options: str, admin: URL | None = None, code: int = 0) -> str:
        """Run the command, with the password of every role in a file. Returns its output."""
        url = (admin or self.admin).set(drivername="postgresql")
        password = self.folder / "admin"
        password.write_text(f"{url.password}\n")
        environment = os.environ | {
            "DATABASE_URL": url._replace(password=None).render_as_string(),
            "DATABASE_PASSWORD_FILE": str(password),
        }
        environment |= {f"{kind.upper()}_PASSWORD_FILE": str(self.password_file(kind)) for kind in KINDS}
        return run(["shopctl", "postgres-create-roles", self.name, *options], environment, code)

    def migrate(self) -> None:
        run([MODULES[self.name.split("_")[0]], "migrate"], os.environ | self.settings("owner"))

    def execute(self, statement: str) -> None:
        """Run a statement as the administrator."""
        execute(self.admin.set(database=self.name), statement)

    def drop(self) -> None:
        execute(self.admin, f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
        for kind in KINDS:
            execute(self.admin, f"DROP ROLE IF EXISTS {self.role(kind)}")


def execute(url: URL, statement: str) -> None:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement.encode())


def run(arguments: list[str], environment: dict[str, str], code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def new_site(server: PostgresServer, folder: Path, service: str) -> Site:
    site = Site(make_url(server.url), f"{service}_{uuid4().hex[:8]}", folder)
    for kind in KINDS:
        site.password_file(kind).write_text(f"the {kind}'s password")
    return site


@pytest.fixture(scope="module")
def sites(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    """Both databases, with roles that were created before the migration and completed after it."""
    sites = {name: new_site(postgres_server, tmp_path_factory.mktemp(name), name) for name in MODULES}
    for site in sites.values():
        site.create_roles()
        site.migrate()
        site.create_roles()
    yield sites
    for site in sites.values():
        site.drop()


@pytest.fixture
def empty(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Site]:
    """A database that does not exist yet."""
    site = new_site(postgres_server, tmp_path, "inventory")
    yield site
    site.drop()


def test_each_process_works_with_its_role(sites: dict[str, Site]) -> None:
    inventory, orders = sites["inventory"], sites["orders"]
    options = Options(
        per_process={
            INVENTORY_API: inventory.settings("api"),
            ORDER_API: orders.settings("api"),
            RELAY: inventory.settings("relay", "INVENTORY_DATABASE") | orders.settings("relay", "ORDERS_DATABASE"),
        }
    )
    nothing = Databases(inventory="", orders="")
    with kafka.provide() as broker:
        stack = Stack(nothing, broker, options=options).start()
        try:
            with ShopDriver.connect(stack) as shop:
                product = shop.stocked_product(units=2)
                order = shop.create_order((product, 1))
                shop.change_status(order.id, CONFIRMED, PROCESSING, SHIPPED)
                shop.stock_events(product, "STOCK_FULFILLED")
                shop.assert_consistent(product, stocked=2)
        finally:
            codes = stack.stop()
    assert set(codes.values()) == {0}


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("api", "DROP TABLE inventory_items"),
        ("api", "ALTER TABLE inventory_items ADD note text"),
        ("api", "TRUNCATE inventory_items"),
        ("api", "CREATE TABLE mine ()"),
        ("api", "CREATE TEMPORARY TABLE mine ()"),
        ("api", "SELECT FROM outbox"),
        ("api", "DELETE FROM outbox"),
        ("api", "SELECT FROM audit_log"),
        ("api", "UPDATE audit_log SET caller = ''"),
        ("api", "DELETE FROM audit_log"),
        ("console", "INSERT INTO audit_log (caller) VALUES ('')"),
        ("api", "UPDATE relay_lease SET owner = 'me'"),
        ("api", "UPDATE inventory_api_schema_version SET version_num = ''"),
        ("relay", "SELECT FROM inventory_items"),
        ("relay", "SELECT FROM inventory_api_schema_version"),
        ("relay", "INSERT INTO outbox (shard) VALUES (1)"),
        ("relay", "UPDATE outbox SET payload = ''"),
        ("relay", "CREATE TABLE mine ()"),
        ("console", "UPDATE inventory_items SET quantity = 1"),
        ("console", "INSERT INTO outbox (shard) VALUES (1)"),
        ("console", "DELETE FROM stock_reservations"),
        ("console", "CREATE TABLE mine ()"),
    ],
)
def test_a_role_may_do_nothing_else(sites: dict[str, Site], kind: str, statement: str) -> None:
    with sites["inventory"].connect(kind) as connection:
        # This is only the default of the console's role: its user can change it.
        connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_a_role_cannot_connect_to_the_database_of_the_other_service(sites: dict[str, Site], kind: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        sites["inventory"].connect(kind, sites["orders"].name)


def test_the_console_reads_every_table(sites: dict[str, Site]) -> None:
    with sites["inventory"].connect("console") as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in names:
            connection.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier(name)))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("UPDATE inventory_items SET quantity = 1")
    assert len(names) > 5


def test_row_security_protects_every_table_with_tenants(sites: dict[str, Site]) -> None:
    for site in sites.values():
        with site.connect("console") as console:
            unprotected = console.execute(
                "SELECT relname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
                " WHERE relkind = 'r' AND attname = 'tenant' AND NOT relrowsecurity"
            ).fetchall()
            protected = console.execute("SELECT count(*) FROM pg_class WHERE relrowsecurity").fetchone()
        assert unprotected == []
        assert protected is not None
        assert protected[0] >= 3


def test_the_api_sees_rows_of_its_tenants_only_and_the_console_all_rows(sites: dict[str, Site]) -> None:
    site = sites["inventory"]
    rows = (
        "INSERT INTO inventory_items (tenant, product_id, location, quantity, reserved_quantity, version, created_at,"
        " updated_at) VALUES (%s, 900, 'A', 1, 0, 1, now(), now())"
    )
    with site.connect("owner") as owner:
        for tenant in ("acme", "other"):
            owner.execute(rows, [tenant])
    read = "SELECT tenant FROM inventory_items WHERE product_id = 900 ORDER BY tenant"
    with site.connect("console") as console:
        assert console.execute(read).fetchall() == [("acme",), ("other",)]
    with site.connect("api") as api:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="states no tenants"):
            api.execute(read)
        api.execute("SET shop.tenants = 'acme'")
        assert api.execute(read).fetchall() == [("acme",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            api.execute(rows, ["third"])


def test_the_api_can_use_a_table_of_a_later_migration_at_once(sites: dict[str, Site]) -> None:
    site = sites["inventory"]
    with site.connect("owner") as owner:
        owner.execute("CREATE TABLE later (id bigint GENERATED ALWAYS AS IDENTITY, note text)")
        try:
            with site.connect("api") as api:
                api.execute("INSERT INTO later (note) VALUES ('a')")
                api.execute("UPDATE later SET note = 'b'")
            with site.connect("console") as console:
                assert console.execute("SELECT note FROM later").fetchone() == ("b",)
            with site.connect("relay") as relay, pytest.raises(psycopg.errors.InsufficientPrivilege):
                relay.execute("SELECT FROM later")
        finally:
            owner.execute("DROP TABLE later")


def test_a_repeat_sets_new_passwords_and_removes_other_rights(sites: dict[str, Site]) -> None:
    site = sites["orders"]
    site.execute(f"GRANT SELECT ON orders TO {site.role('relay')}")
    site.password_file("relay").write_text("another")

    report = json.loads(site.create_roles("--json"))

    assert {role["outcome"] for role in report["roles"]} == {"there already"}
    assert {role["password"] for role in report["roles"]} == {"set"}
    with site.connect("relay") as relay, pytest.raises(psycopg.errors.InsufficientPrivilege):
        relay.execute("SELECT FROM orders")


def test_before_the_first_migration_the_command_says_that_it_must_run_again(empty: Site) -> None:
    assert "then run this command again" in empty.create_roles()
    assert json.loads(empty.create_roles("--json"))["migrated"] is False


def test_an_administrator_need_not_be_a_superuser(empty: Site) -> None:
    name = f"{empty.name}_admin"
    empty_admin = empty.admin.set(username=name, password="secret")
    execute(empty.admin, f"CREATE ROLE {name} LOGIN CREATEROLE CREATEDB PASSWORD 'secret'")
    try:
        empty.create_roles(admin=empty_admin)
        empty.migrate()
        empty.create_roles(admin=empty_admin)
        with empty.connect("api") as api, pytest.raises(psycopg.errors.InsufficientPrivilege):
            api.execute("DELETE FROM outbox")
    finally:
        empty.drop()
        execute(empty.admin, f"DROP ROLE {name}")


def test_passwords_are_stored_encrypted(sites: dict[str, Site], postgres_server: PostgresServer) -> None:
    plain = make_url(postgres_server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        stored = connection.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname LIKE %s", [f"{sites['inventory'].name}%"]
        ).fetchall()
    assert len(stored) == len(KINDS)
    assert all(password.startswith("SCRAM-SHA-256$") for (password,) in stored)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--owner", "postgres"], "belongs to the role {name}_owner, not to postgres; see --owner"),
        (["--api", "me", "--relay", "me"], "the four roles must have different names"),
    ],
)
def test_contradicting_roles_are_refused(sites: dict[str, Site], options: list[str], error: Any) -> None:
    assert error.format(name=sites["inventory"].name) in sites["inventory"].create_roles(*options, code=1)
