"""Databases and brokers for everyone's tests: real ones, each started at its first use.

They come in pairs: SQLite with the embedded broker, PostgreSQL with Apache Kafka, where there is one. Under
pytest-xdist each worker starts its own: a test that freezes its server then stands in nobody's way.
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
    """Tests send Ctrl-C to what they start. What a shell runs in the background is deaf to it, and all below."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    """Which database and which broker the tests run on."""
    found = postgres.sources(os.environ.get(POSTGRES_VARIABLE), containers=True)
    brokers = kafka_brokers.sources(os.environ.get(KAFKA_VARIABLE), containers=True)
    return [
        f"postgresql: {found[0].description if found else 'none; what needs it will fail'}",
        f"kafka: {brokers[0].description}; with SQLite {kafka_brokers.EMBEDDED}",
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, on one worker of pytest-xdist, what shares something dear: a file, or one running stack."""
    for item in items:
        kind = (
            item.callspec.params.get("database_kind")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        needs_stack = isinstance(item, pytest.Function) and "stack" in item.fixturenames and kind is not None
        item.add_marker(pytest.mark.xdist_group(f"stack on {kind}" if needs_stack else str(item.path)))


@pytest.fixture(scope="session")
def docker_engine() -> str:
    """What needs Docker asks for this: skipped where no engine answers, a failure if TEST_REQUIRE_DOCKER=1."""
    if found := docker.engine():
        return found
    if os.environ.get(REQUIRE_DOCKER_VARIABLE) == "1":
        pytest.fail(f"no Docker engine answers, and {REQUIRE_DOCKER_VARIABLE} is set")
    pytest.skip("no Docker engine answers")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL whose data need not survive."""
    with postgres.provide(os.environ.get(POSTGRES_VARIABLE), containers=True, tell=_tell) as server:
        yield server


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[Kafka]:
    """librdkafka's broker."""
    with kafka_brokers.provide() as broker:
        yield broker


@pytest.fixture(scope="session")
def best_broker() -> Iterator[Kafka]:
    """The one that was named, or Apache Kafka; librdkafka's where there is neither."""
    with kafka_brokers.provide(os.environ.get(KAFKA_VARIABLE), containers=True, tell=_tell) as broker:
        yield broker


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Runs the test once on each of the two databases."""
    return str(request.param)


@pytest.fixture(scope="session")
def kafka(database_kind: str, request: pytest.FixtureRequest) -> Kafka:
    """The broker of the pair under test. Tests share it: each looks for its own keys."""
    # By name, so that no broker ends when the kind changes from one test to the next.
    broker: Kafka = request.getfixturevalue("embedded_broker" if database_kind == "sqlite" else "best_broker")
    return broker


@pytest.fixture
def new_database(database_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Makes an empty database of the kind under test, for tests that need more than one: name → URL."""
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
    """An empty database of its own for the test."""
    return new_database("shop")


def _tell(reason: str) -> None:
    """In the summary at the end, also from a worker of pytest-xdist; not as a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(pytest.PytestWarning(reason), stacklevel=2)
