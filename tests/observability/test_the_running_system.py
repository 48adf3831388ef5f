"""Real processes under load, scraped by a real Prometheus: every panel shows something, and what breaks is told of.

A minute of the alert rules is a second here.
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
from tests.observability.dashboards import Json, as_grafana_asks, filled, panels, search_of, tags_of, targets
from tests.observability.jaeger import Jaeger
from tests.observability.prometheus import Prometheus, configure, metrics_in, wait_for

pytestmark = [pytest.mark.usefixtures("docker_engine"), pytest.mark.timeout(500)]

INVENTORY = "shop.inventory.v1.InventoryService"
TOPICS = ("order-events", "inventory-events")
# A type for which each topic's consumer has a handler.
READ_FROM = {"order-events": "ORDER_SHIPPED", "inventory-events": "STOCK_RELEASED"}

DATA_SECONDS = 90
FIRE_SECONDS = 60
RESOLVE_SECONDS = 90

SHOPPERS_A_SECOND = 8

# In seconds, too long for a test.
LOWER = {"(shop_outbox_oldest_event_age_seconds) > 60": "(shop_outbox_oldest_event_age_seconds) > 3", "> 120": "> 12"}

# What counts them is there from the first time on.
NEVER_HAPPENED = {"shop_short_fulfilments_total", "shop_consumer_dead_letters_total", "shop_consumer_missed_total"}

UNHEARD_OF = [
    ("ShopDeadLetters", "inventory-api"),
    ("ShopDeadLetters", "order-api"),
    ("ShopShippedShort", "inventory-api"),
]

# What a label's value never is: an id of whatever kind.
ENDLESS = re.compile(r"\d+|[0-9a-f]{8}-[0-9a-f-]{27}")


@pytest.fixture(scope="module")
def jaeger(docker_engine: str) -> Iterator[Jaeger]:
    with Jaeger() as running:
        yield running


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """Of its own: other stacks' consumers are of the same groups."""
    with kafka.provide(containers=True) as started:
        yield started


@pytest.fixture(scope="module")
def system(postgres_server: PostgresServer, broker: Kafka, jaeger: Jaeger) -> Iterator[Stack]:
    options = Options(
        # Long enough that shoppers want what is past its time and not yet given back.
        reap_interval_seconds=3,
        environment={"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"},
        per_process={RELAY: {"LEASE_SECONDS": "3"}},
    )
    databases = Databases.on_server(postgres_server)
    with Stack(databases, broker, Ports.free(metrics=True), options) as running:
        yield running


