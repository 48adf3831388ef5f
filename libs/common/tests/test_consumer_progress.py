"""A consumer with unhandled messages that makes no progress reports a stall; a consumer that only waits does not."""

import threading
from collections.abc import Sequence

import pytest
from confluent_kafka import Producer
from sqlalchemy import Connection

from libs.common.tests.test_consumer import TIMEOUT_SECONDS, Desk, body, desk, note
from shop_common.errors import Contention, DatabaseUnavailable
from shop_common.events.consumer import Event
from testkit.eventually import eventually
from testkit.foreign import Foreign, send

__all__ = ["desk"]

STALLED = "messages wait and none is handled"
STALL_SECONDS = 2
UNPACKED_BYTES = 150_000_000
"""More than librdkafka unpacks."""


def test_a_handler_that_does_not_return_makes_the_process_unready_until_it_does(desk: Desk) -> None:
    stuck, release = threading.Event(), threading.Event()

    def handler(tx: Connection, events: Sequence[Event]) -> None:
        stuck.set()
        assert release.wait(TIMEOUT_SECONDS)
        note(tx, events)

    desk.tell(("OPENED", "a", 1))
    desk.consumer({"OPENED": handler}, stall_seconds=STALL_SECONDS)
    assert stuck.wait(TIMEOUT_SECONDS)
    eventually(lambda: desk.readiness[-1:] == [False])
    release.set()

    eventually(lambda: desk.readiness[-1:] == [True])
    assert desk.noted() == [("OPENED", "a", 1)]


def test_a_batch_that_cannot_be_unpacked_is_noticed_and_other_partitions_go_on(desk: Desk) -> None:
    consumer = desk.consumer({"OPENED": note}, stall_seconds=STALL_SECONDS)
    bomb = Foreign(bytes(UNPACKED_BYTES), partition=0)
    settings = {"compression.type": "zstd", "message.max.bytes": str(2 * UNPACKED_BYTES)}
    send(desk.kafka.bootstrap, desk.topic, [bomb], settings)

    eventually(lambda: desk.readiness[-1:] == [False])
    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(100)))

    eventually(lambda: len(desk.noted()) > 50)
    eventually(lambda: consumer.lag() + len(desk.noted()) == 101)
    assert desk.readiness[-1:] == [False]


def test_rows_that_stay_locked_are_reported_as_a_stall(desk: Desk) -> None:
    free = threading.Event()

    def handler(tx: Connection, events: Sequence[Event]) -> None:
        if not free.is_set():
            raise Contention("others hold the rows")
        note(tx, events)

    desk.tell(("OPENED", "a", 1))
    desk.consumer({"OPENED": handler}, stall_seconds=STALL_SECONDS)
    eventually(lambda: False in desk.readiness)
    free.set()

    eventually(lambda: desk.noted() == [("OPENED", "a", 1)])
    eventually(lambda: desk.readiness[-1])


def test_an_unavailable_database_is_not_a_stall(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    tries: list[int] = []

    def handler(tx: Connection, events: Sequence[Event]) -> None:
        tries.append(len(events))
        if len(tries) < 12:
            raise DatabaseUnavailable("away")
        note(tx, events)

    desk.tell(("OPENED", "a", 1))
    desk.consumer({"OPENED": handler}, stall_seconds=STALL_SECONDS)

    eventually(lambda: desk.noted() == [("OPENED", "a", 1)])
    eventually(lambda: desk.readiness == [False, True])
    assert STALLED not in capfd.readouterr().out


def test_transactions_of_other_producers_do_not_block_the_consumer(desk: Desk) -> None:
    """A transaction that never ends does not block the consumer, nor does the marker at the end of another one."""
    settings = desk.kafka.connection.configuration({"transaction.timeout.ms": TIMEOUT_SECONDS * 2 * 1000})
    consumer = desk.consumer({"OPENED": note}, stall_seconds=STALL_SECONDS)
    ended, left_open = (Producer(settings | {"transactional.id": f"{desk.topic}-{name}"}) for name in ("ended", "open"))
    for number, producer in enumerate((ended, left_open)):
        producer.init_transactions(TIMEOUT_SECONDS)
        producer.begin_transaction()
        producer.produce(desk.topic, body("OPENED", number), b"stranger", partition=0)
        producer.flush(TIMEOUT_SECONDS)
    ended.commit_transaction(TIMEOUT_SECONDS)
    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(30)))

    eventually(lambda: len([key for _, key, _ in desk.noted() if key != "stranger"]) == 30)
    eventually(lambda: consumer.lag() == 0)
    assert False not in desk.readiness
    left_open.abort_transaction(TIMEOUT_SECONDS)
