"""inventory-api's consumer with Apache Kafka: every event takes effect exactly once."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from psycopg import Connection
from sqlalchemy.engine import make_url

from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.postgres import PostgresServer
from devstack.process import Process
from devstack.stack import Databases, Options, Stack
from shopctl.system.layout import INVENTORY_API, REAPER, RELAY
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, PROCESSING, SHIPPED, ShopDriver

pytestmark = pytest.mark.timeout(500)

GROUP, TOPIC = "inventory-api", "order-events"
ADMIN_SECONDS = 60
MEMBER_SECONDS = 60
ADVISORY_LOCK = 77  # used by this file only


@pytest.fixture(scope="module")
def stack(postgres_server: PostgresServer, broker: Kafka) -> Iterator[Stack]:
    options = Options(per_process={RELAY: {"LEASE_SECONDS": "3"}, REAPER: {"VERIFY_INTERVAL_SECONDS": "1"}})
    with Stack(Databases.on_server(postgres_server), broker, options=options) as running:
        yield running


def confirmed(shop: ShopDriver, product: int) -> str:
    order = shop.create_order((product, 1))
    shop.change_status(order.id, CONFIRMED)
    return order.id


def end(shop: ShopDriver, order_id: str, number: int) -> None:
    """Ship the order if its number is even, cancel it otherwise."""
    if number % 2:
        shop.change_status(order_id, CANCELLED)
    else:
        shop.change_status(order_id, PROCESSING, SHIPPED)


def caught_up(shop: ShopDriver) -> bool:
    return shop.kafka.lag(GROUP, TOPIC) == 0


def stop_inventory(shop: ShopDriver) -> None:
    """Stop inventory-api after it has committed all offsets, so that only the test changes them afterwards."""
    shop.eventually(lambda: caught_up(shop), within_seconds=60)
    assert shop.stack.inventory_api.stop(20) == 0
    # Offsets of a group can be changed only when it has no members, including members that the broker has not removed.
    shop.eventually(lambda: members(shop.kafka) == 0, MEMBER_SECONDS)


def start_inventory(shop: ShopDriver) -> None:
    shop.stack.inventory_api.start()
    shop.wait_ready()


def effects(shop: ShopDriver, product: int, count: int) -> dict[str, list[str]]:
    """Wait for `count` events that end a reservation of the product. Returns their types by order id."""
    ends = ("STOCK_FULFILLED", "STOCK_RELEASED")
    records = shop.kafka.consume(
        "inventory-events",
        lambda found: (
            len({r.headers["ce_id"] for r in found if r.key == str(product) and r.headers["ce_type"] in ends}) >= count
        ),
        within_seconds=60,
    )
    # A repeat by the relay has the same id. A second effect would have another.
    by_id = {r.headers["ce_id"]: r for r in records if r.key == str(product) and r.headers["ce_type"] in ends}
    by_order: dict[str, list[str]] = {}
    for record in by_id.values():
        by_order.setdefault(record.json()["data"]["order_id"], []).append(record.headers["ce_type"])
    return by_order


def assert_once(shop: ShopDriver, product: int, orders: list[str], *, stocked: int) -> None:
    """Check that every other order's unit was shipped, that the other units are available, and each has one event."""
    shipped = len(orders[::2])
    shop.eventually(lambda: shop.available(product) == stocked - shipped == shop.on_hand(product), within_seconds=60)
    shop.assert_consistent(product, stocked=stocked)
    expected = {order: ["STOCK_FULFILLED" if n % 2 == 0 else "STOCK_RELEASED"] for n, order in enumerate(orders)}
    assert effects(shop, product, len(orders)) == expected


def test_events_take_effect_once_while_group_members_join_leave_and_die(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=200)
    orders = [confirmed(shop, product) for _ in range(60)]
    joining = second_inventory(shop.stack)

    with ThreadPoolExecutor(2) as clients:
        calls = [clients.submit(end, shop, order, number) for number, order in enumerate(orders)]
        joining.start()
        shop.eventually(lambda: members(shop.kafka) == 2, MEMBER_SECONDS)
        assert joining.stop(20) == 0
        shop.eventually(lambda: members(shop.kafka) == 1, MEMBER_SECONDS)
        joining.start()
        shop.eventually(lambda: members(shop.kafka) == 2, MEMBER_SECONDS)
        joining.kill()
        for call in calls:
            call.result()

    assert_once(shop, product, orders, stocked=200)
    shop.eventually(lambda: members(shop.kafka) == 1, MEMBER_SECONDS)
    shop.eventually(lambda: caught_up(shop), within_seconds=60)


