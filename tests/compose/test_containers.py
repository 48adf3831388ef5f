"""The images and docker-compose.yml in a running composition with several replicas."""

import json
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from google.type.money_pb2 import Money

from devstack.__main__ import main
from shop_common.errors import ShopError
from shop_common.events.kafka_connection import (
    KafkaConnection,
)
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders
from shopctl.client import Shop
from shopctl.system import docker
from shopctl.system.docker import engine
from testkit.eventually import eventually
from tests.compose.composition import REPLICAS, ROOT, SERVICES, UP_SECONDS, Composition, service_of

PRODUCT = 4711
BACK_SECONDS = 120

ORDERS_EACH = 20
"""Enough orders for each replica of an API to get some."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def system(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    with Composition(tmp_path_factory.mktemp("empty")) as running:
        yield running


@pytest.fixture
def shop(system: Composition) -> Iterator[Shop]:
    """A client outside the containers, which knows only the published ports."""
    with Shop.connect(f"127.0.0.1:{system.inventory_port}", f"127.0.0.1:{system.orders_port}") as opened:
        yield opened


def create_order(shop: Shop) -> str:
    price = Money(currency_code="EUR", units=1)
    items = [orders.CreateOrderItem(product_id=PRODUCT, quantity=1, price=price)]
    return shop.call(shop.orders.CreateOrder, orders.CreateOrderRequest(user_id=1, items=items)).order.id


def add_stock(shop: Shop) -> None:
    request = inventory.CreateInventoryItemRequest(product_id=PRODUCT, quantity=1_000)
    shop.call(shop.inventory.CreateInventoryItem, request)


def calls_served(system: Composition, service: str, method: str) -> Counter[str]:
    """The number of calls of the method that each replica has served, from its metrics."""
    read = "import urllib.request as u; print(u.urlopen('http://localhost:9464/metrics').read().decode())"
    counted = re.compile(rf'^rpc_server_call_duration_seconds_count{{[^}}]*/{method}"[^}}]*}} ([\d.]+)$', re.MULTILINE)
    counts: Counter[str] = Counter()
    for name in system.of(service):
        counts[name] = sum(
            int(float(count)) for count in counted.findall(docker.run("exec", name, "python", "-c", read))
        )
    return counts


def test_every_replica_of_every_process_is_ready(system: Composition) -> None:
    assert (
        Counter(service_of(one) for one in system.containers()) == {"gateway": 1, "postgres": 1, "kafka": 1} | REPLICAS
    )
    assert system.all_serve(), system.health()


def test_the_smoke_test_passes_through_the_published_ports(system: Composition) -> None:
    assert "All checks passed" in system.task("test-grpc")


def test_the_status_command_reads_both_databases_and_the_broker(system: Composition) -> None:
    status = json.loads(system.task("status", "--json"))

    assert len(status["processes"]) == sum(REPLICAS.values())
    assert status["databases"].keys() == {"inventory", "orders"}
    assert {lag["partition"] for lag in status["consumers"]} == {0, 1, 2}


def test_calls_from_outside_and_inside_are_spread_over_the_replicas(system: Composition, shop: Shop) -> None:
    add_stock(shop)
    before = (
        calls_served(system, "order-api", "CreateOrder"),
        calls_served(system, "inventory-api", "BatchReserveStock"),
    )

    for _ in range(ORDERS_EACH * REPLICAS["order-api"]):
        create_order(shop)

    outside = calls_served(system, "order-api", "CreateOrder") - before[0]
    inside = calls_served(system, "inventory-api", "BatchReserveStock") - before[1]
    assert len(outside) == REPLICAS["order-api"], outside
    assert len(inside) == REPLICAS["inventory-api"], inside


@pytest.mark.parametrize("service", SERVICES)
def test_after_a_kill_and_up_all_replicas_serve(system: Composition, service: str) -> None:
    system.compose("kill", service)
    assert {one["State"]["Status"] for one in system.containers() if service_of(one) == service} == {"exited"}

    system.up()

    eventually(system.all_serve, within_seconds=BACK_SECONDS)
    assert "All checks passed" in system.task("test-grpc")


def test_a_replica_that_exits_is_restarted(system: Composition) -> None:
    (victim, *_) = system.of("order-api")
    started = docker.run("inspect", "--format", "{{.State.StartedAt}}", victim)

    docker.run("exec", victim, "python", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")

    eventually(
        lambda: docker.run("inspect", "--format", "{{.State.StartedAt}}", victim) != started,
        within_seconds=BACK_SECONDS,
    )
    eventually(system.all_serve, within_seconds=BACK_SECONDS)


def test_services_can_be_stopped_and_started_in_any_order_without_loss(system: Composition, shop: Shop) -> None:
    add_stock(shop)
    order = create_order(shop)

    system.compose("stop")
    exit_codes = {one["Name"]: one["State"]["ExitCode"] for one in system.containers() if service_of(one) in REPLICAS}
    assert set(exit_codes.values()) == {0}, f"not all drained and exited with 0: {exit_codes}"

    # Start the services in the reverse sequence of their dependencies: each one before those that it calls.
    for service in ["gateway", "reservation-reaper", "event-relay", "order-api", "inventory-api", "kafka", "postgres"]:
        docker.run("start", *system.of(service))

    eventually(system.all_serve, within_seconds=BACK_SECONDS)
    assert shop.call(shop.orders.GetOrder, orders.GetOrderRequest(id=order)).order.id == order
    assert "All checks passed" in system.task("test-grpc")


def test_ports_are_published_on_loopback_only(system: Composition) -> None:
    published = [
        (one["Name"], binding["HostIp"])
        for one in system.containers()
        for bindings in one["NetworkSettings"]["Ports"].values()
        for binding in bindings or []
    ]

    assert len(published) == 4
    assert {address for _, address in published} == {"127.0.0.1"}


def test_our_images_run_unprivileged_on_a_read_only_file_system(system: Composition) -> None:
    for service in [*REPLICAS, "gateway"]:
        (name, *_) = system.of(service)
        assert docker.run("exec", name, "id", "-u").strip() == "10001"
        assert "Read-only file system" in docker.run("exec", name, "sh", "-c", "touch /there 2>&1 || true")
        build_tools = (
            "command -v cc gcc g++ c++ clang make uv; find / -xdev -path '*/.cache/*' -prune -print 2>/dev/null"
        )
        assert docker.run("exec", name, "sh", "-c", f"{build_tools}; true") == ""


def test_our_images_are_labelled(system: Composition) -> None:
    for service in REPLICAS:
        (name, *_) = system.of(service)
        labels = json.loads(docker.run("inspect", "--format", "{{json .Config.Labels}}", name))
        assert labels["org.opencontainers.image.title"] == service
        assert labels["org.opencontainers.image.version"] == system.name
        assert labels["org.opencontainers.image.revision"]


def test_an_api_refuses_clients_without_a_certificate_and_calls_without_a_permission(system: Composition) -> None:
    query = ("query-inventory", "--inventory", "inventory-api:50053", "--orders", "order-api:50054")
    no_certificate = {"TLS_CERT_PATH": "", "TLS_KEY_PATH": ""}

    assert "items" in system.calling_inside(*query)
    assert "UNAVAILABLE" in system.calling_inside(*query, **no_certificate)
    assert "UNAVAILABLE" in system.calling_inside(*query, **no_certificate, TLS_CA_PATH="")
    # The smoke test also calls the RPCs of maintenance.
    assert "needs the permission maintenance" in system.calling_inside("test-grpc", *query[1:])


def test_postgresql_demands_tls_and_gives_each_role_its_own_password(system: Composition, tmp_path: Path) -> None:
    names = [
        f"postgres-{database}-{role}"
        for database in ("inventory", "orders")
        for role in ("owner", "api", "relay", "console")
    ]
    passwords = {name: system.secret(name) for name in names}
    assert len(set(passwords.values())) == len(names)
    assert min(map(len, passwords.values())) >= 32
    authority = tmp_path / "ca.crt"
    authority.write_text(system.secret("ca.crt"))

    def connect(role: str, password: str, database: str, sslmode: str = "verify-full") -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=system.postgres_port,
            user=f"{database}_{role}" if role != "owner" else database,
            password=passwords[password],
            dbname=database,
            sslmode=sslmode,
            sslrootcert=str(authority),
        )

    for database in ("inventory", "orders"):
        for role in ("owner", "api", "relay", "console"):
            connect(role, f"postgres-{database}-{role}", database).close()
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        connect("console", "postgres-orders-console", "orders", sslmode="disable")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect("console", "postgres-inventory-console", "orders")
    with (
        connect("api", "postgres-inventory-api", "inventory") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("DELETE FROM outbox")


def test_users_of_this_machine_reach_kafka_without_a_login(system: Composition) -> None:
    KafkaConnection(f"127.0.0.1:{system.kafka_port}").check()


CHECK_KAFKA = """
import sys
from pathlib import Path
from shop_common.events.kafka_connection import KafkaConnection, KafkaUnreachable, Login

