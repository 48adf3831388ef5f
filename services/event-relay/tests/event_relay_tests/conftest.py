"""The outbox under test."""

from collections.abc import Iterator

import pytest

from devstack.kafka import Kafka
from testkit.drivers.relay import OutboxDriver


@pytest.fixture
def driver(database_url: str, kafka: Kafka) -> Iterator[OutboxDriver]:
    """A database with an empty outbox, and a topic for this test alone."""
    driver = OutboxDriver(database_url, kafka)
    driver.metadata.create_all(driver.database.engine)
    kafka.create_topics(driver.topic)
    yield driver
    driver.close()
