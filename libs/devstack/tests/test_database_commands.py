import io
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, MetaData, insert

from devstack.stack import Databases
from shop_common.db.address import parse
from shop_common.db.database import Database
from shop_common.db.sql import now
from shop_common.events.outbox import Message, Outbox
from shopctl.data import db_shell
from shopctl.watch import database_state
from testkit.tasks import main

OUTBOX = Outbox(MetaData())


@pytest.fixture
def databases(new_database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Databases:
    monkeypatch.chdir(tmp_path)
    return Databases(new_database("inventory"), new_database("orders"))


def run(command: str, databases: Databases) -> int:
    return main([*command.split(), "--inventory-url", databases.inventory, "--orders-url", databases.orders])


def test_init_makes_both_schemas_and_may_be_repeated(databases: Databases, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("db-init", databases) == 0
    assert run("db-init", databases) == 0

    assert "inventory-api: the database is up to date" in capsys.readouterr().out
    assert "inventory_items" in database_state.read(databases.inventory).rows
    assert "orders" in database_state.read(databases.orders).rows


def test_reset_drops_everything_after_confirmation(
    databases: Databases, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("db-init", databases)
    _add_event(databases.inventory)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    assert run("db-reset", databases) == 1
    assert "--yes" in capsys.readouterr().err
    assert database_state.read(databases.inventory).rows["outbox"] == 1

    assert run("db-reset --yes", databases) == 0
    assert database_state.read(databases.inventory).rows["outbox"] == 0


def test_init_refuses_the_other_service_s_database(databases: Databases, capsys: pytest.CaptureFixture[str]) -> None:
    run("db-init", databases)

    assert run("db-init", Databases(databases.orders, databases.inventory)) == 1

    assert "belongs to order-api" in capsys.readouterr().err


def test_the_state_shows_the_unshipped_events_and_the_relays(databases: Databases) -> None:
    run("db-init", databases)
    before = database_state.read(databases.orders)
    assert (before.outbox_backlog, before.oldest_unshipped_seconds, before.leases) == (0, None, {})

    _add_event(databases.orders)
    _add_leases(databases.orders)
    state = database_state.read(databases.orders)

    assert state.outbox_backlog == state.rows["outbox"] == 1
    assert state.oldest_unshipped_seconds is not None
    assert 0 <= state.oldest_unshipped_seconds < 60
    assert state.leases == {"the owner": 2}


def test_a_database_file_that_is_missing_is_not_made_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["db-shell", "orders"]) == 1

    assert "./task db-init creates it" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.db"))


def test_without_any_shell_program_there_is_a_prompt(
    databases: Databases, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("db-init", databases)
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("select 41 +\n 1 as answer;\nselect 1 from nope;\nselect 7;"))

    assert db_shell.prompt(databases.orders, "orders") == 1

    output = capsys.readouterr()
    assert "answer" in output.out
    assert "42" in output.out
    assert "nope" in output.err
    assert "7" in output.out


def _add_event(url: str) -> None:
    with _transaction(url) as tx:
        OUTBOX.append(tx, [Message(topic="t", key="k", type="T", data={}, occurred_at=now(tx))])


def _add_leases(url: str) -> None:
    with _transaction(url) as tx:
        for shard, seconds in ((-3, 60), (0, 60), (1, 60), (2, -1)):
            lease = {"shard": shard, "owner": "the owner", "expires_at": now(tx) + timedelta(seconds=seconds)}
            tx.execute(insert(OUTBOX.leases), lease)


@contextmanager
def _transaction(url: str) -> Iterator[Connection]:
    database = Database(url, connections_max=1)
    with database.write() as tx:
        yield tx
    database.close()


def test_psql_is_given_names_as_they_are_and_the_password_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", "/usr/bin/{}".format)
    url = parse("postgresql+psycopg://me:hunter2@%2Fvar%2Frun/50%25%20of%3F?application_name=a%20b")

    (program, where), environment = db_shell._psql(url)

    assert program == "/usr/bin/psql"
    assert conninfo_to_dict(where) == {
        "user": "me",
        "host": "/var/run",
        "dbname": "50% of?",
        "application_name": "a b",
    }
    assert environment == {"PGPASSWORD": "hunter2", "PGTZ": "UTC"}
