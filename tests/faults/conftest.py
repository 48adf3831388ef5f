"""Brokers and options of the fault suite. Each file has its own broker, since its faults would disturb other files."""

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
    config.addinivalue_line("markers", f"{SHORT_MARK}: part of the short form, which CI runs (./task faults --short)")


@pytest.fixture(scope="session")
def is_short() -> bool:
    """True in the short form: a test should be as short as it can be and still be useful."""
    return os.environ.get(SHORT_VARIABLE) == "1"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test: FAULTS_SEED, or a random number. Printed, so that a failure can be repeated."""
    variable = os.environ.get(SEED_VARIABLE)
    number = int(variable) if variable else random.SystemRandom().randrange(2**32)
    print(f"{SEED_VARIABLE}={number} ({request.node.name})")
    return number


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Kafka]:
    """A broker for one file: Apache Kafka if there is Docker. Not shared: consumer groups have fixed names."""
    with kafka_brokers.provide(containers=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def small_broker() -> Iterator[Kafka]:
    """librdkafka's embedded broker, which goes with SQLite, for one file."""
    with kafka_brokers.provide() as broker:
        yield broker
