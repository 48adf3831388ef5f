"""Events as rows: written in the transaction of their change, in order, and never too large for a broker."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Connection, MetaData, select

from shop_common.db.database import Database
from shop_common.events.outbox import PAYLOAD_BYTES_MAX, SHARDS, Message, Outbox, Record, shard_of

METADATA = MetaData()
OUTBOX = Outbox(METADATA)
KNOWN_SHARDS = [0, 7, 13, 12, 9]
MOMENT = datetime(2024, 1, 15, 10, 30, 0, 5, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.write() as tx:
        METADATA.create_all(tx)
    yield database
    database.close()


def message(key: str = "1", **other: object) -> Message:
    return Message("parcels", key, "PARCEL_SENT", {"name": "é", **other}, MOMENT, "00-trace-01")


def stored(database: Database) -> list[Record]:
    with database.read() as tx:
        columns = [OUTBOX.table.c[name] for name in Record.__slots__]
        return [Record(*row) for row in tx.execute(select(*columns).order_by(OUTBOX.table.c.id))]


def test_messages_are_stored_in_order_each_under_an_id_of_its_own(database: Database) -> None:
    database.transact(lambda tx: OUTBOX.append(tx, [message(str(number)) for number in range(20)]))
    database.transact(lambda tx: OUTBOX.append(tx, []))

    found = stored(database)
    assert [record.key for record in found] == [str(number) for number in range(20)]
    assert len({record.event_id for record in found}) == 20
    assert [record.shard for record in found] == [shard_of(record.key) for record in found]


def test_a_message_is_stored_as_it_will_be_on_the_topic(database: Database) -> None:
    database.transact(lambda tx: OUTBOX.append(tx, [message()]))

    (record,) = stored(database)
    assert json.loads(record.payload) == {
        "event_type": "PARCEL_SENT",
        "timestamp": "2024-01-15T10:30:00.000005Z",
        "data": {"name": "é"},
    }
    assert (record.topic, record.type, record.traceparent, record.headers) == (
        "parcels",
        "PARCEL_SENT",
        "00-trace-01",
        None,
    )
    assert record.created_at == MOMENT


def test_a_rolled_back_change_has_no_event(database: Database) -> None:
    def tell_and_fail(tx: Connection) -> None:
        OUTBOX.append(tx, [message()])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transact(tell_and_fail)

    assert stored(database) == []


@pytest.mark.parametrize("letter", ["a", "é", "漢"])
def test_a_message_too_large_for_a_broker_is_refused_when_it_is_written(database: Database, letter: str) -> None:
    bytes_each = len(letter.encode())
    database.transact(lambda tx: OUTBOX.append(tx, [message(text="")]))
    without = len(stored(database)[0].payload.encode())
    fits = (PAYLOAD_BYTES_MAX - without) // bytes_each

    database.transact(lambda tx: OUTBOX.append(tx, [message(text=letter * fits)]))
    with pytest.raises(ValueError, match="bytes"):
        database.transact(lambda tx: OUTBOX.append(tx, [message(text=letter * (fits + 1))]))

    assert len(stored(database)) == 2


def test_a_time_is_written_in_utc_wherever_it_comes_from(database: Database) -> None:
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    database.transact(lambda tx: OUTBOX.append(tx, [Message("parcels", "1", "PARCEL_SENT", {}, elsewhere)]))

    (record,) = stored(database)
    assert json.loads(record.payload)["timestamp"] == "2024-01-15T10:30:00.000005Z"


def test_a_key_never_changes_its_shard() -> None:
    # The numbers are literal. If they ever changed, two owners would ship waiting rows of the same key.
    assert [shard_of(key) for key in ("", "1", "2", "12345", "018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b11")] == KNOWN_SHARDS
    assert {shard_of(str(number)) for number in range(1000)} == set(range(SHARDS))
