"""Both APIs as processes on SQLite, and clients of them."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.kafka import Kafka
from devstack.stack import Databases, Options, Stack
from shop_client import Settings, Shop
from testkit.apis import WITHOUT_EVENTS, running

_ids = itertools.count(random.SystemRandom().randrange(2**40) * 1000 + 1)


@pytest.fixture(scope="session")
def apis(embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both APIs, started once."""
    databases = Databases.in_folder(tmp_path_factory.mktemp("client"))
    yield from running(Stack(databases, embedded_broker, options=Options(environment=WITHOUT_EVENTS)))


@pytest.fixture(scope="session")
def settings(apis: Stack) -> Settings:
    return Settings(apis.inventory_address, apis.orders_address, timeout_seconds=60)


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    with Shop(settings) as opened:
        yield opened


@pytest.fixture
def product() -> int:
    """The id of a product that no other test uses."""
    return next(_ids)


def folder_of_this_repository() -> Path:
    return Path(__file__).resolve().parents[3]