def accepted(protocol, mechanism=None, user="inventory-api", password=None, ca="/run/secrets/inventory-api/ca.crt"):
    password = password or Path("/run/secrets/inventory-api/kafka-password").read_text().strip()
    login = Login(mechanism, user, password) if mechanism else None
    try:
        KafkaConnection("kafka:9092", protocol, login, ca_path=Path(ca) if "SSL" in protocol else None).check()
    except KafkaUnreachable:
        return False
    return True

print(
    accepted("SASL_SSL", "SCRAM-SHA-512"),
    accepted("PLAINTEXT"),
    accepted("SSL"),
    accepted("SASL_SSL", "SCRAM-SHA-512", password="a guess"),
    accepted("SASL_SSL", "PLAIN", user="admin", password="a guess"),
)
"""


def test_inside_the_network_kafka_demands_tls_and_a_login(system: Composition) -> None:
    accepted = docker.run("exec", system.of("inventory-api")[0], "python", "-c", CHECK_KAFKA)

    assert accepted.split() == ["True", "False", "False", "False", "False"]


def test_each_file_with_a_secret_is_readable_by_one_user_only(system: Composition) -> None:
    for service in ("inventory-api", "order-api", "event-relay", "reservation-reaper", "gateway", "postgres", "kafka"):
        (name, *_) = system.of(service)
        modes = docker.run("exec", name, "sh", "-c", f"stat -c '%a %u' /run/secrets/{service}/*; id -u").split()
        user = modes.pop()
        assert set(zip(modes[::2], modes[1::2], strict=True)) == {("400", user)}


def test_with_other_grants_the_credentials_of_a_call_decide_what_it_may_do(system: Composition) -> None:
    def refusal(key: str | None = None, *, writes: bool = False) -> str:
        # Use a new client each time, because a client whose connection has failed waits longer after each failure.
        addresses = f"127.0.0.1:{system.inventory_port}", f"127.0.0.1:{system.orders_port}"
        with Shop.connect(*addresses, headers=(("authorization", f"Bearer {key}"),) if key else ()) as shop:
            try:
                if writes:
                    add_stock(shop)
                else:
                    question = inventory.CheckStockRequest(product_id=PRODUCT, required_quantity=1)
                    shop.call(shop.inventory.CheckStock, question)
            except ShopError as error:
                return str(error)
        return ""

    reader = system.task("keys", "create", "--name", "reader", "--permissions", "inventory.read", "--expires-in", "1d")
    key = reader.strip()
    system.setting(SHOP_GRANTS=str(ROOT / "deploy/compose/grants-tokens.yaml"))
    try:
        system.up()
        eventually(lambda: "needs the permission inventory.read" in refusal(), within_seconds=BACK_SECONDS)
        # Each API accepts a new key after a few seconds.
        eventually(lambda: not refusal(key), within_seconds=BACK_SECONDS)
        assert "needs the permission inventory.write" in refusal(key, writes=True)
        assert "API key" in refusal(f"{key}x")
        # The workloads inside still have their permissions.
        assert "items" in system.calling_inside("query-inventory", "--inventory", "inventory-api:50053")
    finally:
        system.setting(SHOP_GRANTS="")
        system.up()
    eventually(lambda: not refusal(), within_seconds=BACK_SECONDS)


def test_prometheus_and_jaeger_see_every_replica_under_load(system: Composition) -> None:
    # Not Grafana: tests/observability tests its dashboards.
    system.compose("up", "--no-deps", "--wait", "prometheus", "jaeger", "load", seconds=UP_SECONDS)

    def scraped() -> Counter[str]:
        targets = get(system.prometheus_port, "api/v1/targets")["activeTargets"]
        jobs = (target["labels"]["job"] for target in targets if target["health"] == "up")
        return Counter(job for job in jobs if job in REPLICAS)

    eventually(lambda: scraped() == Counter(REPLICAS), within_seconds=BACK_SECONDS)
    eventually(lambda: set(get(system.jaeger_port, "api/services")) >= set(REPLICAS), within_seconds=BACK_SECONDS)
    eventually(lambda: " delivered" in system.compose("logs", "load"), within_seconds=BACK_SECONDS)
    assert not [rule for rule in rules(system) if rule["health"] == "err"]


def test_a_viewer_signs_in_to_the_console_with_an_api_key(system: Composition) -> None:
    system.compose("up", "--build", "--no-deps", "--wait", "console", seconds=UP_SECONDS)
    grants = ("--permissions", "inventory.read,orders.read", "--expires-in", "1d")
    key = system.task("keys", "create", "--name", "viewer", *grants).strip()
    with closing(HTTPConnection("localhost", system.console_port, timeout=30)) as console:
        _sign_in_and_read(console, system.console_port, key)


def _sign_in_and_read(console: HTTPConnection, port: int, key: str) -> None:
    def sign_in(token: str) -> HTTPResponse:
        headers = {
            "Origin": f"http://localhost:{port}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        console.request("POST", "/sign-in", urlencode({"token": token}), headers)
        response = console.getresponse()
        response.read()
        return response

    assert sign_in(f"{key}x").status == 401
    # Each API accepts a new key after a few seconds.
    eventually(lambda: sign_in(key).status == 303, within_seconds=BACK_SECONDS)
    cookie = sign_in(key).getheader("Set-Cookie", "").partition(";")[0]
    console.request("GET", "/orders", headers={"Cookie": cookie})
    page = console.getresponse()
    assert page.status == 200
    assert key not in page.read().decode()


def rules(system: Composition) -> list[dict[str, Any]]:
    return [rule for group in get(system.prometheus_port, "api/v1/rules")["groups"] for rule in group["rules"]]


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as response:
        return json.load(response)["data"]


def test_without_an_engine_docker_run_prints_one_line(
    docker_engine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")
    engine.cache_clear()
    try:
        assert main(["docker-run"]) == 1
    finally:
        engine.cache_clear()

    assert capfd.readouterr().err == (
        "docker-run: Docker does not respond; start it and check `docker version`; "
        "./task dev runs everything without Docker\n"
    )
