"""A consumer on a real broker and both databases. Its handlers record in a table what they received."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
import structlog
from confluent_kafka import Producer
from sqlalchemy import CheckConstraint, Column, Connection, Integer, MetaData, Table, Text, insert, select, text
from sqlalchemy.engine import make_url

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from shop_common.db.database import Database
from shop_common.errors import Contention, DatabaseUnavailable, TransactionTimeout
from shop_common.events import kafka_connection
from shop_common.events.consumer import Consumer, Event, Handler
from shop_common.events.outbox import Outbox
from testkit.eventually import eventually

TIMEOUT_SECONDS = 90

metadata = MetaData()
outbox = Outbox(metadata)
noted = Table(
    "noted",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("type", Text),
    Column("key", Text),
    Column("number", Integer, CheckConstraint("number >= 0", "number_not_negative")),
    sqlite_autoincrement=True,
)


def note(tx: Connection, events: Sequence[Event]) -> None:
    rows = [{"type": event.type, "key": event.key, "number": event.data["number"]} for event in events]
    tx.execute(insert(noted), rows)


@dataclass
class Desk:
    """A consumer with its topic, its database and its log."""

    kafka: Kafka
    database: Database
    topic: str
    group: str = field(default_factory=lambda: f"group-{uuid4().hex}")
    readiness: list[bool] = field(default_factory=list)
    fatal_errors: list[BaseException] = field(default_factory=list)
    at_the_end: ExitStack = field(default_factory=ExitStack)

    def consumer(self, handlers: Mapping[str, Handler], **options: Any) -> Consumer:
        """A running consumer, stopped at the end of the test."""
        consumer = Consumer(
            kafka=options.pop("kafka", self.kafka.connection),
            group=self.group,
            topic=self.topic,
            handlers=handlers,
            database=self.database,
            outbox=outbox,
            set_ready=self.readiness.append,
            on_fatal=lambda _, error: self.fatal_errors.append(error),
            session_seconds=2,
            **options,
        )
        consumer.start()
        self.at_the_end.callback(consumer.stop)
        return consumer

    def tell(self, *events: tuple[str, str, Any]) -> None:
        """Send events: type, key, number."""
        bodies = [(kind, key, body(kind, number)) for kind, key, number in events]
        self.send(*((key, value, {"ce_type": kind, "ce_id": str(uuid4())}) for kind, key, value in bodies))

    def send(self, *messages: tuple[str | bytes | None, bytes, Mapping[str, str | bytes]]) -> None:
        """Send messages: key, value, headers."""
        producer = Producer(self.kafka.connection.configuration({"partitioner": "murmur2_random"}))
        for key, value, headers in messages:
            producer.produce(self.topic, value, key, headers=dict(headers))
        assert producer.flush(TIMEOUT_SECONDS) == 0

    def noted(self) -> list[tuple[str, str, int]]:
        columns = select(noted.c.type, noted.c.key, noted.c.number).order_by(noted.c.id)
        with self.database.read() as tx:
            return [row._tuple() for row in tx.execute(columns)]

    def letters(self) -> list[Any]:
        with self.database.read() as tx:
            return list(tx.execute(select(outbox.table).order_by(outbox.table.c.id)))

    def uncommitted(self) -> int:
        return self.kafka.lag(self.group, self.topic)


def body(kind: str, number: Any) -> bytes:
    return orjson.dumps({"event_type": kind, "timestamp": "2024-01-15T10:30:00.5Z", "data": {"number": number}})


@pytest.fixture
def desk(kafka: Kafka, database_url: str) -> Iterator[Desk]:
    database = Database(database_url)
    with database.write() as tx:
        metadata.create_all(tx)
    desk = Desk(kafka, database, f"facts-{uuid4().hex}")
    kafka.create_topics(desk.topic)
    desk.tell(("OTHER", "any", 0))  # the embedded broker makes a topic at its first use
    with desk.at_the_end:
        yield desk
    database.close()
    assert desk.fatal_errors == []


def test_events_reach_the_handler_of_their_type_and_their_offsets_are_committed(desk: Desk) -> None:
    desk.tell(("OPENED", "a", 1), ("UNHEARD_OF", "a", 2), ("CLOSED", "a", 3))
    desk.consumer({"OPENED": note, "CLOSED": note})

    eventually(lambda: desk.noted() == [("OPENED", "a", 1), ("CLOSED", "a", 3)])
    eventually(lambda: desk.uncommitted() == 0)
    assert desk.letters() == []


def test_a_handler_receives_the_whole_event(desk: Desk) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    got: list[Event] = []
    headers = {"ce_type": "OPENED", "ce_id": "id-1", "traceparent": traceparent}
    desk.send(("kö", body("OPENED", 7), headers))
    desk.consumer({"OPENED": lambda _, events: got.extend(events)})

    eventually(lambda: len(got) == 1)

    (event,) = got
    assert (event.type, event.key, event.event_id, event.data) == ("OPENED", "kö", "id-1", {"number": 7})
    assert event.occurred_at.isoformat() == "2024-01-15T10:30:00.500000+00:00"
    assert (event.traceparent, event.topic) == (traceparent, desk.topic)


def test_the_type_is_taken_from_the_body_if_the_header_is_missing_or_odd(desk: Desk) -> None:
    desk.send(("a", body("OPENED", 1), {}), ("a", body("OPENED", 2), {"ce_type": b"\xff\xfe"}))
    desk.send(("a", body("UNHEARD_OF", 3), {}))
    desk.consumer({"OPENED": note})

    eventually(lambda: desk.uncommitted() == 0)
    assert desk.noted() == [("OPENED", "a", 1), ("OPENED", "a", 2)]
    assert desk.letters() == []


def test_each_keys_events_are_handled_in_order_in_few_transactions(desk: Desk) -> None:
    transactions: list[int] = []

    def count_and_note(tx: Connection, events: Sequence[Event]) -> None:
        transactions.append(len(events))
        note(tx, events)

    keys = [f"key-{n}" for n in range(100)]
    story = ["OPENED", "CHANGED", "CHANGED", "CLOSED", "OPENED"]
    desk.tell(*((kind, key, number) for number, kind in enumerate(story) for key in keys))
    desk.consumer(dict.fromkeys(story, count_and_note))

    eventually(lambda: len(desk.noted()) == len(keys) * len(story))
    for key in keys:
        told = [(kind, number) for kind, of, number in desk.noted() if of == key]
        assert told == [(kind, number) for number, kind in enumerate(story)]
    assert len(transactions) < 50


def test_a_handler_that_is_not_done_is_called_again_in_a_new_transaction(desk: Desk) -> None:
    transactions: list[list[int]] = []

    def in_turns(tx: Connection, events: Sequence[Event]) -> bool:
        note(tx, events[:1])
        transactions.append([event.data["number"] for event in events])
        return len(transactions) < 3

    desk.tell(("OPENED", "a", 1), ("CLOSED", "a", 2))
    desk.consumer({"OPENED": in_turns, "CLOSED": note})

    eventually(lambda: desk.noted() == [*[("OPENED", "a", 1)] * 3, ("CLOSED", "a", 2)])
    eventually(lambda: desk.uncommitted() == 0)
    assert transactions == [[1]] * 3


def test_an_event_that_cannot_be_handled_is_set_aside_at_once(desk: Desk) -> None:
    tries = 0

    def choke(tx: Connection, events: Sequence[Event]) -> None:
        nonlocal tries
        tries += [event.data["number"] for event in events] == [-1]
        note(tx, events)

    events = [("OPENED", f"key-{number}", number) for number in range(40)]
    events.insert(20, ("OPENED", "poison", -1))
    desk.tell(*events)
    desk.consumer({"OPENED": choke})

    eventually(lambda: desk.uncommitted() == 0)

    assert sorted(number for _, _, number in desk.noted()) == list(range(40))
    (letter,) = desk.letters()
    headers = orjson.loads(letter.headers)
    assert (letter.topic, letter.key, letter.type) == (f"{desk.topic}.dlq", "poison", "OPENED")
    assert letter.payload.encode() == body("OPENED", -1)
    assert str(letter.event_id) == headers["ce_id"]
    assert (headers["dlq_topic"], headers["dlq_consumer"]) == (desk.topic, desk.group)
    assert headers["dlq_reason"] == "FAILED"
    assert "number_not_negative" in headers["dlq_error"]
    assert "INSERT" not in headers["dlq_error"]
    assert headers["dlq_partition"].isdigit()
    assert headers["dlq_offset"].isdigit()
    assert tries == 1
    assert desk.readiness == []


def test_a_defect_in_a_handler_sets_its_event_aside(desk: Desk) -> None:
    desk.tell(("OPENED", "a", 1), ("OPENED", "b", "no number"), ("OPENED", "c", 3))
    desk.consumer({"OPENED": lambda tx, events: note(tx, [e for e in events if e.data["number"] + 1])})

    eventually(lambda: desk.uncommitted() == 0)

    assert sorted(key for _, key, _ in desk.noted()) == ["a", "c"]
    assert [letter.key for letter in desk.letters()] == ["b"]


def test_each_of_two_hundred_failing_events_is_tried_alone_once(desk: Desk) -> None:
    alone: list[str] = []

    def choke(tx: Connection, events: Sequence[Event]) -> None:
        if len(events) == 1:
            alone.append(events[0].key)
        note(tx, [event for event in events if event.data["number"] + 1])

    poison = [f"poison-{number}" for number in range(200)]
    desk.tell(*(("OPENED", f"good-{number}", number) for number in range(200)))
    desk.tell(*(("OPENED", key, "none") for key in poison))
    desk.consumer({"OPENED": choke})

    eventually(lambda: desk.uncommitted() == 0)

    assert sorted(number for _, _, number in desk.noted()) == list(range(200))
    assert sorted(letter.key for letter in desk.letters()) == sorted(poison)
    assert sorted(key for key in alone if key in poison) == sorted(poison)
    assert desk.readiness == []


def test_a_transient_error_is_retried_five_times_before_the_event_is_set_aside(desk: Desk) -> None:
    tries: list[str] = []

    def fail(tx: Connection, events: Sequence[Event]) -> None:
        tries.extend(event.key for event in events if len(events) == 1)
        if any(event.key == "odd" for event in events):
            raise RuntimeError("for a reason that nobody foresaw")
        note(tx, events)

    desk.tell(("OPENED", "odd", 1), ("OPENED", "even", 2))
    desk.consumer({"OPENED": fail})

    eventually(lambda: desk.uncommitted() == 0)

    assert desk.noted() == [("OPENED", "even", 2)]
    assert [letter.key for letter in desk.letters()] == ["odd"]
    assert tries.count("odd") == 5


def test_events_that_take_too_long_together_are_handled_in_halves(desk: Desk) -> None:
    handled: list[int] = []

    def slow(tx: Connection, events: Sequence[Event]) -> None:
        if len(events) > 10:
            raise TransactionTimeout("too long")
        note(tx, events)
        handled.append(len(events))

    desk.tell(*(("OPENED", "a", number) for number in range(100)))
    desk.consumer({"OPENED": slow})

    eventually(lambda: desk.uncommitted() == 0)

    assert [number for _, _, number in desk.noted()] == list(range(100))
    assert max(handled) <= 10
    assert desk.letters() == []
    assert False not in desk.readiness


def test_one_event_that_takes_too_long_is_set_aside_after_five_tries(desk: Desk) -> None:
    tries = 0

    def slow(tx: Connection, events: Sequence[Event]) -> None:
        nonlocal tries
        if any(event.key == "endless" for event in events):
            tries += len(events) == 1
            raise TransactionTimeout("too long")
        note(tx, events)

    desk.tell(*(("OPENED", "endless" if number == 5 else "a", number) for number in range(10)))
    desk.consumer({"OPENED": slow})

    eventually(lambda: desk.uncommitted() == 0)

    assert sorted(number for _, _, number in desk.noted()) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [(letter.key, tries) for letter in desk.letters()] == [("endless", 5)]


def test_a_batch_weighs_no_more_than_one_transaction_should(desk: Desk) -> None:
    weights: list[int] = []

    def handler(tx: Connection, events: Sequence[Event]) -> None:
        weights.append(sum(event.data["number"] for event in events))
        note(tx, events)

    numbers = [200] * 100 + [7000, 1, 2] + [4999] * 3
    desk.tell(*(("OPENED", "a", number) for number in numbers))
    desk.consumer({"OPENED": handler}, weigh=lambda event: int(event.data["number"]))

    eventually(lambda: desk.uncommitted() == 0)

    assert [number for _, _, number in desk.noted()] == numbers
    assert [weight for weight in weights if weight > 5000] == [7000]


def test_a_missing_table_is_logged_and_waited_for(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    """An operator has to create a missing table or grant. Until then the events wait, and none is set aside."""
    with desk.database.write() as tx:
        tx.execute(text("ALTER TABLE noted RENAME TO noted_elsewhere"))
    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(8)))
    desk.consumer({"OPENED": note})
    eventually(lambda: desk.readiness == [False])

    with desk.database.write() as tx:
        tx.execute(text("ALTER TABLE noted_elsewhere RENAME TO noted"))

    eventually(lambda: len(desk.noted()) == 8)
    eventually(lambda: desk.readiness == [False, True])
    assert desk.letters() == []
    assert any("events wait" in line and "noted" in line for line in capfd.readouterr().out.splitlines())


def test_a_revoked_grant_loses_no_event(best_broker: Kafka, postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database("grants")
    role = f"clerk_{uuid4().hex[:8]}"
    admin = Database(url)
    with admin.write() as tx:
        metadata.create_all(tx)
        for statement in (
            f"CREATE ROLE {role} LOGIN PASSWORD 'clerk'",
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
            f"REVOKE INSERT ON noted FROM {role}",
        ):
            tx.execute(text(statement))
    as_role = make_url(url).set(username=role, password="clerk")
    desk = Desk(best_broker, Database(as_role.render_as_string(hide_password=False)), f"facts-{uuid4().hex}")
    best_broker.create_topics(desk.topic)
    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(8)))
    with desk.at_the_end:
        desk.consumer({"OPENED": note})
        eventually(lambda: desk.readiness == [False])
        with admin.write() as tx:
            tx.execute(text(f"GRANT INSERT ON noted TO {role}"))

        eventually(lambda: len(desk.noted()) == 8)
        eventually(lambda: desk.readiness == [False, True])
        assert desk.letters() == []
    desk.database.close()
    with admin.write() as tx:
        tx.execute(text(f"DROP OWNED BY {role}"))
        tx.execute(text(f"DROP ROLE {role}"))
    admin.close()
    postgres_server.drop_database(url)


def test_an_undecodable_message_is_set_aside_at_once_with_its_bytes(desk: Desk) -> None:
    opened = {"ce_type": "OPENED"}
    desk.send(("a", b"{", opened), (b"\xff\x00", b"\xff\x00", {**opened, "odd": b"\x00\xff"}), ("c", b"[]", {}))
    desk.send((None, body("OPENED", 1), opened))
    desk.consumer({"OPENED": note})

    eventually(lambda: desk.uncommitted() == 0)

    assert desk.noted() == [("OPENED", "", 1)]
    letters = {letter.payload: orjson.loads(letter.headers) for letter in desk.letters()}
    assert letters.keys() == {"{", "/wA=", "[]"}
    assert {headers["dlq_reason"] for headers in letters.values()} == {"UNDECODABLE"}
    assert letters["/wA="]["dlq_encoding"] == "base64"


def test_an_unavailable_database_is_waited_for_and_no_event_is_lost(desk: Desk) -> None:
    away = threading.Event()
    away.set()

    def flaky(tx: Connection, events: Sequence[Event]) -> None:
        note(tx, events)
        if away.is_set():
            raise DatabaseUnavailable("away")

    desk.tell(*(("OPENED", f"key-{number % 7}", number) for number in range(1000)))
    desk.consumer({"OPENED": flaky})
    eventually(lambda: desk.readiness == [False])
    desk.tell(*(("OPENED", f"key-{number % 7}", number) for number in range(1000, 1100)))
    away.clear()

    eventually(lambda: len(desk.noted()) == 1100)
    for key in range(7):
        assert [number for _, of, number in desk.noted() if of == f"key-{key}"] == list(range(key, 1100, 7))
    eventually(lambda: desk.readiness == [False, True])
    assert desk.letters() == []


def test_a_busy_database_is_waited_for_and_leaves_the_process_ready(desk: Desk) -> None:
    busy = iter([Contention("busy")] * 3)

    def handler(tx: Connection, events: Sequence[Event]) -> None:
        for error in busy:
            raise error
        note(tx, events)

    desk.tell(("OPENED", "a", 1))
    desk.consumer({"OPENED": handler})

    eventually(lambda: desk.noted() == [("OPENED", "a", 1)])
    assert False not in desk.readiness


def test_locked_rows_are_waited_for(desk: Desk, database_url: str) -> None:
    tried = threading.Event()
    lock = "SELECT 1" if desk.database.is_sqlite else "LOCK TABLE noted"
    other = Database(database_url)

    def handler(tx: Connection, events: Sequence[Event]) -> None:
        tried.set()
        note(tx, events)

    with other.write() as tx:
        tx.execute(text(lock))
        desk.tell(("OPENED", "a", 1))
        desk.consumer({"OPENED": handler})
        if not desk.database.is_sqlite:  # on SQLite, the transaction of the handler cannot begin
            assert tried.wait(TIMEOUT_SECONDS)
        eventually(lambda: len(desk.readiness) > 0)

    other.close()
    eventually(lambda: desk.noted() == [("OPENED", "a", 1)])
    assert desk.letters() == []


def test_an_unfinished_batch_is_repeated_by_the_next_process(desk: Desk) -> None:
    reached = threading.Event()

    def away(tx: Connection, events: Sequence[Event]) -> None:
        reached.set()
        raise DatabaseUnavailable("away")

    desk.tell(("OPENED", "a", 1), ("CLOSED", "a", 2))
    first = desk.consumer({"OPENED": note, "CLOSED": away})
    assert reached.wait(TIMEOUT_SECONDS)
    first.stop()

    desk.consumer({"OPENED": note, "CLOSED": note})

    eventually(lambda: desk.noted() == [("OPENED", "a", 1), ("OPENED", "a", 1), ("CLOSED", "a", 2)])


def test_a_stopped_consumer_has_committed_and_the_next_goes_on_from_there(desk: Desk) -> None:
    desk.tell(("OPENED", "a", 1))
    first = desk.consumer({"OPENED": note})
    eventually(lambda: len(desk.noted()) == 1)
    first.stop()
    # The consumer committed its offset before it stopped. The broker may show the commit a moment later.
    eventually(lambda: desk.uncommitted() == 0)

    desk.consumer({"OPENED": note})
    desk.tell(("OPENED", "a", 2))

    eventually(lambda: desk.noted() == [("OPENED", "a", 1), ("OPENED", "a", 2)])


def test_partitions_are_shared_while_events_flow_and_each_is_handled(desk: Desk) -> None:
    desk.consumer({"OPENED": note})
    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(300)))
    second = desk.consumer({"OPENED": note})
    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(300, 600)))
    eventually(lambda: len({number for _, _, number in desk.noted()}) == 600)
    second.stop()
    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(600, 900)))

    eventually(lambda: {number for _, _, number in desk.noted()} == set(range(900)))
    eventually(lambda: desk.uncommitted() == 0)


def test_a_partition_that_was_paused_when_it_went_is_read_when_it_comes_back(desk: Desk) -> None:
    away = threading.Event()
    away.set()

    def flaky(tx: Connection, events: Sequence[Event]) -> None:
        if away.is_set():
            raise DatabaseUnavailable("away")
        note(tx, events)

    def seen() -> set[tuple[str, str, int]]:
        return set(desk.noted())

    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(60)))
    desk.consumer({"OPENED": flaky})
    eventually(lambda: desk.readiness == [False])
    other = desk.consumer({"OPENED": note})
    eventually(lambda: bool(seen()))  # the other consumer has some of the partitions
    away.clear()
    eventually(lambda: len(seen()) == 60)

    other.stop()
    desk.tell(*(("OPENED", f"key-{number}", 1000 + number) for number in range(60)))

    eventually(lambda: len(seen()) == 120)


def test_it_stops_in_time_although_the_broker_does_not_respond(desk: Desk) -> None:
    desk.tell(("OPENED", "a", 1))
    consumer = desk.consumer({"OPENED": note})
    eventually(lambda: len(desk.noted()) == 1)

    with desk.kafka.frozen():
        started_at = time.monotonic()
        consumer.stop()
        assert time.monotonic() - started_at < 7


def test_new_credentials_replace_the_client_between_two_batches(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_connection, "CHECK_INTERVAL_SECONDS", 0)
    # A file that a connection without TLS does not need.
    file = tmp_path / "ca.crt"
    file.write_text("first")
    sent = 1

    def is_replaced() -> bool:
        nonlocal sent
        desk.tell(*(("OPENED", f"key-{number}", number) for number in range(sent, sent + 20)))
        sent += 20
        return "new Kafka credentials are in use" in {line["event"] for line in log}

    with structlog.testing.capture_logs() as log:
        desk.consumer({"OPENED": note}, kafka=replace(desk.kafka.connection, ca_path=file))
        desk.tell(("OPENED", "the first", 0))
        eventually(desk.noted)
        file.write_text("second")
        eventually(is_replaced)
        desk.tell(("OPENED", "the last", sent))
        eventually(lambda: ("OPENED", "the last", sent) in desk.noted() and not desk.uncommitted())

    # No event was lost or handled twice, because the handled events were committed before the client was replaced.
    assert sorted(number for _, _, number in desk.noted()) == list(range(sent + 1))
    assert not desk.fatal_errors


def test_lag_counts_the_unhandled_messages(desk: Desk) -> None:
    away = threading.Event()
    away.set()

    def flaky(tx: Connection, events: Sequence[Event]) -> None:
        if away.is_set():
            raise DatabaseUnavailable("away")

    desk.tell(*(("OPENED", f"key-{number}", number) for number in range(600)))
    consumer = desk.consumer({"OPENED": flaky})

    eventually(lambda: consumer.lag() >= 600)
    away.clear()
    eventually(lambda: consumer.lag() == 0)


def test_a_failed_consumer_thread_is_reported(kafka: Kafka, desk: Desk) -> None:
    def exit_thread(tx: Connection, events: Sequence[Event]) -> None:
        raise SystemExit("on purpose")

    desk.consumer({"OPENED": exit_thread})
    desk.tell(("OPENED", "a", 1))

    eventually(lambda: len(desk.fatal_errors) == 1)
    desk.fatal_errors.clear()
