"""The reader of the events: one for all viewers, only while somebody looks, and each tenant sees its own events."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from console.feeds import events
from console.feeds.events import EVENT_TOPICS, KEPT_MAX, LETTER_TOPICS, EventFilter, EventReader, Events, ShownEvent
from console.feeds.feed import Unreadable
from devstack import kafka as brokers
from devstack.kafka import Kafka
from devstack.ports import free_ports
from shop_common.events.kafka_connection import KafkaConnection
from shopctl.__main__ import main
from testkit.eventually import eventually

ALL = EventFilter(EVENT_TOPICS)


@pytest.fixture
def broker() -> Iterator[Kafka]:
    with brokers.provide() as started:
        yield started


@pytest.fixture
def reader(broker: Kafka) -> Iterator[EventReader]:
    made = EventReader(broker.connection)
    yield made
    made.stop()


def _produce(broker: Kafka, tenant: str, key: str, type_: str = "ORDER_CREATED", topic: str = "order-events") -> None:
    value = json.dumps({"event_type": type_, "data": {"order_id": f"order of {key}", "text": "<b>bold</b>"}})
    headers = {"ce_id": f"id of {key}", "ce_type": type_, "ce_tenant": tenant}
    if topic in LETTER_TOPICS:
        headers |= {"dlq_reason": "FAILED", "dlq_error": "ValueError: no", "dlq_consumer": "inventory-api"}
    broker.produce(topic, key, value, headers)


def _look(reader: EventReader, tenant: str, chosen: EventFilter = ALL) -> Events | None:
    return asyncio.run(reader.read(tenant, chosen))


def _rows(reader: EventReader, tenant: str, chosen: EventFilter = ALL) -> tuple[ShownEvent, ...]:
    """Return the rows after the reader has caught up."""
    found: list[Events] = []

    def is_read() -> bool:
        looked = _look(reader, tenant, chosen)
        found[:] = [] if looked is None else [looked]
        return bool(found)

    eventually(is_read)
    return found[0].rows


def _keys(reader: EventReader, tenant: str, chosen: EventFilter = ALL) -> set[str]:
    return {row.key for row in _rows(reader, tenant, chosen)}


def test_a_viewer_sees_old_and_new_events_of_the_own_tenant_only(broker: Kafka, reader: EventReader) -> None:
    _produce(broker, "acme", "old")
    _produce(broker, "other", "theirs")
    assert _keys(reader, "acme") == {"old"}

    _produce(broker, "acme", "new", "STOCK_UPDATED", "inventory-events")

    eventually(lambda: _keys(reader, "acme") == {"old", "new"})
    # A tenant whose viewer comes later sees its old events, too, and the first tenant keeps its own.
    assert _keys(reader, "other") == {"theirs"}
    assert _keys(reader, "acme") == {"old", "new"}


def test_events_are_found_by_topic_type_and_id(broker: Kafka, reader: EventReader) -> None:
    _produce(broker, "acme", "1")
    _produce(broker, "acme", "2", "STOCK_RESERVED", "inventory-events")

    assert _keys(reader, "acme", EventFilter(("order-events",))) == {"1"}
    assert _keys(reader, "acme", EventFilter(EVENT_TOPICS, type="reserved")) == {"2"}
    for id_ in ("2", "id of 2", "order of 2"):
        assert _keys(reader, "acme", EventFilter(EVENT_TOPICS, id=id_)) == {"2"}
    assert _keys(reader, "acme", EventFilter(EVENT_TOPICS, id="3")) == set()


def test_a_dead_letter_has_its_reason_and_whether_it_was_redriven(broker: Kafka, reader: EventReader) -> None:
    letters = EventFilter(LETTER_TOPICS)
    _produce(broker, "acme", "bad", topic="order-events.dlq")
    (letter,) = _rows(reader, "acme", letters)
    assert (letter.reason, letter.error, letter.consumer) == ("FAILED", "ValueError: no", "inventory-api")
    assert not letter.is_redriven

    assert main(["dlq", "redrive", "--topic", "order-events", "--all", "--bootstrap", broker.bootstrap]) == 0

    eventually(lambda: _rows(reader, "acme", letters)[0].is_redriven)
    assert _rows(reader, "other", letters) == ()


def test_any_bytes_in_a_topic_are_shown(broker: Kafka, reader: EventReader) -> None:
    broker.produce("order-events", "a", b"\xff\x00", {"ce_tenant": "acme"})
    broker.produce("order-events", "b", b'{"data": {"id": "\\ud800"}}', {"ce_tenant": "acme"})
    broker.produce("order-events", "c", b"[" * 10_000, {"ce_tenant": "acme", "ce_type": "x" * 10_000})

    rows = _rows(reader, "acme")

    assert len(rows) == 3
    for row in rows:
        assert len(f"{row.type}{row.data}".encode()) < 2_000


def test_what_is_kept_is_bounded(broker: Kafka, reader: EventReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TENANTS_MAX", 1)
    for number in range(KEPT_MAX + 20):
        _produce(broker, "acme", "same", f"NUMBER_{number:03}")

    types = [row.type for row in _rows(reader, "acme")]

    assert types == [f"NUMBER_{number:03}" for number in reversed(range(20, KEPT_MAX + 20))]
    with pytest.raises(Unreadable, match="too many tenants"):
        _look(reader, "other")


def test_nothing_is_read_when_nobody_looks(broker: Kafka, reader: EventReader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not reader.is_running
    _produce(broker, "acme", "1")
    assert _keys(reader, "acme") == {"1"}
    eventually(lambda: reader.is_running)

    monkeypatch.setattr(events, "UNWATCHED_SECONDS", 0.0)

    eventually(lambda: not reader.is_running)
    monkeypatch.undo()
    assert _keys(reader, "acme") == {"1"}


def test_an_absent_broker_is_reported() -> None:
    reader = EventReader(KafkaConnection(f"localhost:{free_ports(1)[0]}"))

    def is_reported() -> bool:
        try:
            _look(reader, "acme")
        except Unreadable as fault:
            return "broker does not respond" in str(fault)
        return False

    try:
        eventually(is_reported)
    finally:
        reader.stop()


def test_a_stopped_reader_does_not_start_again(broker: Kafka) -> None:
    reader = EventReader(broker.connection)
    assert _keys(reader, "acme") == set()

    reader.stop()

    _look(reader, "acme")
    assert not reader.is_running
