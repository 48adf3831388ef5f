"""The variants that are measured: our services, the plain ones, the echo and pgbench, each on its own databases."""

import base64
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Protocol

from benchmarks import cpu, stock
from benchmarks.generator import Job, Outcome
from benchmarks.http2 import Credentials, LoadError
from benchmarks.load import Generator
from benchmarks.scenarios import INVENTORY, ORDERS, RESERVE_HOT, Scenario
from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.process import Process
from devstack.stack import Databases, Options, Ports, Stack
from inventory_api.migrations import SCHEMA as INVENTORY_SCHEMA
from order_api.migrations import SCHEMA as ORDERS_SCHEMA
from shop_common.db.database import Database
from shop_common.db.schema import Schema

READY_SECONDS = 120
STOP_SECONDS = 15

NO_BROKER = Kafka("localhost:9", "none")
SAMPLED = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
QUIET = {"LOG_LEVEL": "warning", "LOG_FORMAT": "json", "WORKERS": "1"}
ALONE = QUIET | {"CONSUMER_ENABLED": "false"}
"""The settings of APIs without a broker."""


class Subject(Protocol):
    """A variant that can be measured."""

    name: str
    database: str

    def start(self) -> None: ...

    def measures(self, scenario: Scenario) -> bool: ...

    def measure(self, scenario: Scenario, calls: int, seconds: float, warmup_seconds: float) -> Outcome:
        """Raises LoadError."""

    def check(self) -> None:
        """Check every count. Raises stock.WrongCount."""

    def stop(self) -> None: ...


