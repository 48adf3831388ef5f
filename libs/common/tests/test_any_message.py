"""A consumer process survives any message, and handles the valid ones."""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from sqlalchemy import func, select

from devstack.kafka import Kafka
from devstack.process import Process
from libs.common.tests.reading_process import TYPE, copied, metadata, outbox
from shop_common.db.database import Database
from testkit.eventually import eventually
from testkit.foreign import Foreign, send

PATIENCE_SECONDS = 110
ROUNDS = 300
NOT_UTF8 = b"x-b\xe4r"
GOOD_BODY = orjson.dumps({"event_type": TYPE, "timestamp": "2024-01-15T10:30:00Z", "data": {}})
GOOD_HEADERS = ((b"ce_type", TYPE.encode()),)


def good(number: int) -> Foreign:
    return Foreign(GOOD_BODY, f"good-{number}".encode(), GOOD_HEADERS)


def body(**fields: object) -> bytes:
    return orjson.dumps({"event_type": TYPE, "timestamp": "2024-01-15T10:30:00Z", "data": {}} | fields)


BAD = {
    "a header's name is not UTF-8": Foreign(GOOD_BODY, b"k", ((NOT_UTF8, b"v"), *GOOD_HEADERS)),
    "two headers' names are not UTF-8": Foreign(GOOD_BODY, b"k", ((b"\xff", b"v"), *GOOD_HEADERS, (b"\xfe", None))),
    "of a type that nobody handles, and its name is not UTF-8": Foreign(
        body(event_type="ELSE"), b"k", ((b"\x80", b""),)
    ),
    "an id that is not UTF-8": Foreign(GOOD_BODY, b"k", ((b"ce_id", b"\xff"), *GOOD_HEADERS)),
    "a key that is not UTF-8": Foreign(GOOD_BODY, b"\xff\x00", GOOD_HEADERS),
    "no value": Foreign(None, b"k", GOOD_HEADERS),
    "nothing": Foreign(None),
    "an empty value": Foreign(b"", b"", ()),
    "no JSON": Foreign(b"\x00\xff", b"k", GOOD_HEADERS),
    "JSON that is no object": Foreign(b"[1]", b"k", ()),
    "JSON nested deeply": Foreign(b"[" * 20_000, b"k", GOOD_HEADERS),
    "a type that is no text": Foreign(body(event_type={"a": 1}), b"k", ()),
    "data that is no object": Foreign(body(data=[1]), b"k", GOOD_HEADERS),
    "a time that is a number": Foreign(body(timestamp=1e300), b"k", GOOD_HEADERS),
    "a time without a zone": Foreign(body(timestamp="2024-01-15T10:30:00"), b"k", GOOD_HEADERS),
    "a lone surrogate": Foreign(GOOD_BODY.replace(b"{}", b'{"a":"\\ud800"}') + b"\xed\xa0\x80", b"k", GOOD_HEADERS),
    "a thousand headers": Foreign(b"{", b"k", [(f"h{n}".encode(), b"\xff" * 100) for n in range(1000)]),
    "a large value": Foreign(b"\xff" * 300_000, b"k" * 50_000, GOOD_HEADERS),
}
STILL_GOOD = {
    "a type header that is not UTF-8": Foreign(GOOD_BODY, b"also-good", ((b"ce_type", b"\xff"),)),
    "a header without a value": Foreign(GOOD_BODY, b"also-good", (*GOOD_HEADERS, (b"ce_id", None), (b"", None))),
    "a traceparent that is none": Foreign(GOOD_BODY, b"also-good", (*GOOD_HEADERS, (b"traceparent", b"\xff\x00"))),
    "a time long ago": Foreign(GOOD_BODY, b"also-good", GOOD_HEADERS, timestamp_ms=1),
}


class Reader:
    """The process under test, its topic and its database."""

    def __init__(self, kafka: Kafka, url: str) -> None:
        self.kafka = kafka
        self.topic = f"anything-{uuid4().hex}"
        self.database = Database(url)
        metadata.create_all(self.database.engine)
        program = Path(__file__).parent / "reading_process.py"
        self.process = Process("reader", [sys.executable, str(program), kafka.bootstrap, self.topic, url])

    def send(self, *messages: Foreign) -> None:
        send(self.kafka.bootstrap, self.topic, messages)

    def copied(self) -> Counter[str]:
        """Return how often each key was copied."""
        with self.database.read() as tx:
            return Counter(tx.execute(select(copied.c.key)).scalars())

    def letters(self) -> int:
        with self.database.read() as tx:
            return tx.execute(select(func.count()).select_from(outbox.table)).scalar_one()

    def eventually(self, condition: Callable[[], bool]) -> None:
        def is_true_or_over() -> bool:
            assert self.process.alive, f"ended with {self.process.exit_code}\n{self.process.tail()}"
            return condition()

        eventually(is_true_or_over, PATIENCE_SECONDS, self.process.tail)


@pytest.fixture
def reader(kafka: Kafka, database_url: str) -> Iterator[Reader]:
    reader = Reader(kafka, database_url)
    kafka.create_topics(reader.topic)
    yield reader
    reader.process.stop()
    reader.database.close()


def test_a_header_name_that_is_not_utf8_ends_no_process_however_often_it_comes(reader: Reader) -> None:
    """Thousands of messages are sent, because CPython runs hot code in another way."""
    bad = BAD["a header's name is not UTF-8"]
    reader.send(*(message for number in range(2000) for message in (good(number), bad)))
    reader.process.start()
    pid = reader.process.pid

    reader.eventually(lambda: reader.letters() == 2000)
    reader.eventually(lambda: reader.kafka.lag(f"reader-of-{reader.topic}", reader.topic) == 0)

    assert reader.copied() == {f"good-{number}": 1 for number in range(2000)}
    assert (reader.process.alive, reader.process.pid) == (True, pid)


def test_what_is_no_event_is_set_aside_and_what_is_one_is_handled(reader: Reader) -> None:
    chance = random.Random(1)
    bad, still_good = list(BAD.values()), list(STILL_GOOD.values())
    messages = [*(good(number) for number in range(ROUNDS)), *bad * 5, *still_good * 5]
    chance.shuffle(messages)
    reader.send(*messages)
    reader.process.start()

    reader.eventually(lambda: reader.letters() >= 5 * len(bad))
    reader.eventually(lambda: reader.kafka.lag(f"reader-of-{reader.topic}", reader.topic) == 0)

    assert reader.letters() == 5 * len(bad)
    assert reader.copied() == {f"good-{number}": 1 for number in range(ROUNDS)} | {"also-good": 5 * len(still_good)}
    assert reader.process.alive
    assert "ready: False" not in reader.process.log


def test_nothing_reads_headers_in_the_unchecked_way() -> None:
    """`message.headers()` can crash the process, so only `received.headers_of` may call it."""
    root = Path(__file__).parents[3]
    sources = [path for folder in ("libs", "services", "tests", "benchmarks") for path in (root / folder).rglob("*.py")]
    asks = "message" + ".headers()"

    assert len(sources) > 100
    assert [path.name for path in sources if asks in path.read_text().replace(f"`{asks}`", "")] == []