@pytest.fixture(scope="module")
def shoppers(system: Stack) -> Iterator[Process]:
    command = [sys.executable, "-m", "shopctl", "load", "--minutes", "60", "--rate", str(SHOPPERS_A_SECOND)]
    addresses = ["--inventory", system.inventory_address, "--orders", system.orders_address]
    process = Process("load", [*command, *addresses]).start()
    try:
        process.wait_for_line("ordered", DATA_SECONDS)  # until its shop has stock it needs all to go well
        yield process
        assert process.alive, process.tail()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def prometheus(system: Stack, shoppers: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    configure(folder, metrics_ports(system), quicker=60, lower=LOWER)
    with Prometheus(folder) as running:
        wait_for("all are scraped", lambda: set(running.targets().values()) == {"up"}, DATA_SECONDS)
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
def test_every_panel_shows_something(prometheus: Prometheus, target: Json) -> None:
    question = as_grafana_asks(target)
    wait_for(f"data for {question}", lambda: prometheus.query(question), DATA_SECONDS)

    named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for series in prometheus.query(question):
        if "vector(0)" not in question:
            assert named <= series["metric"].keys(), "what the legend shows is a label of the series"


def test_a_point_on_a_panel_leads_to_its_trace(prometheus: Prometheus, jaeger: Jaeger) -> None:
    with_points = [target for target in targets() if target["exemplar"]]
    assert with_points
    for target in with_points:
        question = as_grafana_asks(target)
        wait_for(f"exemplars for {question}", lambda question=question: prometheus.exemplars(question), DATA_SECONDS)
        trace_id = prometheus.exemplars(question)[-1]["labels"]["trace_id"]
        wait_for("the trace", lambda trace_id=trace_id: jaeger.has(trace_id), DATA_SECONDS)


def test_the_link_of_a_panel_finds_the_traces_behind_its_series(prometheus: Prometheus, jaeger: Jaeger) -> None:
    searches = [
        (panel["targets"][0], search_of(link["url"]))
        for panel in panels()
        for link in panel["fieldConfig"]["defaults"]["links"]
    ]
    assert searches
    for target, search in searches:
        series = prometheus.query(as_grafana_asks(target))

        def found(search: Json = search, series: list[Json] = series) -> bool:
            return any(
                jaeger.search(
                    filled(search["service"], one),
                    filled(search["operation"], one),
                    tags_of(filled(search["tags"], one)),
                )
                for one in series
            )

        wait_for(f"traces for {search}", found, DATA_SECONDS)


# --- alerts ---


def test_the_rules_ask_for_metrics_that_there_are(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert rules
    assert not {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"}
    asked_for = metrics_in(rule["query"] for rule in rules)
    assert asked_for >= NEVER_HAPPENED
    assert asked_for - NEVER_HAPPENED <= prometheus.names()


def fires(prometheus: Prometheus, *alerts: tuple[str, str]) -> None:
    try:
        wait_for(f"{alerts} fire", lambda: prometheus.firing() >= set(alerts), FIRE_SECONDS)
    except AssertionError as late:
        raise AssertionError(f"{late}; what does: {sorted(prometheus.firing())}") from late


def resolve(prometheus: Prometheus, *alerts: tuple[str, str]) -> None:
    wait_for(f"{alerts} are over", lambda: not prometheus.firing() & set(alerts), RESOLVE_SECONDS)


@contextmanager
def told_of(prometheus: Prometheus, fault: AbstractContextManager[object], *alerts: tuple[str, str]) -> Iterator[None]:
    """They do not fire before, do while it lasts, for the block, and no more when it is over."""
    resolve(prometheus, *alerts)
    with fault:
        fires(prometheus, *alerts)
        yield
    resolve(prometheus, *alerts)


@contextmanager
def stopped(server: Kafka | PostgresServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start_again()


def test_a_stopped_kafka_is_told_of_and_the_relays_log_names_it(
    prometheus: Prometheus, system: Stack, broker: Kafka
) -> None:
    said = len(lines(system.relay, "relay interrupted"))

    with told_of(prometheus, stopped(broker), ("ShopOutboxOld", "inventory"), ("ShopOutboxOld", "orders")):
        told = lines(system.relay, "relay interrupted")[said:]

    assert {kind for line in told for kind in re.findall(r"kind=(\w+)", line)} & {"BrokerAway", "DeliveryFailed"}
    # Once for each database and kind of failure, however long it lasts.
    assert len(told) <= 4


def test_a_stopped_postgresql_is_told_of_and_the_log_names_it(
    prometheus: Prometheus, system: Stack, postgres_server: PostgresServer
) -> None:
    said = len(lines(system.inventory_api, "reason=DATABASE_UNAVAILABLE"))

    with told_of(prometheus, stopped(postgres_server), ("ShopReaperSilent", "expire-reservations")):
        # Calls fail, until the consumer meets an event: then the process is not ready, and is not called any more.
        pages = {("ShopErrorBudgetBurnsFast", "inventory-api"), ("ShopNotReady", "inventory-api")}
        wait_for(f"one of {pages} fires", lambda: prometheus.firing() & pages, FIRE_SECONDS)
        assert lines(system.inventory_api, "reason=DATABASE_UNAVAILABLE")[said:]
    resolve(prometheus, *pages)


def test_a_frozen_inventory_api_is_told_of_and_the_buyers_trace_names_it(
    prometheus: Prometheus, system: Stack, jaeger: Jaeger
) -> None:
    began = time.time()
    # The shoppers look for stock first, and then do not come to order-api.
    with (
        a_buyer_who_insists(system),
        told_of(
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
            # Of all that the call did, what failed is the call to inventory-api.
            return any(
                span["operationName"] == f"{INVENTORY}/BatchReserveStock" and failed.items() <= tags(span).items()
                for trace in traces
                for span in trace["spans"]
            )

        wait_for("a trace names inventory-api", is_named, DATA_SECONDS)


@contextmanager
def a_buyer_who_insists(system: Stack) -> Iterator[None]:
    gone = threading.Event()

    def insist(shop: ShopDriver) -> None:
        while not gone.wait(0.1):
            with suppress(ShopError):
                shop.create_order((PRODUCTS[1], 1))

    with ShopDriver.connect(system) as shop, ThreadPoolExecutor(1) as buyer:
        insisting = buyer.submit(insist, shop)
        try:
            yield
        finally:
            gone.set()
            insisting.result()


def test_a_relay_that_is_gone_is_told_of(prometheus: Prometheus, system: Stack) -> None:
    system.relay.kill()
    fires(prometheus, ("ShopServiceDown", "event-relay"))
    system.relay.start()
    resolve(prometheus, ("ShopServiceDown", "event-relay"))


def lines(process: Process, words: str) -> list[str]:
    return [line for line in process.log.splitlines() if words in line]


def tags(span: Json) -> Json:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


# --- what should never happen, and the reference of it all ---


@pytest.fixture(scope="module")
def unheard_of(prometheus: Prometheus, system: Stack, broker: Kafka) -> None:
    """All of it happens, but that events are lost: tests/broker deletes some."""
    resolve(prometheus, *UNHEARD_OF)
    with ShopDriver.connect(system) as shop:
        shop.wait_ready()
        with pytest.raises(ShopError):
            shop.reservation(str(uuid4()))
    for topic in TOPICS:
        broker.produce(topic, "1", "no JSON", {"ce_id": str(uuid4()), "ce_type": READ_FROM[topic]})
    lines = [{"product_id": PRODUCTS[0], "quantity": 1}]
    shipped = {
        "event_type": "ORDER_SHIPPED",
        "timestamp": "2024-01-15T10:30:00Z",
        "data": {"id": "none", "items": lines},
    }
    broker.produce("order-events", "none", json.dumps(shipped), {"ce_id": str(uuid4()), "ce_type": "ORDER_SHIPPED"})


def test_what_should_never_happen_is_told_of(prometheus: Prometheus, unheard_of: None) -> None:
    fires(prometheus, *UNHEARD_OF)


@pytest.mark.parametrize("process", reference.PROCESSES)
def test_a_process_tells_of_what_the_reference_says_and_of_nothing_else(
    system: Stack, shoppers: Process, unheard_of: None, process: str
) -> None:
    port = metrics_ports(system)[process]
    documented = reference.documented(process)
    documented.pop("shop_consumer_missed_total", None)  # there when events are lost
    wait_for(f"all of {sorted(documented)}", lambda: documented.keys() <= reference.scraped(port).keys(), DATA_SECONDS)

    scraped = reference.scraped(port)
    assert {name: set().union(*series) for name, series in scraped.items()} == documented
    values = [(name, *label) for name, series in scraped.items() for labels in series for label in labels.items()]
    assert [found for found in values if ENDLESS.fullmatch(found[-1])] == []
