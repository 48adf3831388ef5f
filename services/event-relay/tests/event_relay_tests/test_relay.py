"""The relay ships events in order and at least once, whatever fails around it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import structlog
from sqlalchemy import delete, insert, select, update
from uuid_utils import uuid7

from event_relay import publisher
from event_relay import relay as relay_module
from event_relay.outbox_rows import ROWS_MAX
from event_relay.relay import AHEAD_ROWS, DeliveryFailed, Relay
from shop_common.errors import ShopError
from shop_common.events import kafka_connection
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.kafka_settings import OWN_OPTIONS
from shop_common.events.outbox import SHARDS
from testkit.drivers.relay import OutboxDriver, running, values_by_key
from testkit.eventually import eventually


def ship_all(relay: Relay) -> int:
    """Run passes until no event is left, and the shipped ones are deleted. Returns the number of events."""
    total = 0
    while shipped := relay.relay_once():
        total += shipped
    return total


def test_events_of_a_key_are_shipped_in_the_order_of_their_ids_and_deleted(driver: OutboxDriver) -> None:
    driver.write_numbered(keys=40, each=60)

    assert ship_all(driver.relay()) == 2400

    assert driver.waiting() == []
    records = driver.shipped(2400)
    assert len(records) == 2400
    assert values_by_key(records) == {f"key-{key}": list(range(60)) for key in range(40)}


def test_an_event_is_a_cloudevent_in_binary_mode(driver: OutboxDriver) -> None:
    event = driver.event("7", {"n": 1})
    driver.write(event)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    driver.database.transact(lambda tx: tx.execute(update(driver.outbox.table).values(traceparent=trace)))
    (row_id,) = driver.database.query(lambda tx: tx.execute(select(driver.outbox.table.c.id)).scalars().all())

    driver.relay().relay_once()

    (record,) = driver.shipped(1)
    assert (record.key, record.json()) == ("7", {"n": 1})
    assert record.headers == {
        "ce_specversion": "1.0",
        "ce_id": event.event_id,
        "ce_type": "TESTED",
        "ce_source": "/shop/test",
        "ce_time": event.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "ce_subject": "7",
        "ce_tenant": "default",
        "ce_sequence": f"{row_id:019d}",
        "content-type": "application/json",
        "traceparent": trace,
    }


def test_a_rows_own_headers_override_ours(driver: OutboxDriver) -> None:
    headers = {"ce_id": "the-original", "ce_source": "/shop/elsewhere", "dlq-reason": "ungültig"}
    driver.write(driver.event("7", 1, headers=orjson.dumps(headers).decode()))

    driver.relay().relay_once()

    (record,) = driver.shipped(1)
    assert headers.items() <= record.headers.items()
    assert record.headers["ce_type"] == "TESTED"


def test_an_event_that_was_acknowledged_and_not_deleted_is_repeated_with_the_same_id(driver: OutboxDriver) -> None:
    driver.write(driver.event("7", 1))
    assert driver.relay("crashed", lease_seconds=1).relay_once() == 1
    assert driver.waiting() == [1]

    with running(driver.relay("its successor")):
        eventually(lambda: not driver.waiting())

    first, second = driver.shipped(2)
    assert first.headers == second.headers


def test_a_failed_deletion_is_repeated(driver: OutboxDriver) -> None:
    relay = driver.relay()
    driver.write(driver.event("7", 1))
    assert relay.relay_once() == 1

    with rows_locked(driver), pytest.raises(ShopError):
        relay.relay_once()
    assert driver.waiting() == [1]
    driver.write(driver.event("7", 2))

    assert relay.relay_once() == 1
    assert ship_all(relay) == 0
    assert driver.waiting() == []
    assert [record.json() for record in driver.shipped(2)] == [1, 2]


def test_another_event_with_the_same_row_id_is_shipped_and_not_deleted(driver: OutboxDriver) -> None:
    relay = driver.relay()
    driver.write(driver.event("7", 1))
    assert relay.relay_once() == 1
    # Simulates a backup that is restored after the events were shipped and before they were deleted.
    driver.database.transact(
        lambda tx: tx.execute(update(driver.outbox.table).values(event_id=str(uuid7()), payload="2"))
    )

    with structlog.testing.capture_logs() as log, running(relay):
        eventually(lambda: not driver.waiting())

    assert [record.json() for record in driver.shipped(2)] == [1, 2]
    assert [line.get("kind") for line in log] == ["OutboxReplaced", None]


def test_after_its_lease_has_expired_a_relay_leaves_the_deletion_to_the_next_owner(driver: OutboxDriver) -> None:
    driver.write(driver.event("7", 1))
    frozen = driver.relay("frozen", lease_seconds=1)
    assert frozen.relay_once() == 1
    time.sleep(1.1)

    with running(driver.relay("its successor")):
        eventually(lambda: not driver.waiting())
        row = driver.event("7", 2)
        driver.write(row)
        eventually(lambda: not driver.waiting())
        assert frozen.relay_once() == 0

    assert [record.json() for record in driver.shipped(3)] == [1, 1, 2]


def test_one_half_of_the_shards_is_read_while_events_of_the_other_are_outstanding(driver: OutboxDriver) -> None:
    driver.write_numbered(keys=100, each=120)
    relay = driver.relay(lease_seconds=3)
    assert relay.relay_once() == ROWS_MAX
    with driver.kafka.frozen():
        one_half = relay.relay_once()
        assert one_half > AHEAD_ROWS
        assert len(driver.waiting()) == 12_000 - ROWS_MAX
        with pytest.raises(DeliveryFailed, match=f"of {one_half} events"):
            relay.relay_once()

    with running(relay):
        eventually(lambda: not driver.waiting())
    records = driver.shipped(events=12_000)
    assert values_by_key(records, first_occurrences=True) == {f"key-{key}": list(range(120)) for key in range(100)}


@contextmanager
def rows_locked(driver: OutboxDriver) -> Iterator[None]:
    """Locks all rows of the outbox."""
    with driver.database.write() as tx:
        tx.execute(update(driver.outbox.table).values(type=driver.outbox.table.c.type))
        yield


def test_rows_with_lower_ids_that_were_committed_later_are_shipped(driver: OutboxDriver) -> None:
    relay = driver.relay()
    table = driver.outbox.table
    columns = [column.name for column in table.c if column.name != "id"]
    for row_id in (1000, 5, 2000, 6):
        event = driver.event("7", row_id)
        with driver.database.write() as tx:
            tx.execute(insert(table), [{name: getattr(event, name) for name in columns} | {"id": row_id}])
        assert relay.relay_once() == 1

    assert [record.json() for record in driver.shipped(4)] == [1000, 5, 2000, 6]


def test_no_later_event_of_a_key_overtakes_a_refused_one(driver: OutboxDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    too_large = "x" * 1_500_000
    driver.write(
        driver.event("a", 1),
        driver.event("b", 1),
        driver.event("a", too_large),
        driver.event("a", 3),
        driver.event("b", 2),
    )
    monkeypatch.setattr(publisher, "REFUSED_SECONDS", 0.2)
    relay = driver.relay()

    with structlog.testing.capture_logs() as log, running(relay):
        eventually(lambda: bool(log) and driver.waiting() == [too_large, 3])
        for number in (3, 4):
            driver.write(driver.event("b", number))
            eventually(lambda: driver.waiting() == [too_large, 3])
        assert relay.ready
        table = driver.outbox.table
        driver.database.transact(lambda tx: tx.execute(delete(table).where(table.c.payload.like('"xxx%'))))
        eventually(lambda: not driver.waiting())
    assert values_by_key(driver.shipped(6)) == {"a": [1, 3], "b": [1, 2, 3, 4]}
    assert [line["event"] for line in log] == [
        "event cannot be shipped: the events of its shard wait",
        "shard can be shipped again",
    ]
    assert "too large" in log[0]["error"]


@pytest.mark.parametrize("headers", ["no JSON", "[1]", "7"])
def test_a_row_that_cannot_be_sent_blocks_only_its_shard(driver: OutboxDriver, headers: str) -> None:
    driver.write(driver.event("a", 1, headers=headers), driver.event("a", 2), driver.event("b", 1))

    assert ship_all(driver.relay()) > 0

    assert driver.waiting() == [1, 2]
    assert values_by_key(driver.shipped(1)) == {"b": [1]}


def test_after_an_outage_the_broker_gets_everything_in_order_and_the_log_has_it_once(
    driver: OutboxDriver,
) -> None:
    relay = driver.relay(lease_seconds=1)
    with structlog.testing.capture_logs() as log, running(relay):
        driver.write_numbered(keys=5, each=100)
        eventually(lambda: relay.ready and not driver.waiting())
        with driver.kafka.frozen():
            driver.write_numbered(keys=5, each=100, first=100)
            eventually(lambda: not relay.ready)
            driver.write_numbered(keys=5, each=100, first=200)
            eventually(lambda: len(log) == 2)
            assert len(driver.waiting()) == 1000
        eventually(lambda: relay.ready and not driver.waiting())

    records = driver.shipped(events=1500)
    assert values_by_key(records, first_occurrences=True) == {f"key-{key}": list(range(300)) for key in range(5)}
    assert [line["event"] for line in log] == ["relay interrupted", "relay interrupted", "relay works again"]
    assert [line.get("kind") for line in log] == ["DeliveryFailed", "BrokerAway", None]


def test_a_relay_without_shards_is_not_ready_while_events_wait(
    driver: OutboxDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "SAMPLE_SECONDS", 0.1)
    leases = driver.outbox.leases
    expires_at = datetime.now(UTC) + timedelta(minutes=4)
    others = [{"shard": shard, "owner": "dead", "expires_at": expires_at} for shard in range(SHARDS)]
    driver.database.transact(lambda tx: tx.execute(leases.insert(), others))
    relay = driver.relay(lease_seconds=1)
    with running(relay):
        eventually(lambda: relay.ready)
        driver.write(driver.event("7", 1))
        eventually(lambda: not relay.ready)

        driver.database.transact(lambda tx: tx.execute(delete(leases).where(leases.c.owner == "dead")))
        eventually(lambda: relay.ready and not driver.waiting())


def test_without_a_broker_rows_wait_and_the_relay_takes_no_lease(driver: OutboxDriver) -> None:
    relay = driver.relay(kafka=KafkaConnection("127.0.0.1:1"))
    driver.write(driver.event("7", 1))
    with structlog.testing.capture_logs() as log, running(relay):
        eventually(lambda: bool(log))
        assert not relay.ready
    assert [line["kind"] for line in log] == ["BrokerAway"]
    assert driver.waiting() == [1]
    assert driver.owners() == {}


def test_new_credentials_replace_the_producer_between_two_batches(
    driver: OutboxDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_connection, "CHECK_INTERVAL_SECONDS", 0)
    # A file that a connection without TLS does not need.
    file = tmp_path / "ca.crt"
    file.write_text("first")
    relay = driver.relay(kafka=replace(driver.kafka.connection, ca_path=file))
    driver.write_numbered(keys=100, each=1)
    written = 1

    with structlog.testing.capture_logs() as log, running(relay):
        eventually(lambda: not driver.waiting())
        for content in ("second", "third"):
            lines = len(log)  # before the change: the relay may notice it at once
            (tmp_path / "new").write_text(content)
            (tmp_path / "new").replace(file)

            def is_replaced(lines: int = lines) -> bool:
                nonlocal written
                driver.write_numbered(keys=100, each=1, first=written)
                written += 1
                return "new Kafka credentials are in use" in {line["event"] for line in log[lines:]}

            eventually(is_replaced)
            # The relay logs this before it makes the new producer, which reads the file again. Events that are written
            # from now on are sent by the new producer.
            driver.write_numbered(keys=100, each=1, first=written)
            written += 1
            eventually(lambda: not driver.waiting())

    # Neither lost, nor repeated after a failure.
    assert {line["event"] for line in log} == {"new Kafka credentials are in use"}
    numbers = values_by_key(driver.shipped(100 * written))
    assert numbers == {f"key-{key}": list(range(written)) for key in range(100)}


def test_every_option_of_the_producer_is_reserved(driver: OutboxDriver) -> None:
    publisher = driver.publisher()
    publisher._alone = True

    assert set(publisher._settings()) <= OWN_OPTIONS


def test_nothing_is_produced_after_the_deadline(driver: OutboxDriver) -> None:
    driver.write(driver.event("7", 1))
    rows = driver.pending()
    publisher = driver.publisher()

    publisher.send(rows, deadline=time.monotonic())
    too_late = publisher.wait()
    publisher.send(rows, deadline=time.monotonic() + 10)
    in_time = publisher.wait()

    assert too_late.acknowledged == []
    assert [row.key for row in in_time.acknowledged] == ["7"]
    assert len(driver.shipped(1)) == 1


def test_two_relays_share_the_shards_and_ship_everything(driver: OutboxDriver) -> None:
    one, other = driver.relay("one", lease_seconds=10), driver.relay("other", lease_seconds=10)
    driver.write_numbered(keys=50, each=20)
    with running(one):
        eventually(lambda: one.shard_count == 16)
        with running(other):
            eventually(lambda: (one.shard_count, other.shard_count) == (8, 8))
            driver.write_numbered(keys=50, each=20, first=20)
            eventually(lambda: not driver.waiting())
        eventually(lambda: one.shard_count == 16)
        driver.write_numbered(keys=50, each=20, first=40)
        eventually(lambda: not driver.waiting())

    records = driver.shipped(3000)
    assert len(records) == 3000
    assert values_by_key(records) == {f"key-{key}": list(range(60)) for key in range(50)}


def test_a_relay_waits_until_its_tables_exist(driver: OutboxDriver) -> None:
    driver.metadata.drop_all(driver.database.engine)
    relay = driver.relay()
    with structlog.testing.capture_logs() as log, running(relay):
        eventually(lambda: bool(log))
        assert not relay.ready
        driver.metadata.create_all(driver.database.engine)
        driver.write(driver.event("7", 1))
        eventually(lambda: relay.ready and not driver.waiting())
    assert [line["event"] for line in log] == ["relay interrupted", "relay works again"]
    assert "no table outbox" in log[0]["error"]