def second_inventory(stack: Stack) -> Process:
    """A second inventory-api process with its own port."""
    (port,) = free_ports(1)
    return Process(
        f"{INVENTORY_API} 2",
        [sys.executable, "-m", "inventory_api"],
        stack.inventory_api.env | {"GRPC_PORT": str(port), "HEALTH_PORT": "0"},
        health_address=f"localhost:{port}",
    )


def members(broker: Kafka) -> int:
    admin = broker.admin()
    (group,) = admin.describe_consumer_groups([GROUP], request_timeout=ADMIN_SECONDS).values()
    return len(group.result(ADMIN_SECONDS).members)


@pytest.mark.parametrize("how", ["moved to the earliest", "deleted"])
def test_events_read_again_after_an_offset_reset_change_nothing(shop: ShopDriver, how: str) -> None:
    product = shop.stocked_product(units=20)
    orders = [confirmed(shop, product) for _ in range(10)]
    for number, order in enumerate(orders):
        end(shop, order, number)
    assert_once(shop, product, orders, stocked=20)
    stop_inventory(shop)

    admin = shop.kafka.admin()
    if how == "deleted":
        done = admin.delete_consumer_groups([GROUP], request_timeout=ADMIN_SECONDS)
    else:
        earliest = [TopicPartition(TOPIC, partition, 0) for partition in range(3)]
        done = admin.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(GROUP, earliest)], request_timeout=ADMIN_SECONDS
        )
    for answer in done.values():
        answer.result(ADMIN_SECONDS)
    assert shop.kafka.lag(GROUP, TOPIC) == shop.kafka.size(TOPIC)
    start_inventory(shop)

    shop.eventually(lambda: caught_up(shop), within_seconds=60)
    # The events of two more orders are handled after all events so far.
    orders += [confirmed(shop, product), confirmed(shop, product)]
    for number in (10, 11):
        end(shop, orders[number], number)
    assert_once(shop, product, orders, stocked=20)


def test_events_deleted_before_they_were_handled_are_logged_and_others_are_handled(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=10)
    lost, kept = confirmed(shop, product), confirmed(shop, product)
    stop_inventory(shop)
    so_far = shop.kafka.size(TOPIC)
    shop.change_status(lost, CANCELLED)
    shop.eventually(lambda: shop.kafka.size(TOPIC) == so_far + 1, within_seconds=60)

    # Delete all records (-1), as retention does when a consumer is down for too long.
    admin = shop.kafka.admin()
    everything = [TopicPartition(TOPIC, partition, -1) for partition in range(3)]
    for answer in admin.delete_records(everything, request_timeout=ADMIN_SECONDS).values():
        answer.result(ADMIN_SECONDS)
    # This order has the key of the lost event, so its event is the next one in that partition.
    shop.kafka.produce(TOPIC, lost, '{"event_type": "NOTED", "timestamp": "2024-01-15T10:30:00Z", "data": {}}')
    shop.change_status(kept, CANCELLED)
    start_inventory(shop)

    line = shop.stack.inventory_api.wait_for_line("events were deleted from the topic before they were handled", 60)
    assert "count=1" in line
    shop.eventually(lambda: shop.available(product) == 9, within_seconds=60)

    # The reaper repairs the effect of the lost event when its order has not changed for ten minutes.
    make_old(shop, lost)
    shop.eventually(lambda: shop.available(product) == 10, within_seconds=60)
    shop.assert_consistent(product, stocked=10)


def make_old(shop: ShopDriver, *orders: str) -> None:
    """Let the last status change of these orders be an hour old."""
    address = make_url(shop.stack.databases.orders).set(drivername="postgresql")
    with psycopg.connect(address.render_as_string(hide_password=False)) as connection:
        connection.execute(
            "UPDATE orders SET updated_at = updated_at - interval '1 hour' WHERE id = ANY (%s::uuid[])", [list(orders)]
        )


