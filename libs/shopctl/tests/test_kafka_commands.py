import base64
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from devstack import kafka as brokers
from devstack.kafka import Kafka, Record
from devstack.process import Process
from libs.common.tests.test_any_message import BAD, STILL_GOOD
from shop_common.events.broker import Commit
from shop_common.events.dead_letter_topic import Redriven
from shopctl.__main__ import main
from testkit.foreign import Foreign, send

ID = "01930d4a-5f20-7c61-9e0b-3d2f6f1b7a01"


class Shell:
    """Runs commands against one broker."""

    def __init__(self, kafka: Kafka, capsys: pytest.CaptureFixture[str]) -> None:
        self.kafka = kafka
        self._capsys = capsys

    def text(self, command: str, *, code: int = 0) -> str:
        assert main([*command.split(), "--bootstrap", self.kafka.bootstrap]) == code
        output = self._capsys.readouterr()
        return output.err if code else output.out

    def lines(self, command: str) -> list[Any]:
        return [json.loads(line) for line in self.text(f"{command} --json").splitlines()]

    def set_aside(self, key: str, value: str, *, topic: str = "order-events", **headers: str) -> None:
        origin = {"dlq_topic": topic, "dlq_partition": "2", "dlq_offset": "7", "dlq_consumer": "inventory-api"}
        reason = {"dlq_reason": "FAILED", "dlq_error": "ValueError: a\x1b[31m [bold]bad[/] day"}
        event = {"ce_id": ID, "ce_type": "ORDER_CANCELLED"}
        self.kafka.produce(f"{topic}.dlq", key, value, event | origin | reason | headers)

    def events(self, count: int, topic: str = "order-events") -> list[Record]:
        return self.kafka.consume(topic, until=lambda records: len(records) >= count)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """Commands for a broker that no other test has written to."""
    with brokers.provide() as started:
        yield Shell(started, capsys)


def test_topics_are_listed_with_their_partitions_and_events(shell: Shell) -> None:
    shell.kafka.produce("order-events", "a", b"{}")
    shell.kafka.produce("order-events", "a", b"{}")

    (topics,) = shell.lines("kafka-topics")

    found = {topic["topic"]: topic for topic in topics}
    assert set(found) == {"order-events", "inventory-events", "order-events.dlq", "inventory-events.dlq"}
    assert found["order-events"]["events"] == 2
    assert len(found["order-events"]["partitions"]) == 3
    assert "order-events" in shell.text("kafka-topics")


def test_topics_that_are_there_stay_as_they_are(shell: Shell) -> None:
    (outcomes,) = shell.lines("kafka-create-topics --partitions 9")

    assert {(one["partitions"], one["outcome"]) for one in outcomes} == {(3, "already exists")}


def test_events_are_printed_whole_with_exact_numbers(shell: Shell) -> None:
    value = '{"event_type": "ORDER_CREATED",\n "data": {"total_amount": 1000000000000.000000001}}'
    shell.kafka.produce("order-events", "a", value, {"ce_type": "ORDER_CREATED"})
    shell.kafka.produce("order-events", "a", b"\xff not JSON")

    out = shell.text("kafka-consume-orders --from-beginning --json")

    whole, poisonous = map(json.loads, out.splitlines())
    assert "1000000000000.000000001" in out
    assert (whole["key"], whole["headers"]) == ("a", {"ce_type": "ORDER_CREATED"})
    assert whole["value"]["event_type"] == "ORDER_CREATED"
    assert (poisonous["value"], poisonous["raw"]) == (None, "\ufffd not JSON")


def test_no_more_events_are_printed_than_asked_for(shell: Shell) -> None:
    for number in range(5):
        shell.kafka.produce("inventory-events", str(number), b"{}")

    assert len(shell.lines("kafka-consume-inventory --from-beginning --limit 2")) == 2
    assert len(shell.text("kafka-consume-inventory --from-beginning").splitlines()) == 5
    assert len(shell.lines("kafka-consume-inventory --from-beginning --follow --limit 5")) == 5


def test_events_and_dead_letters_are_printed_with_their_tenant(shell: Shell) -> None:
    shell.kafka.produce("order-events", "a", b"{}", {"ce_type": "ORDER_CREATED", "ce_tenant": "acme"})
    shell.kafka.produce("order-events", "b", b"{}", {"ce_type": "ORDER_CREATED"})
    shell.set_aside("a", "{}", ce_tenant="acme")

    lines = shell.text("kafka-consume-orders --from-beginning").splitlines()

    assert sorted(line.split()[-3:-1] for line in lines) == [["acme", "a"], ["default", "b"]]
    assert [letter["tenant"] for letter in shell.lines("dlq")] == ["acme"]


