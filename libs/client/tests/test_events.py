"""A consumer of shop_client.events handles each event at least once, drops repeats, and skips nothing that fails."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Message

from devstack.kafka import EMBEDDED, Kafka
from libs.client.tests.conftest import folder_of_this_repository
from shop_client.events import Event, EventConsumer
from shop_client.events.consumer import Handler
from shop_client.events.event import Undecodable, decode
from shop_client.events.repeats import Repeats
from testkit.contract import Example, validator
from testkit.eventually import eventually
from tests.markdown import code_blocks

EXAMPLES = [example for example in validator().examples() if not example.topic.endswith(".dlq")]
Headers = list[tuple[str, str | bytes | None]]


@pytest.fixture(params=["embedded_broker", "best_broker"])
def broker(request: pytest.FixtureRequest) -> Kafka:
    found: Kafka = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def topic(broker: Kafka) -> str:
    name = f"client-{uuid4().hex}"
    broker.create_topics(name, f"{name}.mailer.dlq", partitions=1)
    return name


def produce(
    broker: Kafka, topic: str, number: int, *, order: str = "order-1", event_type: str = "ORDER_CREATED"
) -> None:
    """Send an event of an order, with this sequence."""
    body = {"event_type": event_type, "timestamp": "2026-01-02T03:04:05Z", "data": {"id": order, "number": number}}
    headers = {"ce_id": f"event-{number}", "ce_source": "/shop/order-api", "ce_sequence": f"{number:019d}"}
    broker.produce(topic, order, json.dumps(body), headers)


@contextmanager
def consuming(broker: Kafka, topic: str, handler: Handler, **options: object) -> Iterator[None]:
    """Run a consumer in a thread. An exception of its `run` is raised at the end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            consumer.run()
        except BaseException as error:
            raised.append(error)

    # The embedded broker removes a member that has left only when its session ends.
    options = {"options": {"session.timeout.ms": 6000}, **options}
    consumer = EventConsumer(broker.bootstrap, **{"group": "mailer", "topics": [topic], "handler": handler, **options})  # type: ignore[arg-type]  # options of one call
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join()
    if raised:
        raise raised[0]


class Crash(BaseException):
    """Ends a consumer in the middle of an event, as the end of its process would."""


def test_an_event_is_committed_only_after_its_handler_has_returned(broker: Kafka, topic: str) -> None:
    for number in range(1, 5):
        produce(broker, topic, number)
    handled: list[int] = []
    crashed = threading.Event()

    def crash_at_3(event: Event) -> None:
        if event.sequence == 3:
            crashed.set()
            raise Crash
        handled.append(event.sequence or 0)

    with pytest.raises(Crash), consuming(broker, topic, crash_at_3):
        assert crashed.wait(60)
    assert handled == [1, 2]

    with consuming(broker, topic, lambda event: handled.append(event.sequence or 0)):
        eventually(lambda: len(handled) >= 4)
    assert handled == [1, 2, 3, 4]


def test_repeats_are_dropped_and_failures_go_to_the_dead_letters(embedded_broker: Kafka) -> None:
    topic = f"client-{uuid4().hex}"
    handled: list[tuple[str, int | None]] = []
    attempts: list[str] = []
    embedded_broker.create_topics(topic, f"{topic}.mailer.dlq", partitions=1)
    for number in (1, 2, 1, 3, 2):
        produce(embedded_broker, topic, number)
    produce(embedded_broker, topic, 2, order="order-2")
    produce(embedded_broker, topic, 4, event_type="ORDER_UNKNOWN")
    embedded_broker.produce(topic, "order-1", b"\xff no event", {"dlq_reason": "forged"})
    produce(embedded_broker, topic, 5, order="failing")
    produce(embedded_broker, topic, 6)

    def handle(event: Event) -> None:
        if event.key == "failing":
            attempts.append(event.id)
            raise LookupError("no mail address\nsecond line")
        handled.append((event.key, event.sequence))

    with consuming(embedded_broker, topic, handle, types={"ORDER_CREATED"}, attempts_max=3):
        eventually(lambda: ("order-1", 6) in handled)

    assert [number for order, number in handled if order == "order-1"] == [1, 2, 3, 6]
    assert [number for order, number in handled if order == "order-2"] == [2]
    assert attempts == ["event-5"] * 3
    letters = embedded_broker.consume(f"{topic}.mailer.dlq", lambda records: len(records) == 2)
    undecodable, failed = sorted(letters, key=lambda letter: letter.headers["dlq_reason"], reverse=True)
    assert undecodable.value == b"\xff no event"
    assert undecodable.headers["dlq_reason"] == "UNDECODABLE"
    assert failed.key == "failing"
    changing = {"ce_sequence", "dlq_partition", "dlq_offset"}
    assert failed.json()["data"]["number"] == 5
    assert {name: value for name, value in failed.headers.items() if name not in changing} == {
        "ce_id": "event-5",
        "ce_source": "/shop/order-api",
        "dlq_topic": topic,
        "dlq_consumer": "mailer",
        "dlq_reason": "FAILED",
        "dlq_error": "LookupError: no mail address",
    }


