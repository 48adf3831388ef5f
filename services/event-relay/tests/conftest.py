"""The outbox under test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.kafka import Kafka

# pytest's importlib mode leaves this folder out of the path.
sys.path.insert(0, str(Path(__file__).parent))

from relay_driver import Shop


@pytest.fixture
def shop(database_url: str, kafka: Kafka) -> Iterator[Shop]:
    """A database with an empty outbox, and a topic of its own."""
    shop = Shop(database_url, kafka)
    shop.metadata.create_all(shop.database.engine)
    kafka.create_topics(shop.topic)
    yield shop
    shop.close()