def test_following_prints_new_events_and_ends_with_0_on_ctrl_c(shell: Shell) -> None:
    shell.kafka.produce("order-events", "a", b"{}", {"ce_type": "TOLD_BEFORE"})
    with _following(shell.kafka) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert "TOLD_BEFORE" not in process.log


def test_following_ends_with_a_sentence_when_the_broker_is_gone() -> None:
    with ExitStack() as broker_runs:
        broker = broker_runs.enter_context(brokers.provide())
        with _following(broker) as process:
            broker_runs.close()
            assert process.wait(20) == 1
            assert process.log.splitlines()[-1].startswith("kafka-consume-orders: Kafka does not respond")


@contextmanager
def _following(broker: Kafka) -> Iterator[Process]:
    """A process that has printed the first new event."""
    arguments = ["-m", "shopctl", "kafka-consume-orders", "--bootstrap", broker.bootstrap]
    process = Process("following", [sys.executable, *arguments]).start()
    try:
        deadline = time.monotonic() + 20
        # It prints only events after it has read the end offsets, at an unknown time. So write until it prints one.
        while "TOLD_NOW" not in process.log:
            assert time.monotonic() < deadline, process.log
            broker.produce("order-events", "a", b"{}", {"ce_type": "TOLD_NOW"})
        yield process
    finally:
        process.stop()


def test_dead_letters_are_listed_with_why_and_from_where(shell: Shell) -> None:
    shell.set_aside("a", "{}")

    (letter,) = shell.lines("dlq")

    assert letter["topic"] == "order-events.dlq"
    assert (letter["event_id"], letter["type"], letter["key"]) == (ID, "ORDER_CANCELLED", "a")
    assert (letter["reason"], letter["from"]) == ("FAILED", "order-events:2:7")
    assert (letter["tenant"], letter["redriven"]) == ("default", False)
    table = shell.text("dlq list --topic order-events")
    assert "[bold]bad[/] day" in table
    assert "\x1b" not in table


def test_a_redriven_letter_is_the_event_that_it_was(shell: Shell) -> None:
    shell.set_aside("the key", '{"a": 1}', traceparent="00-1-2-01")

    assert shell.text("dlq redrive --topic order-events --all") == "1 letter redriven to order-events\n"

    (event,) = shell.events(1)
    assert (event.key, event.value) == ("the key", b'{"a": 1}')
    assert event.headers == {"ce_id": ID, "ce_type": "ORDER_CANCELLED", "traceparent": "00-1-2-01"}


def test_all_redrives_each_letter_once(shell: Shell) -> None:
    for number in range(4):
        shell.set_aside(str(number), "{}")
    shell.text("dlq redrive --topic order-events.dlq --all")
    shell.set_aside("late", "{}")

    assert [letter["key"] for letter in shell.lines("dlq list --waiting")] == ["late"]
    assert shell.text("dlq redrive --topic order-events --all").startswith("1 letter ")
    assert shell.text("dlq redrive --topic order-events --all").startswith("0 letters ")
    assert sorted(event.key or "" for event in shell.events(5)) == ["0", "1", "2", "3", "late"]


def test_a_chosen_letter_is_remembered_by_all(shell: Shell) -> None:
    for number in range(3):
        shell.set_aside("same key, same partition", f'"{number}"')
    partition = shell.lines("dlq")[0]["partition"]

    shell.text(f"dlq redrive --topic order-events --offset {partition}:1")

    assert [letter["redriven"] for letter in shell.lines("dlq")] == [False, True, False]
    assert shell.text("dlq redrive --topic order-events --all").startswith("2 letters ")
    assert [event.json() for event in shell.events(3)] == ["1", "0", "2"]


def test_a_letter_named_again_goes_out_again(shell: Shell) -> None:
    shell.set_aside("a", "{}")
    (letter,) = shell.lines("dlq")
    for _ in range(2):
        shell.text(f"dlq redrive --topic order-events --offset {letter['partition']}:{letter['offset']}")

    assert len(shell.events(2)) == 2


