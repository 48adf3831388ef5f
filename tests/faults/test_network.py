"""Network faults on each connection: refused, hanging, slow, reset, and a COMMIT whose response is lost."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
from sqlalchemy.engine import make_url

from devstack import kafka as kafka_brokers
from devstack.kafka import IMAGE, Kafka
from devstack.ports import free_ports
from devstack.postgres import PostgresServer
from devstack.servers.containers import Container
from devstack.stack import Databases
from shopctl.events.topics import TOPICS
from shopctl.system.layout import INVENTORY_API, ORDER_API
from tests.faults.proxy import NetworkFault, Proxy
from tests.faults.system import System, running

pytestmark = pytest.mark.timeout(500)

FAULTS = [fault for fault in NetworkFault if fault is not NetworkFault.NONE]
FAULTS_WITHOUT_COMMIT = [fault for fault in FAULTS if fault is not NetworkFault.COMMIT_UNANSWERED]
HIT_SECONDS = 60


@pytest.fixture(scope="module")
def between() -> Iterator[ExitStack]:
    """Ends the proxies after the module's tests."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def to_kafka(docker_engine: str, between: ExitStack) -> tuple[Proxy, Kafka]:
    """A broker that advertises the address of a proxy in front of it."""
    inside, outside = free_ports(2)
    settings = kafka_brokers.container_settings(inside) | {
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{outside}"
    }
    container = Container.start(IMAGE, inside, settings, inside=inside)
    between.callback(container.stop)
    proxy = between.enter_context(Proxy(outside, inside))
    kafka = Kafka(f"127.0.0.1:{outside}", f"{IMAGE} behind a proxy ({docker_engine})", container)
    kafka.wait_until_it_answers()
    kafka.create_topics(*TOPICS)
    return proxy, kafka


@pytest.fixture(scope="module")
def to_postgres(postgres_server: PostgresServer, between: ExitStack) -> tuple[Proxy, Databases]:
    direct = Databases.on_server(postgres_server)
    (port,) = free_ports(1)
    proxy = between.enter_context(Proxy(port, make_url(direct.orders).port or 0))
    return proxy, Databases(_at(direct.inventory, port), _at(direct.orders, port))


@pytest.fixture(scope="module")
def system(to_postgres: tuple[Proxy, Databases], to_kafka: tuple[Proxy, Kafka], between: ExitStack) -> Iterator[System]:
    with running(to_postgres[1], to_kafka[1], proxy_for=lambda port: _through(between, port)) as system:
        yield system


def _through(between: ExitStack, port: int) -> Proxy:
    (own,) = free_ports(1)
    return between.enter_context(Proxy(own, port))


def _at(url: str, port: int) -> str:
    return make_url(url).set(port=port).render_as_string(hide_password=False)


@pytest.mark.short
def test_between_the_processes_and_postgresql(system: System, to_postgres: tuple[Proxy, Databases], seed: int) -> None:
    inject(system, to_postgres[0], FAULTS, seed)


@pytest.mark.short
def test_between_the_processes_and_kafka(system: System, to_kafka: tuple[Proxy, Kafka], seed: int) -> None:
    # No call waits for Kafka, so only a hundred calls or more take as long as the timeouts of Kafka's clients.
    inject(system, to_kafka[0], FAULTS_WITHOUT_COMMIT, seed, attempts=(100, 300))


@pytest.mark.parametrize("api", [INVENTORY_API, ORDER_API])
def test_between_an_api_and_its_callers(system: System, seed: int, api: str) -> None:
    inject(system, system.proxies[api], FAULTS_WITHOUT_COMMIT, seed)


def inject(
    system: System, proxy: Proxy, faults: Sequence[NetworkFault], seed: int, attempts: tuple[int, int] = (5, 15)
) -> None:
    """Inject each of these faults in random order, with pauses between them, while clients work."""
    chance = random.Random(seed)
    with system.history(seed) as clients, clients.working():
        for fault in chance.sample(faults, len(faults)):
            clients.wait_for(10)
            so_far = proxy.incidents
            with proxy.fault(fault):
                system.eventually(lambda: proxy.incidents > so_far, HIT_SECONDS, f"{fault} affects a connection")  # noqa: B023 - called at once
                clients.wait_for_attempts(chance.randint(*attempts))
        clients.wait_for(10)
    system.wait_ready()
