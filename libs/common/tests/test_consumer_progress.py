"""A consumer that does not get on although something is to be read says so; one that only waits does not."""

import threading
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection

from devstack.foreign import Foreign, send
from libs.common.tests.test_consumer import TIMEOUT_SECONDS, Desk, desk, eventually, note
from shop_common.consumer import Event
from shop_common.errors import Contention, DatabaseUnavailable

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


def test_rows_that_others_hold_for_long_are_noticed(desk: Desk) -> None:
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


def test_a_database_that_is_away_is_no_stalled_consumer(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
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