def test_a_letter_that_does_not_exist_stops_all_that_were_named_with_it(shell: Shell) -> None:
    shell.set_aside("a", "{}")
    (letter,) = shell.lines("dlq")

    place = f"{letter['partition']}:{letter['offset']}"
    output = shell.text(f"dlq redrive --topic order-events --offset {place} --offset 0:99", code=1)

    assert output == "dlq: there is no dead letter 0:99 in order-events.dlq; nothing was redriven\n"
    assert shell.lines("dlq list --waiting")


def test_a_value_that_is_no_text_is_redriven_byte_for_byte(shell: Shell) -> None:
    value = b"\x00\xff"
    shell.set_aside("a", base64.b64encode(value).decode(), dlq_encoding="base64")

    shell.text("dlq redrive --topic order-events --all")

    assert [event.value for event in shell.events(1)] == [value]


def test_a_value_that_was_cut_is_taken_from_where_it_came_from(shell: Shell) -> None:
    shell.kafka.produce("order-events", "a", b"all of it")
    (event,) = shell.events(1)
    cut = base64.b64encode(b"all").decode()
    origin = {"dlq_partition": str(event.partition), "dlq_offset": str(event.offset)}
    shell.set_aside("a", cut, dlq_encoding="base64", dlq_truncated="true", **origin)

    shell.text("dlq redrive --topic order-events --all")

    assert [event.value for event in shell.events(2)] == [b"all of it"] * 2


def test_a_value_that_was_cut_and_is_gone_is_left_alone(shell: Shell) -> None:
    shell.set_aside("gone", "", dlq_truncated="true", dlq_offset="99")
    shell.set_aside("there", "{}")

    assert "cannot redrive 1 letter: truncated" in shell.text("dlq redrive --topic order-events --all", code=1)

    assert [event.key for event in shell.events(1)] == ["there"]
    assert [letter["key"] for letter in shell.lines("dlq list --waiting")] == ["gone"]


@pytest.mark.parametrize(
    "forged",
    [
        {"dlq_encoding": "base64"},
        {"dlq_truncated": "true", "dlq_partition": "no number"},
        {"dlq_truncated": "true", "dlq_partition": "99", "dlq_offset": "0"},
        {"dlq_truncated": "true", "dlq_partition": "0", "dlq_offset": "0"},
    ],
)
def test_a_letter_whose_headers_are_not_true_is_left_alone(shell: Shell, forged: dict[str, str]) -> None:
    for key in "abcdefgh":
        shell.kafka.produce("order-events", key, b"another event")
    shell.set_aside("forged", "no base64!", **forged)
    shell.set_aside("true", "{}")

    assert "not as its headers state" in shell.text("dlq redrive --topic order-events --all", code=1)

    assert [event.key for event in shell.events(9) if event.value != b"another event"] == ["true"]


@pytest.mark.parametrize("topic", ["order-events", "order-events.dlq"])
def test_whatever_lies_in_a_topic_can_be_read(shell: Shell, topic: str) -> None:
    times = [Foreign(b"{}", b"k", timestamp_ms=milliseconds) for milliseconds in (2**62, -(2**62), -2)]
    no_time = [(b"ce_time", b"0001-01-01T00:00:00+14:00")]
    surrogate = Foreign(b'{"event_type": "X", "data": {"a": "\\ud800"}}', b"\xff", no_time)
    odd = [*BAD.values(), *STILL_GOOD.values(), *times, surrogate]
    last = Foreign(b'{"last": 1}', b"the last")
    send(shell.kafka.bootstrap, topic, [*odd, last])

    if topic == "order-events":
        assert "the last" in shell.text("kafka-consume-orders --from-beginning")
        assert len(shell.lines("kafka-consume-orders --from-beginning")) == len(odd) + 1
    else:
        assert shell.text("dlq list")
        assert len(shell.lines("dlq list")) == len(odd) + 1
        assert shell.text("dlq redrive --topic order-events --all").startswith(f"{len(odd) + 1} letters")
    assert {one["events"] for one in shell.lines("kafka-topics")[0] if one["topic"] == topic} == {len(odd) + 1}


def test_the_record_of_redriven_letters_is_read_as_it_was_written() -> None:
    memory = Redriven(3).adding([5, 6, 7, 9, 11, 12])

    assert memory.commit() == Commit(3, "5-7,9,11-12")
    assert Redriven.read(memory.commit(), first=0) == memory
    assert Redriven.read(memory.commit(), first=6) == Redriven(8, frozenset({9, 11, 12}))
    assert memory.adding([3, 4]) == Redriven(8, frozenset({9, 11, 12}))
    assert [offset in memory for offset in (2, 3, 5, 8)] == [True, False, True, False]
