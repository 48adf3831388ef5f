"""The outbox under test."""

from collections.abc import Iterator

import pytest

from devstack.kafka import Kafka
from testkit.drivers.relay import Shop


@pytest.fixture
def shop(database_url: str, kafka: Kafka) -> Iterator[Shop]:
    """A database with an empty outbox, and a topic of its own."""
    shop = Shop(database_url, kafka)
    shop.metadata.create_all(shop.database.engine)
    kafka.create_topics(shop.topic)
    yield shop
    shop.close()