def test_the_effects_of_events_that_were_lost_with_their_topic_are_made_good(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=10)
    orders = [confirmed(shop, product) for _ in range(4)]
    stop_inventory(shop)
    so_far = shop.kafka.size(TOPIC)
    for number, order in enumerate(orders):
        end(shop, order, number)
    shop.eventually(lambda: shop.kafka.size(TOPIC) == so_far + 6, within_seconds=60)

    admin = shop.kafka.admin()
    (deleted,) = admin.delete_topics([TOPIC], request_timeout=ADMIN_SECONDS).values()
    deleted.result(ADMIN_SECONDS)
    shop.eventually(lambda: TOPIC not in shop.kafka.topics(), within_seconds=60)
    shop.kafka.create_topics(TOPIC)
    start_inventory(shop)
    make_old(shop, *orders)

    assert_once(shop, product, orders, stocked=10)


def test_an_event_repeated_after_a_kill_between_effect_and_offset_commit_changes_nothing(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=2)
    order = confirmed(shop, product)
    shop.eventually(lambda: caught_up(shop), within_seconds=60)

    with inventory_database(shop.stack) as database:
        with commits_blocked(database):
            shop.change_status(order, CANCELLED)
            shop.eventually(lambda: commit_waits(database), within_seconds=60)
            # The process has sent its COMMIT. It is frozen before the response arrives, after which it would commit its
            # offset.
            shop.stack.inventory_api.freeze()
        shop.eventually(lambda: reserved(database, product) == 0, within_seconds=60)
        shop.stack.inventory_api.kill()
    # Other events of the order may have been in the same batch.
    assert shop.kafka.lag(GROUP, TOPIC) >= 1
    start_inventory(shop)

    shop.eventually(lambda: caught_up(shop), within_seconds=60)
    assert shop.available(product) == 2
    shop.assert_consistent(product, stocked=2)
    assert effects(shop, product, 1) == {order: ["STOCK_RELEASED"]}


@contextmanager
def inventory_database(stack: Stack) -> Iterator[Connection]:
    address = make_url(stack.databases.inventory).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        yield connection


@contextmanager
def commits_blocked(database: Connection) -> Iterator[None]:
    """Transactions that write an event wait in COMMIT until the block ends or their statement_timeout expires."""
    database.execute("SELECT pg_advisory_lock(%s)", [ADVISORY_LOCK])
    database.execute(f"""
        CREATE FUNCTION wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            SET LOCAL lock_timeout = 0;
            PERFORM pg_advisory_xact_lock({ADVISORY_LOCK});
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER held AFTER INSERT ON outbox DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION wait_in_commit()""")
    try:
        yield
    finally:
        database.execute("SELECT pg_advisory_unlock(%s)", [ADVISORY_LOCK])
        database.execute("DROP TRIGGER held ON outbox; DROP FUNCTION wait_in_commit()")


def commit_waits(database: Connection) -> bool:
    """True if one COMMIT waits, for less than a second, so that it has time left until its statement_timeout."""
    found = database.execute("""
        SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'
        AND datname = current_database() AND query_start > clock_timestamp() - interval '1 second'""").fetchone()
    return found == (1,)


def reserved(database: Connection, product: int) -> int:
    found = database.execute("SELECT sum(reserved_quantity) FROM inventory_items WHERE product_id = %s", [product])
    (units,) = found.fetchone() or (0,)
    return int(units)


def test_consumers_continue_after_the_broker_was_killed_and_log_the_outage_once(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=4)
    orders = [confirmed(shop, product) for _ in range(2)]
    so_far = shop.stack.inventory_api.log.count("no events from the broker")

    shop.kafka.kill()
    shop.eventually(lambda: shop.stack.inventory_api.log.count("no events from the broker") > so_far, within_seconds=60)
    for number, order in enumerate(orders):
        end(shop, order, number)  # the APIs serve without the broker
    shop.stack.inventory_api.wait_ready(ADMIN_SECONDS)
    shop.kafka.start_again()

    assert_once(shop, product, orders, stocked=4)
    assert shop.stack.inventory_api.log.count("no events from the broker") <= so_far + 2
