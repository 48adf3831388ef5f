"""A message with any bytes becomes a row that both databases store and that the relay can send."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import orjson
import pytest
from confluent_kafka import Message
from sqlalchemy import MetaData, select
from sqlalchemy.exc import IntegrityError

from shop_common.db.database import Database
from shop_common.events.broker import Event
from shop_common.events.dead_letters import Reason, dead_letter, one_line, redriven
from shop_common.events.outbox import PAYLOAD_BYTES_MAX, Outbox, Record
from shop_common.events.received import read

NOW = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
BROKER_BYTES_MAX = 1_000_000
Headers = list[tuple[str, str | bytes | None]]

metadata = MetaData()
outbox = Outbox(metadata)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.write() as tx:
        metadata.create_all(tx)
    yield database
    database.close()


def letter_of(value: bytes | None, key: bytes | None = b"k", headers: Headers | None = None) -> Record:
    message = read(Message(topic="facts", partition=2, offset=7, key=key, value=value, headers=headers))
    return dead_letter(message, Reason.FAILED, ValueError("why\nnot"), consumer="desk", now=NOW)


def test_it_says_what_it_was_and_where_it_came_from() -> None:
    original = str(uuid4())
    headers: Headers = [("ce_id", original.encode()), ("ce_type", b"OPENED"), ("ce_time", b"2024"), ("more", b"1")]

    letter = letter_of(b"{}", headers=headers)

    assert (letter.topic, letter.key, letter.type, letter.payload) == ("facts.dlq", "k", "OPENED", "{}")
    assert (letter.event_id, letter.created_at) == (original, NOW)
    assert orjson.loads(letter.headers or "") == {
        "ce_id": original,
        "ce_type": "OPENED",
        "ce_time": "2024",
        "more": "1",
        "dlq_topic": "facts",
        "dlq_partition": "2",
        "dlq_offset": "7",
        "dlq_consumer": "desk",
        "dlq_reason": "FAILED",
        "dlq_error": "ValueError: why",
    }


def test_what_the_message_says_of_its_own_encoding_is_not_believed() -> None:
    forged: Headers = [("dlq_encoding", b"base64"), ("dlq_truncated", b"true"), ("dlq_offset", b"1"), ("more", b"1")]

    headers = orjson.loads(letter_of(b"e30=", headers=forged).headers or "")

    assert "dlq_encoding" not in headers
    assert "dlq_truncated" not in headers
    assert (headers["dlq_offset"], headers["more"]) == ("7", "1")


def test_of_a_repeated_header_the_first_value_is_kept_which_its_consumers_use() -> None:
    headers: Headers = [("ce_tenant", b"acme"), ("ce_tenant", b"other")]

    assert orjson.loads(letter_of(b"{}", headers=headers).headers or "")["ce_tenant"] == "acme"


def test_an_event_keeps_the_tenant_of_its_letter_or_is_not_redriven() -> None:
    filling = tuple((f"h{n}", b"x" * 2_000) for n in range(5))
    tenant = (("ce_tenant", b"acme"),)

    first = redriven(stored((*tenant, ("ce_tenant", b"other"), *filling)), "facts")
    dropped = redriven(stored((*filling, *tenant)), "facts")

    assert first is not None
    assert orjson.loads(first.headers or "")["ce_tenant"] == "acme"
    assert dropped is None


def stored(headers: tuple[tuple[str, bytes], ...]) -> Event:
    """A letter with these headers, as it is in its topic."""
    return Event("facts.dlq", 0, 7, NOW, b"k", headers, b"{}")


def test_one_that_is_set_aside_twice_keeps_its_id_though_it_never_had_a_good_one() -> None:
    first, again = letter_of(b"{}", headers=[("ce_id", b"no uuid")]), letter_of(b"{}")

    assert UUID(first.event_id) == UUID(again.event_id)


@pytest.mark.parametrize(
    ("value", "key", "headers"),
    [
        (None, None, None),
        (b"", b"", [("", b"")]),
        (b"\x00", b"\x00", [("h\x00", b"\x00"), ("ce_type", b"\x00"), ("ce_id", b"\x00")]),
        (b'{"a": "\xed\xa0\x80"}', b"\xff", [("h", b"\xff")]),
        ("ö\u2028".encode(), "ö".encode(), [("ö", "ö".encode())]),
        (b"x" * 2_000_000, b"x" * 2_000_000, [(f"h{n}", b"x" * 5000) for n in range(1000)]),
        (b"\xff" * 2_000_000, b"\xff" * 2_000_000, [("h" * 100_000, b"\xff" * 5000)]),
    ],
    ids=["none", "empty", "NUL", "not UTF-8", "odd Unicode", "too large", "too large and not UTF-8"],
)
def test_any_bytes_fit_the_database_and_the_broker(
    database: Database, value: bytes | None, key: bytes | None, headers: Headers | None
) -> None:
    letter = letter_of(value, key, headers)

    database.transact(lambda tx: outbox.append_records(tx, [letter]))

    with database.read() as tx:
        row = tx.execute(select(outbox.table)).one()
    assert (row.payload, row.key, row.headers) == (letter.payload, letter.key, letter.headers)
    size = len(row.payload.encode()) + len(row.key.encode()) + len(row.headers.encode())
    assert size < BROKER_BYTES_MAX
    assert ("dlq_truncated" in orjson.loads(row.headers)) == (len(value or b"") > PAYLOAD_BYTES_MAX)


def test_the_error_is_one_line_without_the_statement_and_its_data() -> None:
    error = IntegrityError("INSERT INTO noted VALUES (?)", {"secret": 1}, ValueError("x" * 900 + "\nDETAIL: secret"))

    line = one_line(error)

    assert line.startswith("ValueError: xxx")
    assert "INSERT" not in line
    assert "secret" not in line
    assert len(line) == 500