def test_an_event_that_cannot_become_a_dead_letter_is_not_skipped(best_broker: Kafka) -> None:
    """The name of the dead-letter topic is invalid, because the name of the group is no part of a topic's name."""
    if best_broker.description == EMBEDDED:
        pytest.skip("the embedded broker accepts every name of a topic")
    topic, group = f"client-{uuid4().hex}", "no topic!"
    best_broker.create_topics(topic, partitions=1)
    produce(best_broker, topic, 1)
    produce(best_broker, topic, 2)
    attempts: list[int] = []
    handled: list[int] = []

    def fail(event: Event) -> None:
        attempts.append(event.sequence or 0)
        raise LookupError

    with consuming(best_broker, topic, fail, group=group, attempts_max=1):
        eventually(lambda: bool(attempts))
    with consuming(best_broker, topic, lambda event: handled.append(event.sequence or 0), group=group):
        eventually(lambda: len(handled) == 2)

    assert (attempts, handled) == ([1], [1, 2])


def test_the_consumer_of_the_documentation_runs_and_stops_by_a_signal(embedded_broker: Kafka, tmp_path: Path) -> None:
    (program,) = code_blocks((folder_of_this_repository() / "docs" / "events.md").read_text(), "python")
    topic = f"client-{uuid4().hex}"
    embedded_broker.create_topics(topic)
    program = program.replace("localhost:9092", embedded_broker.bootstrap).replace('"order-events"', f'"{topic}"')
    (example,) = (each for each in EXAMPLES if each.type == "ORDER_CONFIRMED")
    embedded_broker.produce(topic, example.key, example.value, example.headers)
    output = tmp_path / "output"

    with output.open("w") as stdout:
        process = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=stdout)
        try:
            eventually(lambda: example.key in output.read_text())
        finally:
            process.terminate()
            exit_code = process.wait(60)

    assert exit_code == 0
    total = example.payload["data"]["total_amount"]
    assert output.read_text() == f"order {example.key} of default: {total} {example.payload['data']['currency']}\n"


def message(example: Example) -> Message:
    headers: Headers = [(name, value.encode()) for name, value in example.headers.items()]
    return Message(example.topic, 0, 0, example.key.encode(), example.value, headers)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.type)
def test_every_example_of_the_contract_is_decoded(example: Example) -> None:
    event = decode(message(example))

    assert (event.type, event.key, event.topic) == (example.type, example.key, example.topic)
    assert event.id == example.headers["ce_id"]
    assert event.sequence == int(example.headers["ce_sequence"])
    assert event.tenant == example.headers.get("ce_tenant", "default")
    assert event.time == datetime.fromisoformat(example.headers["ce_time"])
    assert event.time.tzinfo is UTC
    kind, _, identity = event.entity.partition("/")
    expected = {"order": "id", "reservation": "reservation_id", "item": "item_id"}[kind]
    assert identity == str(event.data[expected])
    assert (kind == "order") == (example.topic == "order-events")


def test_amounts_are_exact() -> None:
    body = '{"event_type": "X", "timestamp": "2026-01-02T03:04:05+02:00", "data": {"price": 0.1, "total": 5}}'

    event = decode(Message("topic", 1, 2, b"key", body.encode(), []))

    assert event.data == {"price": Decimal("0.1"), "total": 5}
    assert event.time == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert (event.id, event.sequence, event.actor) == ("topic/1/2", None, None)


@pytest.mark.parametrize(
    "value",
    [b"", b"[]", b'{"event_type": 1, "timestamp": "2026-01-02T03:04:05Z", "data": {}}', b"[" * 100_000]
    + [f'{{"event_type": "X", "timestamp": "{time}", "data": {{}}}}'.encode() for time in ("", "2026-01-02T03:04:05")],
)
def test_a_message_that_is_no_event_is_undecodable(value: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(Message("topic", 0, 0, b"key", value, []))


def test_repeats_are_those_of_the_entities_handled_last() -> None:
    def event(reservation: int, sequence: int) -> Event:
        body = {"event_type": "X", "timestamp": "2026-01-02T03:04:05Z", "data": {"reservation_id": reservation}}
        headers: Headers = [("ce_sequence", str(sequence).encode())]
        return decode(Message("topic", 0, 0, b"1", json.dumps(body).encode(), headers))

    repeats = Repeats(entities_max=2)
    for reservation in (1, 2, 1, 3):
        repeats.add(event(reservation, 10))

    assert repeats.includes(event(1, 10))
    assert repeats.includes(event(3, 9))
    assert not repeats.includes(event(3, 11))
    assert not repeats.includes(event(2, 10)), "forgotten, because two others were handled later"
