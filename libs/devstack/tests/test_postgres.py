from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from devstack import postgres
from devstack.postgres import PostgresServer, PostgresUnavailable

EVERYWHERE = postgres.sources(containers=True)
LOCAL = postgres.sources()


@pytest.fixture(scope="module", params=[source.description for source in EVERYWHERE])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    (source,) = [source for source in EVERYWHERE if source.description == request.param]
    started = source.start(False)
    yield started
    started.stop()


def test_there_is_a_server_on_every_machine_that_has_the_dev_dependencies() -> None:
    assert any("from a Python package" in source.description for source in postgres.sources())


def test_a_new_database_is_empty_and_does_not_see_its_neighbour(server: PostgresServer) -> None:
    one, other = server.new_database("one"), server.new_database("other")
    _execute(one, "CREATE TABLE found (id bigint)")

    assert _scalar(other, "SELECT to_regclass('found')") is None
    assert make_url(one).database != make_url(other).database


def test_a_dropped_database_is_gone_although_someone_is_connected(server: PostgresServer) -> None:
    url = server.new_database()
    with psycopg.connect(_plain(url)):
        server.drop_database(url)

    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(_plain(url))


def test_a_frozen_server_does_not_respond_and_a_thawed_one_continues(server: PostgresServer) -> None:
    url = server.new_database()
    with psycopg.connect(_plain(url)) as connection:
        with server.frozen(), pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(_plain(url), connect_timeout=2)

        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_all_processes_of_a_frozen_server_are_stopped() -> None:
    with postgres.provide() as local, local.frozen():
        assert {process.status() for process in _processes(local)} <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}


def test_a_killed_server_restarts_on_its_port_with_the_committed_data(server: PostgresServer) -> None:
    url = server.new_database()
    _execute(url, "CREATE TABLE kept AS SELECT 7 AS number")
    with psycopg.connect(_plain(url)) as connection:
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(_plain(url), connect_timeout=2)

    server.start_again()

    assert _scalar(url, "SELECT number FROM kept") == 7


def test_without_its_image_the_next_source_is_used_and_the_reason_reported(
    docker_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "IMAGE", "localhost:1/no-such-image:1")
    reports: list[str] = []
    with postgres.provide(containers=True, tell=reports.append) as started:
        assert started.description == LOCAL[0].description

    assert len(reports) == 1
    assert "no-such-image" in reports[0]


def test_a_stranger_on_the_same_machine_is_refused(server: PostgresServer) -> None:
    without_password = make_url(server.url).set(drivername="postgresql", password="guessed")

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(without_password.render_as_string(hide_password=False))


def test_only_a_durable_server_syncs_its_commits(server: PostgresServer) -> None:
    with postgres.provide(durable=True, containers=True) as durable:
        assert _scalar(durable.url, "SHOW fsync") == "on"
    assert _scalar(server.url, "SHOW fsync") == "off"


def test_nothing_is_left_of_a_server_when_the_block_fails() -> None:
    with suppress(ZeroDivisionError), postgres.provide() as server:
        processes = _processes(server)
        data = Path(str(_scalar(server.url, "SHOW data_directory")))
        raise ZeroDivisionError

    assert not any(process.is_running() for process in processes)
    assert not data.parent.exists()


def test_a_server_stops_although_it_is_frozen_and_in_use() -> None:
    with (
        postgres.provide() as server,
        suppress(psycopg.OperationalError),
        psycopg.connect(_plain(server.url)),
    ):
        processes = _processes(server)
        server.freeze()
        server.stop()

        assert not any(process.is_running() for process in processes)


def test_a_given_server_is_used_and_left_as_it_was_found(server: PostgresServer) -> None:
    with postgres.provide(server.url) as given:
        url = given.new_database("guest")
        _execute(url, "SELECT 1")
        with pytest.raises(PostgresUnavailable, match="not started by us"):
            given.freeze()

    assert _scalar(server.url, "SELECT count(*) FROM pg_database WHERE datname LIKE 'guest%'") == 0


def test_a_given_server_that_does_not_answer_is_not_replaced_by_another() -> None:
    with (
        pytest.raises(PostgresUnavailable, match="given"),
        postgres.provide("postgresql://nobody@127.0.0.1:1/none"),
    ):
        pass


def _processes(server: PostgresServer) -> list[psutil.Process]:
    postmaster = psutil.Process(server.pid)
    return [postmaster, *postmaster.children(recursive=True)]


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url)
    with engine.begin() as tx:
        tx.execute(text(statement))
    engine.dispose()


def _scalar(url: str, statement: str) -> object:
    engine = create_engine(url)
    with engine.connect() as tx:
        found = tx.execute(text(statement)).scalar_one()
    engine.dispose()
    return found
