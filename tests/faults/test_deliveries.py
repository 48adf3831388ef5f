"""Each event is delivered three times, and events of different keys are mixed up. The topic also has invalid events."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from confluent_kafka import Producer

from devstack.kafka import Kafka, Record
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from tests.faults.stream import Stream
from tests.faults.system import System, running

pytestmark = pytest.mark.timeout(400)

REPEATS = 2
INVALID_EVENTS = 3
READ_SECONDS = 0.5
FLUSH_SECONDS = 20


@pytest.mark.short
def test_events_come_three_times_and_shuffled(postgres_server: PostgresServer, own_broker: Kafka, seed: int) -> None:
    chance = random.Random(seed)
    poison = frozenset(str(UUID(int=chance.getrandbits(128), version=4)) for _ in range(INVALID_EVENTS))
    with running(Databases.on_server(postgres_server), own_broker) as system:
        sent = Stream(system.kafka)
        with system.history(seed, poison=poison) as clients, clients.working(), repeating(system, sent, chance, poison):
            clients.wait_for(300)


@contextmanager
def repeating(system: System, sent: Stream, chance: random.Random, poison: frozenset[str]) -> Iterator[None]:
    """Until the block ends, reads new events and produces each of them REPEATS more times, in random order."""
    over = threading.Event()
    failures: list[BaseException] = []
    producer = Producer(system.kafka.connection.configuration({"acks": "all", "partitioner": "murmur2_random"}))

    def repeat() -> None:
        seen: set[str] = set()
        left = sorted(poison)
        try:
            while not over.is_set() or left:
                fresh = [record for record in sent.read() if record.headers["ce_id"] not in seen]
                seen |= {record.headers["ce_id"] for record in fresh} | poison
                again = list({record.headers["ce_id"]: record for record in fresh}.values()) * REPEATS
                chance.shuffle(again)
                if left and fresh:
                    # Insert a bad message with the key of a real order between the events of that order.
                    again.insert(len(again) // 2, poisoned(chance.choice(fresh), left.pop()))
                for record in again:
                    producer.produce(record.topic, record.value, record.key, headers=dict(record.headers))
                assert producer.flush(FLUSH_SECONDS) == 0
                over.wait(READ_SECONDS)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failures, failures


def poisoned(record: Record, event_id: str) -> Record:
    """An event of a type that the consumer handles, with a value that is not JSON."""
    event_type = "ORDER_CANCELLED" if record.topic == "order-events" else "STOCK_RELEASED"
    headers = record.headers | {"ce_id": event_id, "ce_type": event_type}
    return Record(record.topic, record.partition, record.offset, record.key, headers, b"not JSON")
