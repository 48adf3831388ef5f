"""RedriveDeadLetters on a real broker and both databases: the events of letters are written to the outbox once."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import MetaData, select, text

from devstack.kafka import Kafka
from devstack.ports import free_ports
from shop_common.db.audit import AuditLog
from shop_common.db.database import Database
from shop_common.errors import BrokerUnavailable, InvalidInput, ShopError
from shop_common.events.dead_letter_topic import GROUP
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.outbox import Outbox
from shop_common.events.received import headers_of
from shop_common.events.redrive import LETTERS_MAX, METHOD, Outcome, Redrive, RedriveResult, Redriving, parse
from shop_common.identity.caller import Caller
from shop_protos.inventory.v1 import inventory_pb2 as pb

ADMIN = Caller("user:ann", frozenset({"admin"}), "ann", "acme")

metadata = MetaData()
outbox = Outbox(metadata)
audit_log = AuditLog(metadata)


@dataclass
class Letters:
    """A dead-letter topic of its own, and the service that redrives its letters."""

    kafka: Kafka
    database: Database
    topic: str
    redriving: Redriving

    def set_aside(self, key: str = "a", value: bytes = b"{}", *, tenant: str = "acme", **headers: Any) -> str:
        """Write a letter. Returns the id of its event."""
        event_id = str(uuid4())
        origin = {"dlq_topic": self.topic, "dlq_partition": "0", "dlq_offset": "7", "dlq_reason": "FAILED"}
        event = {"ce_id": event_id, "ce_type": "OPENED", "ce_tenant": tenant, "ce_sequence": "0000000000000000042"}
        self.kafka.produce(f"{self.topic}.dlq", key, value, event | origin | headers)
        return event_id

    def position(self, event_id: str) -> tuple[int, int]:
        """The position of the letter of an event."""
        consumer = Consumer(self.kafka.connection.configuration({"group.id": "devstack"}))
        try:
            consumer.assign([TopicPartition(f"{self.topic}.dlq", number, 0) for number in range(3)])
            while True:
                message = consumer.poll(60)
                assert message is not None, "the letter is not in the topic"
                if message.error() is None and ("ce_id", event_id.encode()) in (headers_of(message) or ()):
                    return message.partition() or 0, message.offset() or 0
        finally:
            consumer.close()

    def redrive(self, *positions: tuple[int, int], caller: Caller = ADMIN) -> list[RedriveResult]:
        return self.redriving.redrive(Redrive(positions, caller=caller))

    def rows(self) -> list[Any]:
        with self.database.read() as tx:
            return list(tx.execute(select(outbox.table).order_by(outbox.table.c.id)))

    def audited(self) -> list[tuple[str, str, str, list[str]]]:
        """Tenant, caller, method and resources of each row of the audit log."""
        log = audit_log.table.c
        with self.database.read() as tx:
            found = tx.execute(select(log.tenant, log.caller, log.method, log.resources).order_by(log.id)).all()
        return [(row.tenant, row.caller, row.method, orjson.loads(row.resources)) for row in found]


@pytest.fixture
def letters(kafka: Kafka, database_url: str) -> Iterator[Letters]:
    database = Database(database_url)
    with database.write() as tx:
        metadata.create_all(tx)
    topic = f"facts-{uuid4().hex}"
    kafka.create_topics(f"{topic}.dlq")
    yield Letters(kafka, database, topic, redriving(kafka.connection, topic, database))
    database.close()


def redriving(connection: KafkaConnection, topic: str, database: Database) -> Redriving:
    return Redriving(connection, topic, database=database, outbox=outbox, audit_log=audit_log)


def test_the_event_of_a_letter_is_written_for_its_original_topic_as_it_was(letters: Letters) -> None:
    event_id = letters.set_aside("the kéy", '{"a": "ö"}'.encode(), traceparent="00-1-2-01")

    results = letters.redrive(letters.position(event_id))

    assert results == [RedriveResult(Outcome.REDRIVEN, event_id)]
    (row,) = letters.rows()
    assert (row.topic, row.key, row.type, row.payload) == (letters.topic, "the kéy", "OPENED", '{"a": "ö"}')
    assert row.event_id == event_id
    assert orjson.loads(row.headers) == {
        "ce_id": event_id,
        "ce_type": "OPENED",
        "ce_tenant": "acme",
        "ce_sequence": "0000000000000000042",
        "traceparent": "00-1-2-01",
    }
    assert letters.audited() == [("acme", "user:ann", METHOD, [event_id])]


def test_a_letter_is_redriven_once(letters: Letters) -> None:
    first, second, third = (letters.set_aside() for _ in range(3))
    positions = [letters.position(each) for each in (first, second, third)]

    letters.redrive(positions[1])
    again = letters.redrive(positions[2], positions[1], positions[0])

    assert again == [
        RedriveResult(Outcome.REDRIVEN, third),
        RedriveResult(Outcome.ALREADY_REDRIVEN, second),
        RedriveResult(Outcome.REDRIVEN, first),
    ]
    assert [each.outcome for each in letters.redrive(*positions)] == [Outcome.ALREADY_REDRIVEN] * 3
    assert [row.event_id for row in letters.rows()] == [second, third, first]
    assert [resources for *_, resources in letters.audited()] == [[second], [third, first]]


def test_letters_of_another_tenant_do_not_exist(letters: Letters) -> None:
    other, own = letters.set_aside(tenant="other"), letters.set_aside()
    unmarked = letters.set_aside(tenant="")

    results = letters.redrive(letters.position(other), letters.position(own), letters.position(unmarked))

    assert results == [
        RedriveResult(Outcome.NOT_FOUND),
        RedriveResult(Outcome.REDRIVEN, own),
        RedriveResult(Outcome.NOT_FOUND),  # an event without a tenant belongs to the tenant `default`
    ]
    assert [row.event_id for row in letters.rows()] == [own]


def test_positions_without_a_letter_are_not_found(letters: Letters) -> None:
    partition, offset = letters.position(letters.set_aside())

    results = letters.redrive((partition, offset + 1), (partition, 2**63 - 1), (99, 0), (2**31 - 1, 0))

    assert results == [RedriveResult(Outcome.NOT_FOUND)] * 4
    assert (letters.rows(), letters.audited()) == ([], [])


def test_a_letter_without_its_whole_value_cannot_be_redriven(letters: Letters) -> None:
    cut = letters.set_aside(value=b"eA==", dlq_encoding="base64", dlq_truncated="true")
    binary = letters.set_aside(value=base64.b64encode(b"\xff\x00"), dlq_encoding="base64")
    broken = letters.set_aside(value=b"no base64", dlq_encoding="base64")
    with_nul = letters.set_aside(value=b"\x00")
    texts = letters.set_aside(value=base64.b64encode(b"[1]"), dlq_encoding="base64")

    results = letters.redrive(*map(letters.position, (cut, binary, broken, with_nul, texts)))

    assert [each.outcome for each in results] == [Outcome.NOT_REDRIVABLE] * 4 + [Outcome.REDRIVEN]
    assert [row.payload for row in letters.rows()] == ["[1]"]


def test_headers_with_any_bytes_become_text_that_both_databases_store(letters: Letters) -> None:
    event_id = letters.set_aside("k\x00", note=b"a\x00\xff", ce_type="x" * 5_000)
    position = letters.position(event_id)

    assert letters.redrive(position) == [RedriveResult(Outcome.REDRIVEN, event_id)]
    (row,) = letters.rows()
    assert orjson.loads(row.headers)["note"] == "a\ufffd\ufffd"
    assert row.type == "x" * 5_000


def test_a_failed_transaction_leaves_the_letter_waiting(letters: Letters) -> None:
    event_id = letters.set_aside()
    position = letters.position(event_id)
    with letters.database.write() as tx:
        tx.execute(text("ALTER TABLE audit_log RENAME TO hidden"))
    with pytest.raises(ShopError):
        letters.redrive(position)
    with letters.database.write() as tx:
        tx.execute(text("ALTER TABLE hidden RENAME TO audit_log"))

    assert letters.rows() == []
    assert letters.redrive(position) == [RedriveResult(Outcome.REDRIVEN, event_id)]


def test_a_letter_that_was_not_recorded_is_redriven_again(letters: Letters) -> None:
    event_id = letters.set_aside()
    partition, offset = letters.position(event_id)
    letters.redrive((partition, offset))
    consumer = Consumer(letters.kafka.connection.configuration({"group.id": GROUP, "enable.auto.commit": False}))
    consumer.commit(offsets=[TopicPartition(f"{letters.topic}.dlq", partition, offset)], asynchronous=False)
    consumer.close()

    assert letters.redrive((partition, offset)) == [RedriveResult(Outcome.REDRIVEN, event_id)]
    # Both rows have the id of the event, so consumers recognize the repeat.
    assert [row.event_id for row in letters.rows()] == [event_id] * 2


def test_without_a_broker_or_its_topic_the_call_is_refused(letters: Letters) -> None:
    absent = redriving(letters.kafka.connection, f"absent-{uuid4().hex}", letters.database)
    away = redriving(KafkaConnection(f"127.0.0.1:{free_ports(1)[0]}"), letters.topic, letters.database)

    for each in (absent, away):
        with pytest.raises(BrokerUnavailable):
            each.redrive(Redrive(((0, 0),), caller=ADMIN))


@pytest.mark.parametrize(
    ("positions", "fields"),
    [
        ([], ["letters"]),
        ([(0, number) for number in range(LETTERS_MAX + 1)], ["letters"]),
        ([(-1, 0), (0, -1)], ["letters[0].partition", "letters[1].offset"]),
        ([(0, 1), (1, 1), (0, 1)], ["letters[2].offset"]),
    ],
)
def test_wrong_positions_are_named(positions: list[tuple[int, int]], fields: list[str]) -> None:
    request = pb.RedriveDeadLettersRequest(
        letters=[pb.DeadLetterPosition(partition=partition, offset=offset) for partition, offset in positions]
    )

    with pytest.raises(InvalidInput) as refused:
        parse(request.letters, ADMIN)

    assert [each.field for each in refused.value.violations] == fields
