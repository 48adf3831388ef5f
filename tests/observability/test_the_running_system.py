"""Real processes under load, scraped by a real Prometheus: every panel has data, and every outage fires its alerts.

A minute in the alert rules is a second here.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from uuid import uuid4

import pytest

from devstack import kafka
from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.process import Process
from devstack.stack import Databases, Options, Ports, Stack
from shop_common.errors import ShopError
from shopctl.load.generator import PRODUCTS
from shopctl.system.layout import RELAY
from tests.e2e.shop_driver import ShopDriver
from tests.observability import reference
from tests.observability.dashboards import Json, filled, panels, query_of, search_of, tags_of, targets
from tests.observability.jaeger import Jaeger
from tests.observability.prometheus import Prometheus, configure, metrics_in, wait_for

pytestmark = [pytest.mark.usefixtures("docker_engine"), pytest.mark.timeout(500)]

INVENTORY = "shop.inventory.v1.InventoryService"
TOPICS = ("order-events", "inventory-events")
# Topic → an event type that its consumer handles.
HANDLED_TYPE = {"order-events": "ORDER_SHIPPED", "inventory-events": "STOCK_RELEASED"}

DATA_SECONDS = 90
FIRE_SECONDS = 60
RESOLVE_SECONDS = 90

RATE = 8
"""The rate of the load generator, in orders a second."""

# Thresholds in seconds are not divided by the speedup.
THRESHOLDS = {
    "(shop_outbox_oldest_event_age_seconds) > 60": "(shop_outbox_oldest_event_age_seconds) > 3",
    "> 120": "> 12",
}

# Metrics in the rules that this system lacks: counters before their first increment, and without TLS and
# identities, the expiry of certificates and reads of API keys.
ABSENT_IN_RULES = {
    "shop_short_fulfilments_total",
    "shop_consumer_dead_letters_total",
    "shop_consumer_missed_total",
    "shop_api_key_reads_total",
    "shop_tls_certificate_expiry_timestamp_seconds",
}
# Metrics in the reference that this system never has: it loses no event, and has neither users' tokens nor TLS.
ABSENT_IN_REFERENCE = {
    "shop_consumer_missed_total",
    "shop_api_key_reads_total",
    "shop_key_set_fetches_total",
    "shop_tls_certificate_expiry_timestamp_seconds",
}

DEFECT_ALERTS = [
    ("ShopDeadLetters", "inventory-api"),
    ("ShopDeadLetters", "order-api"),
    ("ShopShippedShort", "inventory-api"),
]

# The value of a label must not be an id: there would be a series for each.
AN_ID = re.compile(r"\d+|[0-9a-f]{8}-[0-9a-f-]{27}")


@pytest.fixture(scope="module")
def jaeger(docker_engine: str) -> Iterator[Jaeger]:
    with Jaeger() as running:
        yield running


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """A broker for this file alone: the consumer groups of two stacks have the same names."""
    with kafka.provide(containers=True) as started:
        yield started


@pytest.fixture(scope="module")
def system(postgres_server: PostgresServer, broker: Kafka, jaeger: Jaeger) -> Iterator[Stack]:
    options = Options(
        # The reaper waits long enough for the load generator to order the stock of reservations that are due.
        reap_interval_seconds=3,
        environment={"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"},
        per_process={RELAY: {"LEASE_SECONDS": "3"}},
    )
    databases = Databases.on_server(postgres_server)
    with Stack(databases, broker, Ports.free(metrics=True), options) as running:
        yield running


@pytest.fixture(scope="module")
def load(system: Stack) -> Iterator[Process]:
    command = [sys.executable, "-m", "shopctl", "load", "--minutes", "60", "--rate", str(RATE)]
    addresses = ["--inventory", system.inventory_address, "--orders", system.orders_address]
    process = Process("load", [*command, *addresses]).start()
    try:
        process.wait_for_line("ordered", DATA_SECONDS)  # it cannot create its stock during an outage
        yield process
        assert process.alive, process.tail()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def prometheus(system: Stack, load: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    configure(folder, metrics_ports(system), speedup=60, thresholds=THRESHOLDS)
    with Prometheus(folder) as running:
        wait_for("all targets are up", lambda: set(running.targets().values()) == {"up"}, DATA_SECONDS)
        yield running


def metrics_ports(system: Stack) -> dict[str, int]:
    ports = system.ports
    return {
        "inventory-api": ports.inventory_metrics,
        "order-api": ports.orders_metrics,
        "reservation-reaper": ports.reaper_metrics,
        "event-relay": ports.relay_metrics,
    }


# --- dashboards ---


@pytest.mark.parametrize("target", targets(), ids=lambda target: target["expr"])
def test_every_panel_has_data(prometheus: Prometheus, target: Json) -> None:
    query = query_of(target)
    wait_for(f"data for {query}", lambda: prometheus.query(query), DATA_SECONDS)

    named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for series in prometheus.query(query):
        if "vector(0)" not in query:
            assert named <= series["metric"].keys(), "the legend names only labels of the series"


def test_the_exemplars_of_a_panel_name_traces_in_jaeger(prometheus: Prometheus, jaeger: Jaeger) -> None:
    with_exemplars = [target for target in targets() if target["exemplar"]]
    assert with_exemplars
    for target in with_exemplars:
        query = query_of(target)
        wait_for(f"exemplars for {query}", lambda query=query: prometheus.exemplars(query), DATA_SECONDS)
        trace_id = prometheus.exemplars(query)[-1]["labels"]["trace_id"]
        wait_for("the trace", lambda trace_id=trace_id: jaeger.has(trace_id), DATA_SECONDS)


def test_the_link_of_a_panel_finds_traces_of_its_series(prometheus: Prometheus, jaeger: Jaeger) -> None:
    searches = [
        (panel["targets"][0], search_of(link["url"]))
        for panel in panels()
        for link in panel["fieldConfig"]["defaults"]["links"]
    ]
    assert searches
    for target, search in searches:
        series = prometheus.query(query_of(target))

        def has_traces(search: Json = search, series: list[Json] = series) -> bool:
            return any(
                jaeger.search(
                    filled(search["service"], one),
                    filled(search["operation"], one),
                    tags_of(filled(search["tags"], one)),
                )
                for one in series
            )

        wait_for(f"traces for {search}", has_traces, DATA_SECONDS)


# --- alerts ---


def test_the_rules_query_only_existing_metrics(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert rules
    assert not {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"}
    queried = metrics_in(rule["query"] for rule in rules)
    assert queried >= ABSENT_IN_RULES
    assert queried - ABSENT_IN_RULES <= prometheus.names()


def wait_until_firing(prometheus: Prometheus, *alerts: tuple[str, str]) -> None:
    try:
        wait_for(f"{alerts} fire", lambda: prometheus.firing() >= set(alerts), FIRE_SECONDS)
    except AssertionError as late:
        raise AssertionError(f"{late}; firing: {sorted(prometheus.firing())}") from late


def wait_until_resolved(prometheus: Prometheus, *alerts: tuple[str, str]) -> None:
    wait_for(f"{alerts} are resolved", lambda: not prometheus.firing() & set(alerts), RESOLVE_SECONDS)


@contextmanager
def alerting(prometheus: Prometheus, fault: AbstractContextManager[object], *alerts: tuple[str, str]) -> Iterator[None]:
    """Runs the block during the fault. The alerts must fire during the fault, and neither before nor after it."""
    wait_until_resolved(prometheus, *alerts)
    with fault:
        wait_until_firing(prometheus, *alerts)
        yield
    wait_until_resolved(prometheus, *alerts)


@contextmanager
def stopped(server: Kafka | PostgresServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start_again()


def test_an_outage_of_kafka_fires_alerts_and_is_in_the_relays_log(
    prometheus: Prometheus, system: Stack, broker: Kafka
) -> None:
    before = len(lines(system.relay, "relay interrupted"))

    with alerting(prometheus, stopped(broker), ("ShopOutboxOld", "inventory"), ("ShopOutboxOld", "orders")):
        logged = lines(system.relay, "relay interrupted")[before:]

    assert {kind for line in logged for kind in re.findall(r"kind=(\w+)", line)} & {"BrokerAway", "DeliveryFailed"}
    # Logged once for each database and kind of failure, however long the outage lasts.
    assert len(logged) <= 4


def test_an_outage_of_postgresql_fires_alerts_and_is_logged(
    prometheus: Prometheus, system: Stack, postgres_server: PostgresServer
) -> None:
    before = len(lines(system.inventory_api, "reason=DATABASE_UNAVAILABLE"))

    with alerting(prometheus, stopped(postgres_server), ("ShopReaperSilent", "expire-reservations")):
        # Calls fail. Once the consumer fails to handle an event, the process is not ready and gets no more calls.
        pages = {("ShopErrorBudgetBurnsFast", "inventory-api"), ("ShopNotReady", "inventory-api")}
        wait_for(f"one of {pages} fires", lambda: prometheus.firing() & pages, FIRE_SECONDS)
        assert lines(system.inventory_api, "reason=DATABASE_UNAVAILABLE")[before:]
    wait_until_resolved(prometheus, *pages)


def test_a_frozen_inventory_api_fires_alerts_and_is_named_in_traces(
    prometheus: Prometheus, system: Stack, jaeger: Jaeger
) -> None:
    began = time.time()
    # The load generator checks the stock first. When that fails, it does not call order-api.
    with (
        buyer(system),
        alerting(
            prometheus,
            system.inventory_api.frozen(),
            ("ShopProcessDown", "inventory-api"),
            ("ShopServiceDown", "inventory-api"),
            ("ShopErrorBudgetBurnsFast", "order-api"),
        ),
    ):
        failed = {"error.type": "INVENTORY_UNAVAILABLE"}

        def is_named() -> bool:
            traces = jaeger.search("order-api", "shop.order.v1.OrderService/CreateOrder", failed, since=began)
            # The failed span is the call to inventory-api.
            return any(
                span["operationName"] == f"{INVENTORY}/BatchReserveStock" and failed.items() <= tags(span).items()
                for trace in traces
                for span in trace["spans"]
            )

        wait_for("a trace names inventory-api", is_named, DATA_SECONDS)


@contextmanager
def buyer(system: Stack) -> Iterator[None]:
    """Creates orders until the block ends, whether the calls fail or not."""
    done = threading.Event()

    def buy(shop: ShopDriver) -> None:
        while not done.wait(0.1):
            with suppress(ShopError):
                shop.create_order((PRODUCTS[1], 1))

    with ShopDriver.connect(system) as shop, ThreadPoolExecutor(1) as executor:
        buying = executor.submit(buy, shop)
        try:
            yield
        finally:
            done.set()
            buying.result()


def test_a_killed_relay_fires_an_alert(prometheus: Prometheus, system: Stack) -> None:
    system.relay.kill()
    wait_until_firing(prometheus, ("ShopServiceDown", "event-relay"))
    system.relay.start()
    wait_until_resolved(prometheus, ("ShopServiceDown", "event-relay"))


def lines(process: Process, text: str) -> list[str]:
    return [line for line in process.log.splitlines() if text in line]


def tags(span: Json) -> Json:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


# --- defects, and the reference of all metrics ---


@pytest.fixture(scope="module")
def defects(prometheus: Prometheus, system: Stack, broker: Kafka) -> None:
    """Causes everything that must never happen and that an alert reports. tests/broker causes lost events."""
    wait_until_resolved(prometheus, *DEFECT_ALERTS)
    with ShopDriver.connect(system) as shop:
        shop.wait_ready()
        with pytest.raises(ShopError):
            shop.reservation(str(uuid4()))
    for topic in TOPICS:
        broker.produce(topic, "1", "no JSON", {"ce_id": str(uuid4()), "ce_type": HANDLED_TYPE[topic]})
    lines = [{"product_id": PRODUCTS[0], "quantity": 1}]
    shipped = {
        "event_type": "ORDER_SHIPPED",
        "timestamp": "2024-01-15T10:30:00Z",
        "data": {"id": "none", "items": lines},
    }
    broker.produce("order-events", "none", json.dumps(shipped), {"ce_id": str(uuid4()), "ce_type": "ORDER_SHIPPED"})


def test_defects_fire_alerts(prometheus: Prometheus, defects: None) -> None:
    wait_until_firing(prometheus, *DEFECT_ALERTS)


@pytest.mark.parametrize("process", reference.PROCESSES)
def test_a_process_has_exactly_the_metrics_of_the_reference(
    system: Stack, load: Process, defects: None, process: str
) -> None:
    port = metrics_ports(system)[process]
    documented = {
        name: labels for name, labels in reference.documented(process).items() if name not in ABSENT_IN_REFERENCE
    }
    wait_for(f"all of {sorted(documented)}", lambda: documented.keys() <= reference.scraped(port).keys(), DATA_SECONDS)

    scraped = reference.scraped(port)
    assert {name: set().union(*series) for name, series in scraped.items()} == documented
    values = [(name, *label) for name, series in scraped.items() for labels in series for label in labels.items()]
    assert [each for each in values if AN_ID.fullmatch(each[-1])] == []
