"""One Apache Kafka for each file, so that a file can kill, freeze and reconfigure it without disturbing other tests."""

from collections.abc import Iterator

import pytest

from devstack import kafka
from devstack.kafka import Kafka
from devstack.stack import Stack
from tests.e2e.shop_driver import ShopDriver


@pytest.fixture(scope="module")
def broker(docker_engine: str) -> Iterator[Kafka]:
    """Apache Kafka in a container. Two stacks cannot share one: their consumer groups have the same names."""
    with kafka.provide(containers=True) as started:
        assert started.container.alive
        yield started


@pytest.fixture
def shop(stack: Stack) -> Iterator[ShopDriver]:
    """A client of the file's system, in which everything is ready."""
    with ShopDriver.connect(stack) as opened:
        opened.wait_ready()
        yield opened
