"""Brokers and systems for the faults: each file has its own, since what it breaks would disturb others."""

import os
import random
from collections.abc import Iterator

import pytest

from devstack import kafka as kafka_brokers
from devstack.kafka import Kafka

SEED_VARIABLE = "FAULTS_SEED"
SHORT_VARIABLE = "FAULTS_SHORT"
SHORT_MARK = "short"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{SHORT_MARK}: in the short form, as CI runs it (./task faults --short)")


@pytest.fixture(scope="session")
def is_short() -> bool:
    """Whether each test is to be as short as it can be and still show something."""
    return os.environ.get(SHORT_VARIABLE) == "1"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of this test: FAULTS_SEED, or drawn; printed, so that a failure can be repeated."""
    given = os.environ.get(SEED_VARIABLE)
    number = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"{SEED_VARIABLE}={number} ({request.node.name})")
    return number


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Kafka]:
    """The best there is, Apache Kafka where Docker is, for one file alone: the groups of a stack have fixed names."""
    with kafka_brokers.provide(containers=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def small_broker() -> Iterator[Kafka]:
    """librdkafka's, as it goes with SQLite, for one file alone."""
    with kafka_brokers.provide() as broker:
        yield broker