class Services:
    """Processes with a gRPC API, and the data that the load generator needs."""

    def __init__(self, name: str, database: str, generator: Generator, database_pids: list[int]) -> None:
        self.name = name
        self.database = database
        self._generator = generator
        self._database_pids = database_pids
        self._done: Counter[Scenario] = Counter()
        self.targets: dict[str, str] = {}
        self.processes: dict[str, list[Process]] = {}
        self.credentials: Credentials | None = None

    def serve_by(self, stack: Stack) -> None:
        """Measure the two APIs of this stack."""
        self.targets = {INVENTORY: stack.inventory_address, ORDERS: stack.orders_address}
        self.processes = {"server": [stack.inventory_api, stack.order_api]}

    def start(self) -> None:
        for process in self._all():
            process.start()
        for process in self._all():
            process.wait_ready(READY_SECONDS)

    def stop(self) -> None:
        for process in reversed(self._all()):
            if process.alive:
                process.stop(STOP_SECONDS)

    def measures(self, scenario: Scenario) -> bool:
        return scenario.service in self.targets and (scenario.by_plain or self.name != "plain")

    def measure(
        self, scenario: Scenario, calls: int, seconds: float, warmup_seconds: float, rate: float | None = None
    ) -> Outcome:
        outcome = self._generator.run(
            Job(
                target=self.targets[scenario.service],
                method=scenario.method,
                bodies=_bodies(scenario),
                calls=calls,
                seconds=seconds,
                warmup_seconds=warmup_seconds,
                tail_field=scenario.tail_field,
                rate=rate,
                processes=self._pids(),
                credentials=asdict(self.credentials) if self.credentials else None,
            )
        )
        if outcome.failed:
            raise LoadError(f"{outcome.failed} of {outcome.succeeded} calls failed: {outcome.failure}")
        self._done[scenario] += outcome.succeeded
        return outcome

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of the processes and the database so far."""
        return {kind: sum(map(cpu.seconds, pids)) for kind, pids in self._pids().items()}

    def check(self) -> None:
        """Do nothing: this variant stores nothing."""

    def count(self, of_each: Callable[[Scenario], int]) -> int:
        """Return the sum of `of_each` over all successful calls."""
        return sum(done * of_each(scenario) for scenario, done in self._done.items())

    def _pids(self) -> dict[str, list[int]]:
        pids = {kind: [process.pid for process in processes] for kind, processes in self.processes.items()}
        return pids | {"database": self._database_pids} if self._database_pids else pids

    def _all(self) -> list[Process]:
        return [process for processes in self.processes.values() for process in processes]


class Stored(Services):
    """Services with two databases, which are filled before the start and checked at the end."""

    def __init__(
        self, name: str, database: str, databases: Databases, generator: Generator, database_pids: list[int]
    ) -> None:
        super().__init__(name, database, generator, database_pids)
        self.databases = databases
        self.events_stay = True

    def start(self) -> None:
        self.fill()
        super().start()

    def fill(self) -> None:
        """Create the schemas and the rows that the calls use."""
        fill_inventory(self.databases.inventory)
        fill_orders(self.databases.orders)

    def check(self) -> None:
        reservations = self.count(lambda scenario: scenario.reservations)
        stock.check_inventory(self.databases.inventory, reservations, events=self.events_stay)
        stock.check_orders(self.databases.orders, self.count(lambda each: each.orders), events=self.events_stay)


class FilledOnce(Stored):
    """Services that are started several times. The caller fills their databases once, before the first start."""

    def start(self) -> None:
        Services.start(self)


def ours(
    database: str,
    databases: Databases,
    generator: Generator,
    database_pids: list[int],
    kafka: Kafka | None = None,
    *,
    collector: str | None = None,
) -> Services:
    """Return the two APIs. With a broker, their consumers and the relay run, too; the relay's CPU time is measured.

    With a collector, the variant is `watched`: metrics are on, and one in a hundred traces goes to the collector.
    """
    environment = QUIET if kafka else ALONE
    if collector:
        environment = environment | SAMPLED | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    ports = Ports.free(metrics=collector is not None)
    stack = Stack(databases, kafka or NO_BROKER, ports, Options(environment=environment))
    subject = Stored("watched" if collector else "ours", database, databases, generator, database_pids)
    subject.serve_by(stack)
    if kafka:
        subject.processes["relay"] = [stack.relay]
        subject.events_stay = False
    return subject


def plain(database: str, databases: Databases, generator: Generator, database_pids: list[int]) -> Services:
    """Return the plain variant of both services."""
    inventory_port, orders_port = free_ports(2)
    subject = Stored("plain", database, databases, generator, database_pids)
    subject.targets = {INVENTORY: _local(inventory_port), ORDERS: _local(orders_port)}
    inventory = {"DATABASE_URL": databases.inventory, "GRPC_PORT": str(inventory_port)}
    orders = {
        "DATABASE_URL": databases.orders,
        "GRPC_PORT": str(orders_port),
        "INVENTORY_TARGET": _local(inventory_port),
    }
    subject.processes = {
        "server": [
            _process("benchmarks.plain.inventory", inventory_port, inventory),
            _process("benchmarks.plain.orders", orders_port, orders),
        ]
    }
    return subject


class Echo(Services):
    """The echo: no database and no work, only the cost of a call in our server."""

    def __init__(self, generator: Generator, *, python: str = sys.executable, folder: Path | None = None) -> None:
        super().__init__("echo", "none", generator, [])
        (port,) = free_ports(1)
        self.targets = {INVENTORY: _local(port)}
        self.processes = {
            "server": [_process("benchmarks.echo", port, QUIET | {"GRPC_PORT": str(port)}, python, folder)]
        }

    def measures(self, scenario: Scenario) -> bool:
        return scenario is RESERVE_HOT


def fill_inventory(url: str) -> None:
    """Create the schema of inventory-api and the stock that the calls use."""
    migrate(url, INVENTORY_SCHEMA)
    stock.fill_inventory(url)


def fill_orders(url: str) -> None:
    """Create the schema of order-api and the orders that the calls use."""
    migrate(url, ORDERS_SCHEMA)
    stock.fill_orders(url)


def migrate(url: str, schema: Schema) -> None:
    """Create the tables of one service."""
    database = Database(url, connections_max=1)
    try:
        schema.upgrade(database)
    finally:
        database.close()


@cache
def _bodies(scenario: Scenario) -> list[str]:
    return [base64.b64encode(body).decode() for body in scenario.bodies()]


def _process(
    module: str, port: int, environment: Mapping[str, str], python: str = sys.executable, folder: Path | None = None
) -> Process:
    return Process(module, [python, "-m", module], environment, health_address=_local(port), folder=folder)


def _local(port: int) -> str:
    return f"localhost:{port}"
