"""Fixtures for all tests: real databases and brokers, each started at its first use.

SQLite is combined with the embedded broker, and PostgreSQL with Apache Kafka if it is available. Under pytest-xdist
each worker starts its own servers, so that a test may freeze a server without affecting other tests.
"""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from devstack import kafka as kafka_brokers
from devstack import postgres
from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from shopctl.system import docker

POSTGRES_VARIABLE = "TEST_POSTGRES_URL"
KAFKA_VARIABLE = "TEST_KAFKA_BOOTSTRAP_SERVERS"
REQUIRE_DOCKER_VARIABLE = "TEST_REQUIRE_DOCKER"


def pytest_configure() -> None:
    """Restore the handler of SIGINT, because tests send it. A shell starts background jobs with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    """Return the lines of the report header that name the database and the broker."""
    found = postgres.sources(os.environ.get(POSTGRES_VARIABLE), containers=True)
    brokers = kafka_brokers.sources(os.environ.get(KAFKA_VARIABLE), containers=True)
    return [
        f"postgresql: {found[0].description if found else 'none; tests that need it will fail'}",
        f"kafka: {brokers[0].description}; with SQLite {kafka_brokers.EMBEDDED}",
    ]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Run tests that share an expensive fixture (a module, a running stack) on one worker of pytest-xdist.

    The long groups come first: a long group at the end would keep one worker busy while the others have nothing to do.
    """
    for item in items:
        kind = (
            item.callspec.params.get("database_kind")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        needs_stack = isinstance(item, pytest.Function) and "stack" in item.fixturenames and kind is not None
        if item.get_closest_marker("xdist_group") is not None:
            continue  # several modules share a fixture
        item.add_marker(pytest.mark.xdist_group(f"stack on {kind}" if needs_stack else str(item.path)))
    yield
    # This runs after pytest's own sorting by fixtures. Within each turn, that sequence stays.
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Return 0 for tests of a shared stack. Others follow by folder, those of libs/common last: they are short."""
    if any(str(mark.args[0]).startswith("stack on") for mark in item.iter_markers("xdist_group")):
        return 0
    folder = item.path.relative_to(item.config.rootpath).parts
    return 1 if folder[0] == "tests" else 3 if folder[:2] == ("libs", "common") else 2


@pytest.fixture(scope="session")
def docker_engine() -> str:
    """Return the Docker engine. Without one, the test is skipped, or fails if TEST_REQUIRE_DOCKER=1."""
    if found := docker.engine():
        return found
    if os.environ.get(REQUIRE_DOCKER_VARIABLE) == "1":
        pytest.fail(f"no Docker engine responds, and {REQUIRE_DOCKER_VARIABLE} is set")
    pytest.skip("no Docker engine responds")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Provide the PostgreSQL server of TEST_POSTGRES_URL, or a temporary one."""
    with postgres.provide(os.environ.get(POSTGRES_VARIABLE), containers=True, tell=_report) as server:
        yield server


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[Kafka]:
    """Provide the embedded broker of librdkafka."""
    with kafka_brokers.provide() as broker:
        yield broker


@pytest.fixture(scope="session")
def best_broker() -> Iterator[Kafka]:
    """Provide the broker of TEST_KAFKA_BOOTSTRAP_SERVERS, else Apache Kafka in Docker, else the embedded broker."""
    with kafka_brokers.provide(os.environ.get(KAFKA_VARIABLE), containers=True, tell=_report) as broker:
        yield broker


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Run the test once on each of the two databases."""
    return str(request.param)


@pytest.fixture(scope="session")
def kafka(database_kind: str, request: pytest.FixtureRequest) -> Kafka:
    """Return the broker for the database kind. Tests share the broker, so each test must use its own keys."""
    # Get the fixture by name, so that the broker does not stop when the next test has the other database kind.
    broker: Kafka = request.getfixturevalue("embedded_broker" if database_kind == "sqlite" else "best_broker")
    return broker


@pytest.fixture
def new_database(database_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Provide a function that creates an empty database of the kind under test. It takes a name and returns the URL."""
    with ExitStack() as after_the_test:

        def make(name: str) -> str:
            if database_kind == "sqlite":
                return f"sqlite:///{tmp_path / name}.db"
            server: PostgresServer = request.getfixturevalue("postgres_server")
            url = server.new_database(name)
            after_the_test.callback(server.drop_database, url)
            return url

        yield make


@pytest.fixture
def database_url(new_database: Callable[[str], str]) -> str:
    """Return the URL of an empty database that only this test uses."""
    return new_database("shop")


def _report(reason: str) -> None:
    """Show the message in pytest's summary, also from a worker of pytest-xdist. The test does not fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(pytest.PytestWarning(reason), stacklevel=2)
