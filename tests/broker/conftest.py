"""Apache Kafka, one for each file: to be killed, paused and reconfigured without disturbing other tests."""

from collections.abc import Iterator

import pytest

from devstack import kafka
from devstack.kafka import Kafka


@pytest.fixture(scope="module")
def broker(docker_engine: str) -> Iterator[Kafka]:
    """In a container of its own. The groups of a stack have fixed names, so that two stacks can't share a broker."""
    with kafka.provide(containers=True) as started:
        assert started.container.alive
        yield started
