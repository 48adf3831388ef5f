"""Real processes under load, scraped by a real Prometheus: every panel shows something, and what breaks is told of.

A minute of the alert rules is a second here.
"""

import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest

from devstack import kafka
from devstack.commands.shoppers import PRODUCTS
from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.process import Process
from devstack.stack import RELAY, Databases, Options, Ports, Stack
from shop_common.errors import ShopError
from tests.e2e.shop import Shop
from tests.observability.jaeger import Jaeger
from tests.observability.prometheus import ROOT, Prometheus, configure, metrics_in, wait_for

pytestmark = [pytest.mark.usefixtures("docker_engine"), pytest.mark.timeout(300)]

DATA_SECONDS = 90
FIRE_SECONDS = 60
RESOLVE_SECONDS = 90

SHOPPERS_A_SECOND = 8

# In seconds, too long for a test.
LOWER = {"(shop_outbox_oldest_event_age_seconds) > 60": "(shop_outbox_oldest_event_age_seconds) > 3", "> 120": "> 12"}

# What counts them is there from the first time on.
NEVER_HAPPENED = {"shop_short_fulfilments_total", "shop_consumer_dead_letters_total", "shop_consumer_missed_total"}

Json = dict[str, Any]


def panels() -> list[Json]:
    dashboards = [json.loads(path.read_text()) for path in sorted((ROOT / "deploy/grafana/dashboards").iterdir())]
    return [panel for dashboard in dashboards for panel in dashboard["panels"] if panel["type"] != "row"]


def targets() -> list[Json]:
    return [target for panel in panels() for target in panel["targets"]]


def as_grafana_asks(target: Json) -> str:
    """Over ten scrapes."""
    return str(target["expr"]).replace("$__rate_interval", "10s")


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
    command = [sys.executable, "-m", "devstack", "load", "--minutes", "60", "--rate", str(SHOPPERS_A_SECOND)]
    addresses = ["--inventory", system.inventory_address, "--orders", system.orders_address]
    process = Process("load", [*command, *addresses]).start()
    try:
        yield process
        assert process.alive, process.tail()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def prometheus(system: Stack, shoppers: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    ports = system.ports
    folder = tmp_path_factory.mktemp("prometheus")
    configure(
        folder,
        {
            "inventory-api": ports.inventory_metrics,
            "order-api": ports.orders_metrics,
            "reservation-reaper": ports.reaper_metrics,
            "event-relay": ports.relay_metrics,
        },
        quicker=60,
        lower=LOWER,
    )
    with Prometheus(folder) as running:
        wait_for("all are scraped", lambda: set(running.targets().values()) == {"up"}, DATA_SECONDS)
        yield running


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


def search_of(url: str) -> Json:
    (panes,) = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["panes"]
    (search,) = json.loads(panes)["t"]["queries"]
    return dict(search)


def filled(text: str, series: Json) -> str:
    """As Grafana puts the labels of a series into its links."""
    return re.sub(r"\$\{__field\.labels\.(\w+):percentencode\}", lambda found: series["metric"][found[1]], text)


def tags_of(logfmt: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in logfmt.split())


# --- alerts ---


def test_the_rules_ask_for_metrics_that_there_are(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert rules
    assert not {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"}
    asked_for = metrics_in(rule["query"] for rule in rules)
    assert asked_for >= NEVER_HAPPENED
    assert asked_for - NEVER_HAPPENED <= prometheus.names()


def fires(prometheus: Prometheus, *alerts: tuple[str, str]) -> None:
    wait_for(f"{alerts} fire", lambda: prometheus.firing() >= set(alerts), FIRE_SECONDS)


def resolve(prometheus: Prometheus, *alerts: tuple[str, str]) -> None:
    wait_for(f"{alerts} are over", lambda: not prometheus.firing() & set(alerts), RESOLVE_SECONDS)


def told_of(prometheus: Prometheus, fault: AbstractContextManager[object], *alerts: tuple[str, str]) -> None:
    """They do not fire before, do while it lasts, and no more when it is over."""
    resolve(prometheus, *alerts)
    with fault:
        fires(prometheus, *alerts)
    resolve(prometheus, *alerts)


def test_a_frozen_kafka_is_told_of(prometheus: Prometheus, broker: Kafka) -> None:
    told_of(prometheus, broker.frozen(), ("ShopOutboxOld", "inventory"), ("ShopOutboxOld", "orders"))


def test_a_frozen_postgresql_is_told_of(prometheus: Prometheus, postgres_server: PostgresServer) -> None:
    told_of(
        prometheus,
        postgres_server.frozen(),
        ("ShopErrorBudgetBurnsFast", "inventory-api"),
        ("ShopReaperSilent", "expire-reservations"),
    )


def test_a_frozen_inventory_api_is_told_of(prometheus: Prometheus, system: Stack) -> None:
    # The shoppers look for stock first, and then do not come to order-api.
    with a_buyer_who_insists(system):
        told_of(
            prometheus,
            system.inventory_api.frozen(),
            ("ShopProcessDown", "inventory-api"),
            ("ShopServiceDown", "inventory-api"),
            ("ShopErrorBudgetBurnsFast", "order-api"),
        )


@contextmanager
def a_buyer_who_insists(system: Stack) -> Iterator[None]:
    gone = threading.Event()

    def insist(shop: Shop) -> None:
        while not gone.wait(0.1):
            with suppress(ShopError):
                shop.place_order((PRODUCTS[1], 1))

    with Shop.of(system) as shop, ThreadPoolExecutor(1) as buyer:
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


def test_a_message_that_nobody_can_read_is_told_of(prometheus: Prometheus, broker: Kafka) -> None:
    resolve(prometheus, ("ShopDeadLetters", "inventory-api"))
    broker.produce("order-events", "1", "no JSON", {"ce_id": "1", "ce_type": "ORDER_SHIPPED"})

    fires(prometheus, ("ShopDeadLetters", "inventory-api"))
