"""Runs the whole system on one machine: the four processes and the console, with two databases and a broker.

`dev`, the end-to-end tests and the benchmarks use it. Each process gets all of its settings from here, and none from
the caller's environment.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from devstack.certificates import Files
from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.process import Process, ProcessEnded
from shop_common.environment.listen import is_loopback
from shopctl.system.layout import (
    CONSOLE,
    INVENTORY_API,
    INVENTORY_PORT,
    ORDER_API,
    ORDERS_PORT,
    REAPER,
    RELAY,
    Databases,
    reachable,
)

__all__ = ["Databases", "Options", "Ports", "Stack", "target_of"]

MIGRATE_SECONDS = 120
READY_SECONDS = 120
STOP_SECONDS = 20
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Ports:
    """The ports of the processes: gRPC with health, the page, health only (for probes), and metrics (0 means off)."""

    inventory: int = INVENTORY_PORT
    orders: int = ORDERS_PORT
    reaper: int = 50055
    relay: int = 50056
    inventory_health: int = 50063
    orders_health: int = 50064
    console: int = 50080
    console_health: int = 50057
    inventory_metrics: int = 9464
    orders_metrics: int = 9465
    reaper_metrics: int = 9466
    relay_metrics: int = 9467
    console_metrics: int = 9468

    @classmethod
    def free(cls, *, metrics: bool = False) -> Self:
        """Return free ports. Metrics are off, unless `metrics` is set."""
        found = free_ports(13 if metrics else 8)
        return cls(*found, *([] if metrics else [0] * 5))

    def health_of(self, process: str) -> int:
        """Return the port of the process for probes."""
        return {
            INVENTORY_API: self.inventory_health,
            ORDER_API: self.orders_health,
            REAPER: self.reaper,
            RELAY: self.relay,
            CONSOLE: self.console_health,
        }[process]

    def metrics_of(self, process: str) -> int:
        """Return the port of the metrics of the process, or 0."""
        return {
            INVENTORY_API: self.inventory_metrics,
            ORDER_API: self.orders_metrics,
            REAPER: self.reaper_metrics,
            RELAY: self.relay_metrics,
            CONSOLE: self.console_metrics,
        }[process]

    def all(self) -> list[int]:
        return [port for port in vars(self).values() if port]


@dataclass(frozen=True)
class Options:
    """Settings of a stack. `environment` applies to all processes, and `per_process` to the process that it names.

    `certificates` has the files of each workload. If it is set, the processes use mutual TLS. The console runs
    only with `has_console`.
    """

    log_format: str = "console"
    drain_seconds: float = 0
    reap_interval_seconds: float = 1
    listen_host: str = "127.0.0.1"
    environment: Mapping[str, str] = field(default_factory=dict)
    per_process: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    certificates: Mapping[str, Files] | None = None
    has_console: bool = False


class Stack:
    """The processes. On entry, a stack migrates both schemas and starts all processes; on exit, it stops them."""

    def __init__(
        self,
        databases: Databases,
        kafka: Kafka,
        ports: Ports | None = None,
        options: Options | None = None,
        on_line: Callable[[str, str], None] | None = None,
    ) -> None:
        self.databases = databases
        self.kafka = kafka
        self.ports = ports or Ports.free()
        self._options = options or Options()
        self._on_line = on_line
        self.inventory_api = self._process(INVENTORY_API)
        self.order_api = self._process(ORDER_API)
        self.reaper = self._process(REAPER)
        self.relay = self._process(RELAY)
        self.console = self._process(CONSOLE)

    @property
    def processes(self) -> list[Process]:
        found = [self.inventory_api, self.order_api, self.reaper, self.relay]
        return [*found, self.console] if self._options.has_console else found

    @property
    def inventory_address(self) -> str:
        return self._address(self.ports.inventory)

    @property
    def orders_address(self) -> str:
        return self._address(self.ports.orders)

    def __enter__(self) -> Self:
        try:
            self.migrate()
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def migrate(self, *, reset: bool = False) -> None:
        """Migrate both schemas; `reset` drops everything first. Raises ProcessEnded or TimeoutError."""
        migrations = [self._process(name) for name in (INVENTORY_API, ORDER_API)]
        try:
            for migration in migrations:
                migration.args += ["migrate", *(["--reset"] if reset else [])]
                migration.start()
            for migration in migrations:
                if code := migration.wait(MIGRATE_SECONDS):
                    what = f"the migration of {migration.name} ended with exit code {code}"
                    raise ProcessEnded(f"{what}\n{migration.tail()}")
        finally:
            for migration in migrations:
                if migration.alive:
                    migration.kill()

    def start(self) -> Self:
        """Start all processes and wait until all are ready. Raises ProcessEnded or TimeoutError."""
        for process in self.processes:
            process.start()
        self.wait_ready()
        return self

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until all processes are ready. Raises ProcessEnded as soon as one ends, or TimeoutError."""
        deadline = time.monotonic() + seconds
        while unready := [process for process in self.processes if not process.is_ready()]:
            if time.monotonic() > deadline:
                names = ", ".join(process.name for process in unready)
                raise TimeoutError(f"not ready after {seconds:g} s: {names}\n{unready[0].tail()}")
            time.sleep(_POLL_SECONDS)

    def move_apis(self, inventory_port: int, orders_port: int) -> None:
        """Set other ports for both APIs. Each API uses its new port from its next start on."""
        self.ports = replace(self.ports, inventory=inventory_port, orders=orders_port)
        for process in (self.inventory_api, self.order_api):
            process.env = self._environment(process.name)
            process.health_address = self._health_address(process.name)

    def stop(self) -> dict[str, int]:
        """End all running processes gracefully, or kill them after a timeout. Returns their exit codes."""
        running = [process for process in self.processes if process.alive]
        for process in running:
            process.terminate()
        return {process.name: process.finish(STOP_SECONDS) for process in running}

    def _process(self, name: str) -> Process:
        listener = self._on_line
        return Process(
            name,
            [sys.executable, "-m", name.replace("-", "_")],
            self._environment(name),
            health_address=self._health_address(name),
            on_line=listener and (lambda line: listener(name, line)),
        )

    def _address(self, port: int) -> str:
        return f"{reachable(self._options.listen_host)}:{port}"

    def _health_address(self, name: str) -> str:
        """Return the address for health checks: without TLS, an API's own port; in all other cases, the health port."""
        if name == CONSOLE:
            return f"127.0.0.1:{self.ports.health_of(name)}"
        if self._options.certificates is None and name in (INVENTORY_API, ORDER_API):
            return self.inventory_address if name == INVENTORY_API else self.orders_address
        return self._address(self.ports.health_of(name))

    def _security(self, name: str) -> dict[str, str]:
        if self._options.certificates is None:
            # The caller chose this address, so plain text on it is intended.
            return {} if is_loopback(self._options.listen_host) else {"INSECURE": "true"}
        files = self._options.certificates[name]
        return {
            "TLS_CERT_PATH": str(files.cert.absolute()),
            "TLS_KEY_PATH": str(files.key.absolute()),
            "TLS_CA_PATH": str(files.ca.absolute()),
            # The console serves browsers, which sign in with a key or a token instead of a certificate.
            **({"SIGN_IN": "true"} if name == CONSOLE else {"TLS_CLIENT_CA_PATH": str(files.ca.absolute())}),
        }

    def _watched(self) -> Iterator[str]:
        for name in (INVENTORY_API, ORDER_API, REAPER, RELAY):
            health, metrics = self.ports.health_of(name), self.ports.metrics_of(name)
            yield f"{name}={self._address(health)}" + (f"/{self._address(metrics)}" if metrics else "")

    def _environment(self, name: str) -> dict[str, str]:
        options, ports = self._options, self.ports
        common = {
            "LOG_FORMAT": options.log_format,
            "LISTEN_HOST": options.listen_host,
            "HEALTH_PORT": str(ports.health_of(name)),
            "METRICS_PORT": str(ports.metrics_of(name)),
            "DRAIN_SECONDS": f"{options.drain_seconds:g}",
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
        }
        own = {
            INVENTORY_API: {
                "DATABASE_URL": self.databases.inventory,
                "GRPC_PORT": str(ports.inventory),
                "REFLECTION": "true",
                "ORDER_TARGET": self.orders_address,
            },
            ORDER_API: {
                "DATABASE_URL": self.databases.orders,
                "GRPC_PORT": str(ports.orders),
                "REFLECTION": "true",
                "INVENTORY_TARGET": self.inventory_address,
            },
            REAPER: {
                "INVENTORY_TARGET": self.inventory_address,
                "ORDER_TARGET": self.orders_address,
                "REAP_INTERVAL_SECONDS": f"{options.reap_interval_seconds:g}",
            },
            RELAY: {
                "INVENTORY_DATABASE_URL": self.databases.inventory,
                "ORDERS_DATABASE_URL": self.databases.orders,
            },
            CONSOLE: {
                # Everyone who reaches the page can use it, so it stays on this machine.
                "LISTEN_HOST": "127.0.0.1",
                "HTTP_PORT": str(ports.console),
                "INVENTORY_TARGET": self.inventory_address,
                "ORDER_TARGET": self.orders_address,
                "PROCESSES": ",".join(self._watched()),
                "GRACE_SECONDS": "1",
            },
        }
        return (
            common
            | own[name]
            | self._security(name)
            | dict(options.environment)
            | dict(options.per_process.get(name, {}))
        )


def target_of(*ports: int) -> str:
    """Return a gRPC target that balances calls over the processes at these ports."""
    return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
