"""The sides that send an outbox to Kafka: the relay as it is deployed, and the plain loop. Each has its own server.

A side that is not measured is frozen with its server, so that it does not affect the measurement of another side.
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from benchmarks.http2 import LoadError
from benchmarks.relay_outbox import Outbox
from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.postgres import PostgresServer
from devstack.process import Process
from shop_common.events.outbox import SHARDS

READY_SECONDS = 120
STOP_SECONDS = 15
FREEZE_SECONDS = 20
_POLL_SECONDS = 0.01


class Side(Protocol):
    """A program that ships the outbox to Kafka."""

    name: str
    outbox: Outbox
    server: PostgresServer
    deletes: bool
    """True if the side deletes the rows itself, so that the deletion is part of the measurement."""

    def start(self) -> None:
        """Start the side, and return when it sends events to Kafka."""

    def stop(self) -> None: ...

    def hold(self) -> None:
        """Pause the side until `go`. A side that uses transactions is not paused within one."""

    def go(self) -> None: ...

    def pids(self) -> Mapping[str, int]:
        """Return the root pid of each process tree of the side, without its PostgreSQL."""


class Program(ABC):
    """A side with one or several processes of a program."""

    deletes = True

    def __init__(self, name: str, server: PostgresServer, kafka: Kafka, count: int = 1) -> None:
        self.name = name
        self.server = server
        self.outbox = Outbox(server, kafka, f"relay-{name}")
        self.processes = [self.process() for _ in range(count)]

    @abstractmethod
    def process(self) -> Process:
        """Return one process, not started yet."""

    def start(self) -> None:
        for process in self.processes:
            process.start()

    def stop(self) -> None:
        for process in self.processes:
            if process.alive:
                process.stop(STOP_SECONDS)
        self.outbox.close()

    def hold(self) -> None:
        # If a process were frozen in a transaction, the server would end its connection, and the process would continue
        # with a backoff.
        deadline = time.monotonic() + FREEZE_SECONDS
        while True:
            for process in self.processes:
                process.freeze()
            if self.outbox.is_idle():
                return
            if time.monotonic() > deadline:
                raise LoadError(f"{self.name} is always in a transaction")
            self.go()
            time.sleep(_POLL_SECONDS)

    def go(self) -> None:
        for process in self.processes:
            process.thaw()

    def pids(self) -> Mapping[str, int]:
        return {f"{self.name} {number}": process.pid for number, process in enumerate(self.processes)}


class Ours(Program):
    """event-relay, with metrics on, as it is deployed."""

    def process(self) -> Process:
        health_port, metrics_port = free_ports(2)
        return Process(
            "event-relay",
            [sys.executable, "-m", "event_relay"],
            {
                "ORDERS_DATABASE_URL": self.outbox.url,
                "KAFKA_BOOTSTRAP_SERVERS": self.outbox.kafka.bootstrap,
                "HEALTH_PORT": str(health_port),
                "METRICS_PORT": str(metrics_port),
                "LOG_LEVEL": "warning",
            },
            health_address=f"127.0.0.1:{health_port}",
        )

    def start(self) -> None:
        super().start()
        for process in self.processes:
            process.wait_ready(READY_SECONDS)
        fair = [(SHARDS // len(self.processes),)] * len(self.processes)
        deadline = time.monotonic() + READY_SECONDS
        while self._shares() != fair:
            if time.monotonic() > deadline:
                raise LoadError(f"{len(self.processes)} relays did not share the shards\n{self.processes[-1].tail()}")
            time.sleep(_POLL_SECONDS)

    def _shares(self) -> list[tuple[object, ...]]:
        return self.outbox.execute("SELECT count(*) FROM relay_lease WHERE shard >= 0 GROUP BY owner")


class Loop(Program):
    """The plain loop, `relay_loop`."""

    def process(self) -> Process:
        arguments = [sys.executable, "-m", "benchmarks.relay_loop", self.outbox.plain_url, self.outbox.kafka.bootstrap]
        return Process("loop", arguments)
