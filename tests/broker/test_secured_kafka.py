"""Kafka with TLS, logins and access rules: each process has its rights and no more, and reads new credentials."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
import yaml
from confluent_kafka import Consumer, KafkaException, Message, Producer
from sqlalchemy import MetaData

from console.feeds.events import EVENT_TOPICS, EventFilter, EventReader
from devstack.certificates import Authority
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Stack
from shop_common.db.database import Database
from shop_common.events.dead_letter_topic import GROUP
from shop_common.events.kafka_connection import KafkaConnection, KafkaUnreachable
from shop_common.events.outbox import Outbox
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2
from shopctl.events.topics import TOPICS
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY
from testkit.eventually import eventually
from tests.broker.secured import TOPIC_ADMIN, Credentials, SecuredBroker, accepts, secured_broker
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, ShopDriver
from tests.e2e.starts import SCHEMAS, START_SECONDS, Start, migrate, starting, warnings

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "shopctl"
STRANGER = "stranger"
DONE_SECONDS = 60
UNITS = 1_000_000
"""More than callers can order while the broker restarts: their stock comes back only after that."""
FORGED = b'{"event_type": "ORDER_CANCELLED", "timestamp": "2024-01-15T10:30:00Z", "data": {"id": "forged"}}'


@pytest.fixture(scope="module")
def broker(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    with secured_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def users(broker: SecuredBroker) -> dict[str, Credentials]:
    """The topics and the access rules, as an administrator creates them, and the users."""
    users = {name: broker.create_user(name) for name in (RELAY, INVENTORY_API, ORDER_API, OPERATOR, STRANGER)}
    settings = broker.admin_settings
    created = shopctl(settings, "kafka-create-topics --json")
    assert [line["outcome"] for line in created] == ["created"] * len(TOPICS)
    rules = shopctl(settings, "kafka-create-acls --json")
    assert {rule["outcome"] for rule in rules} == {"created"}
    again = shopctl(settings, "kafka-create-acls --json")
    assert {rule["outcome"] for rule in again} == {"there already"}
    return users


@pytest.fixture(scope="module")
def stack(postgres_server: PostgresServer, broker: SecuredBroker, users: dict[str, Credentials]) -> Iterator[Stack]:
    per_process = {name: users[name].settings(broker.bootstrap) for name in (RELAY, INVENTORY_API, ORDER_API)}
    with Stack(Databases.on_server(postgres_server), broker.kafka, options=Options(per_process=per_process)) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as start:
        yield start


def shopctl(settings: dict[str, str], command: str) -> Any:
    """Return what an operator's command prints with these settings."""
    program = [sys.executable, "-m", "shopctl", *command.split(), "--bootstrap", settings["KAFKA_BOOTSTRAP_SERVERS"]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    done = subprocess.run(program, env=environment | settings, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def produce(connection: KafkaConnection, topic: str) -> None:
    """Write a forged event. Raises KafkaException."""
    failures: list[KafkaException] = []

    def delivered(error: object, _: Message) -> None:
        if error is not None:
            failures.append(KafkaException(error))

    producer = Producer(connection.configuration({"log_level": 0}))
    producer.produce(topic, FORGED, b"forged", on_delivery=delivered)
    assert producer.flush(DONE_SECONDS) == 0
    if failures:
        raise failures[0]


def test_events_flow_from_the_relay_to_both_apis(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=5)
    cancelled = shop.create_order((product, 2))
    expired = shop.create_order((product, 3), ttl_seconds=1)

    shop.change_status(cancelled.id, CANCELLED)

    # inventory-api acts on the cancelled order, and order-api on the expired reservation.
    shop.eventually(lambda: shop.available(product) == 5)
    shop.eventually(lambda: shop.order(expired.id).status == CANCELLED)
    assert "ORDER_CANCELLED" in shop.order_events(expired.id, "ORDER_CANCELLED")
    shop.assert_consistent(product, stocked=5)


def test_the_command_creates_users_and_changes_their_passwords(broker: SecuredBroker, tmp_path: Path) -> None:
    user = Credentials("cashier", tmp_path)
    broker.authority.issue(user.name, user.tls)
    for password in ("first password", "second password"):
        user.write_password(password)
        outcomes = shopctl(broker.admin_settings, f"kafka-create-users {user.name}={user.password} --json")
        assert outcomes == [{"user": user.name, "outcome": "password set"}]
        eventually(lambda: accepts(user.connection(broker.bootstrap)))
    user.write_password("first password")
    assert not accepts(user.connection(broker.bootstrap))


@pytest.mark.parametrize("name", [INVENTORY_API, ORDER_API, STRANGER])
@pytest.mark.parametrize("topic", TOPICS)
def test_nobody_but_the_relay_can_write_a_topic(
    broker: SecuredBroker, users: dict[str, Credentials], name: str, topic: str
) -> None:
    size = broker.kafka.size(topic)

    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        produce(users[name].connection(broker.bootstrap), topic)

    records = broker.kafka.consume(topic, lambda found: len(found) >= size)
    assert "forged" not in {record.key for record in records}


@pytest.mark.parametrize(
    ("name", "topic", "group", "error"),
    [
        (ORDER_API, "order-events", ORDER_API, "TOPIC_AUTHORIZATION_FAILED"),
        (INVENTORY_API, "inventory-events", INVENTORY_API, "TOPIC_AUTHORIZATION_FAILED"),
        (ORDER_API, "inventory-events", INVENTORY_API, "GROUP_AUTHORIZATION_FAILED"),
        (RELAY, "order-events", RELAY, "GROUP_AUTHORIZATION_FAILED"),
    ],
)
def test_a_process_reads_its_own_topic_in_its_own_group_only(
    broker: SecuredBroker, users: dict[str, Credentials], name: str, topic: str, group: str, error: str
) -> None:
    options = {"group.id": group, "auto.offset.reset": "earliest", "log_level": 0}
    consumer = Consumer(users[name].connection(broker.bootstrap).configuration(options))
    consumer.subscribe([topic])
    try:

        def refusal() -> str:
            message = consumer.poll(1)
            if message is None:
                return ""
            failure = message.error()
            assert failure is not None, "it got an event"
            return failure.name()

        assert eventually(refusal) == error
    finally:
        consumer.close()


def test_the_job_for_topics_reads_the_settings_of_the_processes(broker: SecuredBroker) -> None:
    (job, *_) = yaml.safe_load_all((ROOT / "deploy/kubernetes/optional/topics/topics.yaml").read_text())
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    user = broker.create_user(TOPIC_ADMIN, 'a \\ and a " quote')
    settings = user.settings(broker.bootstrap) | {
        "PARTITIONS": "5",
        "REPLICATION_FACTOR": "1",
        "MIN_INSYNC_REPLICAS": "1",
    }
    for name in ("KAFKA_SASL_PASSWORD_FILE", "KAFKA_CA_PATH", "KAFKA_CERT_PATH", "KAFKA_KEY_PATH"):
        content = Path(settings[name]).read_text()
        settings[name] = f"/tmp/{name.lower()}"
        broker.execute("sh", "-euc", 'umask 077; printf %s "$1" >"$2"', "sh", content, settings[name])

    variables = [f"{name}={value}" for name, value in settings.items()]
    broker.execute("env", *variables, "sh", "-euc", script.replace(" ".join(TOPICS), "made-by-the-job"))

    assert broker.kafka.topics()["made-by-the-job"] == 5


def test_operators_read_everything_and_redrive(broker: SecuredBroker, users: dict[str, Credentials]) -> None:
    settings = users[OPERATOR].settings(broker.bootstrap)

    topics = shopctl(settings, "kafka-topics --json")

    assert {line["topic"] for line in topics} == set(TOPICS)
    produce(users[RELAY].connection(broker.bootstrap), "order-events.dlq")
    redriven = shopctl(settings, "dlq redrive --topic order-events --all --json")
    assert redriven == {"topic": "order-events", "redriven": 1, "lost": 0}


@pytest.mark.parametrize("topic", ["order-events", "inventory-events"])
def test_an_api_redrives_dead_letters_with_its_rights(
    shop: ShopDriver, broker: SecuredBroker, users: dict[str, Credentials], topic: str
) -> None:
    # The consumers skip an event of this type.
    event = {"ce_id": str(uuid4()), "ce_type": "UNKNOWN", "ce_tenant": "default"}
    broker.kafka.produce(f"{topic}.dlq", event["ce_id"], b"{}", event | {"dlq_reason": "FAILED"})
    letter = shopctl(users[OPERATOR].settings(broker.bootstrap), f"dlq list --topic {topic} --waiting --json")
    api: Any
    pb: Any
    api, pb = (shop.api.inventory, inventory_pb2) if topic == "order-events" else (shop.api.orders, order_pb2)
    position = pb.DeadLetterPosition(partition=letter["partition"], offset=letter["offset"])
    request = pb.RedriveDeadLettersRequest(letters=[position])

    (redriven,) = shop.api.call(api.RedriveDeadLetters, request).letters
    (repeated,) = shop.api.call(api.RedriveDeadLetters, request).letters

    assert (redriven.outcome, redriven.event_id) == (pb.REDRIVE_OUTCOME_REDRIVEN, event["ce_id"])
    assert repeated.outcome == pb.REDRIVE_OUTCOME_ALREADY_REDRIVEN
    broker.kafka.consume(topic, lambda records: any(each.headers.get("ce_id") == event["ce_id"] for each in records))


def test_the_console_reads_events_and_writes_none(broker: SecuredBroker, users: dict[str, Credentials]) -> None:
    console = broker.create_user("console")
    rules = shopctl(broker.admin_settings, "kafka-create-acls --console User:console --json")
    assert [rule["name"] for rule in rules if rule["outcome"] == "created"] == [*TOPICS, GROUP]
    event_id, connection = str(uuid4()), console.connection(broker.bootstrap)
    broker.kafka.produce("order-events", event_id, b"{}", {"ce_id": event_id, "ce_type": "UNKNOWN"})
    reader = EventReader(connection)

    def shown() -> bool:
        found = asyncio.run(reader.read("default", EventFilter(EVENT_TOPICS, id=event_id)))
        return found is not None and len(found.rows) == 1

    try:
        eventually(shown)
    finally:
        reader.stop()
    for topic in TOPICS:
        with pytest.raises(KafkaException, match="authorization failed"):
            produce(connection, topic)


def test_a_rule_that_lets_a_stranger_write_is_listed(broker: SecuredBroker, users: dict[str, Credentials]) -> None:
    # If the relay gets another name, the rules of its old name are those of a stranger.
    rules = shopctl(broker.admin_settings, "kafka-create-acls --event-relay User:relay-2 --json")

    strangers = {rule["principal"] for rule in rules if rule["outcome"].startswith("not one of these")}
    assert strangers == {f"User:{RELAY}"}


def test_an_unknown_client_gets_no_connection_and_the_reason(
    broker: SecuredBroker, users: dict[str, Credentials], tmp_path: Path
) -> None:
    user = users[STRANGER]
    wrong_password, wrong_ca = Credentials(STRANGER, tmp_path / "password"), Credentials(STRANGER, tmp_path / "ca")
    broker.authority.issue(STRANGER, wrong_password.tls)
    wrong_password.write_password("wrong password")
    broker.authority.issue(STRANGER, wrong_ca.tls, trusts=[Authority.create()])
    wrong_ca.write_password(user.password.read_text())
    other_ca = Credentials(STRANGER, tmp_path / "other")
    Authority.create().issue(STRANGER, other_ca.tls, trusts=[broker.authority])
    other_ca.write_password(user.password.read_text())

    user.connection(broker.bootstrap).check()
    for credentials, reason in (
        (wrong_password, "Authentication failed"),
        (wrong_ca, "certificate verify failed"),
        (other_ca, "SSL handshake failed|SSL alert|certificate"),
    ):
        with pytest.raises(KafkaUnreachable, match=reason):
            credentials.connection(broker.bootstrap).check()


def test_a_relay_with_a_wrong_password_waits_until_it_is_right(
    start: Start, broker: SecuredBroker, users: dict[str, Credentials], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/orders.db"
    metadata = MetaData()
    Outbox(metadata)
    database = Database(url)
    metadata.create_all(database.engine)
    database.close()
    credentials = Credentials(RELAY, tmp_path / "relay")
    broker.authority.issue(RELAY, credentials.tls)
    credentials.write_password("wrong password")

    relay = start(RELAY, {"ORDERS_DATABASE_URL": url} | credentials.settings(broker.bootstrap))
    relay.wait_for_line("Authentication failed", START_SECONDS)
    assert not relay.is_ready()
    assert relay.is_ready("liveness")
    (warning,) = warnings(relay)
    assert (warning["event"], warning["kind"]) == ("relay interrupted", "BrokerAway")
    assert "wrong password" not in relay.log

    credentials.write_password(users[RELAY].password.read_text())

    relay.wait_ready(DONE_SECONDS)


@pytest.mark.parametrize("name", [ORDER_API, INVENTORY_API])
def test_an_api_that_cannot_verify_the_broker_serves_calls_and_logs_the_reason(
    start: Start, broker: SecuredBroker, tmp_path: Path, name: str
) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    migrate(SCHEMAS[name], url)
    # The stranger may not join the consumer group of the API, so this process does not disturb that group.
    credentials = Credentials(STRANGER, tmp_path / "api")
    broker.authority.issue(STRANGER, credentials.tls, trusts=[Authority.create()])
    credentials.write_password("first password")

    api = start(name, {"DATABASE_URL": url} | credentials.settings(broker.bootstrap))
    api.wait_for_line("certificate verify failed", START_SECONDS)
    api.wait_ready(START_SECONDS)
    assert [line["event"] for line in warnings(api)] == ["no events from the broker"]

    broker.authority.issue(STRANGER, credentials.tls)

    api.wait_for_line("new Kafka credentials are in use", DONE_SECONDS)
    assert "first password" not in api.log


@contextmanager
def orders_being_cancelled(shop: ShopDriver, product: int) -> Iterator[list[str]]:
    """Create, confirm and cancel orders without a pause until the block ends."""
    done = Event()
    cancelled: list[str] = []

    def work() -> None:
        while not done.is_set():
            order = shop.create_order((product, 1))
            shop.change_status(order.id, CONFIRMED, CANCELLED)
            cancelled.append(order.id)

    with ThreadPoolExecutor(4) as callers:
        running = [callers.submit(work) for _ in range(4)]
        try:
            yield cancelled
        finally:
            done.set()
        for each in running:
            each.result()


def renewals(stack: Stack) -> list[int]:
    """How often each process has replaced its client. event-relay has one client for each database."""
    processes = (stack.relay, stack.inventory_api, stack.order_api)
    return [process.log.count("new Kafka credentials are in use") for process in processes]


def test_passwords_certificates_and_ca_change_under_load_without_a_lost_event(
    shop: ShopDriver, broker: SecuredBroker, users: dict[str, Credentials]
) -> None:
    stack, product = shop.stack, shop.stocked_product(units=UNITS)
    processes = [users[name] for name in (RELAY, INVENTORY_API, ORDER_API)]
    before = renewals(stack)
    old, new = broker.authority, Authority.create("new CA")

    def renewed(*times: int) -> bool:
        now = renewals(stack)
        return all(count >= start + more for count, start, more in zip(now, before, times, strict=True))

    with orders_being_cancelled(shop, product) as cancelled:
        broker.trust(old, new)
        for user in (*processes, broker.admin):
            new.issue(user.name, user.tls, trusts=[old, new])
        eventually(lambda: renewed(2, 1, 1), DONE_SECONDS, stack.relay.tail)

        for user in processes:
            broker.set_password(user.name, "second password")
            user.write_password("second password")
        # If a relay was just connecting when its password changed, it reads the file again and does not replace its
        # producer.
        eventually(lambda: renewed(2, 2, 2), DONE_SECONDS, stack.order_api.tail)

        # From now on only the new credentials are accepted, and every client has to log in again.
        broker.renew_certificate(new)
        broker.trust(new)
        broker.restart()
        before_restart = len(cancelled)
        eventually(lambda: len(cancelled) > before_restart + 20, 2 * DONE_SECONDS)

    with pytest.raises(KafkaUnreachable):
        users[STRANGER].connection(broker.bootstrap).check()
    shop.eventually(lambda: shop.available(product) == UNITS, 2 * DONE_SECONDS)
    shop.assert_consistent(product, stocked=UNITS)
    released = shop.stock_events(product, "STOCK_RELEASED", len(cancelled), 2 * DONE_SECONDS)
    of_orders = [data["order_id"] for kind, data in released if kind == "STOCK_RELEASED"]
    assert sorted(of_orders) == sorted(cancelled), "each cancelled order released its stock once"
    assert stack.relay.alive
    assert stack.inventory_api.alive
    assert stack.order_api.alive
    assert all(accepts(user.connection(broker.bootstrap)) for user in processes)
