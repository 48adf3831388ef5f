"""The status of the whole system. This module queries all parts in parallel and lists the problems."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from shop_common.events.broker import Broker
from shop_common.events.dead_letter_topic import GROUP, DeadLetterTopic
from shop_common.events.dead_letters import SUFFIX
from shop_common.events.kafka_connection import KafkaConnection
from shopctl.events.connection import connection
from shopctl.events.topics import READERS, TOPICS
from shopctl.system import target
from shopctl.system.process_state import state_of
from shopctl.system.runfile import RunFile
from shopctl.watch import database_state, health
from shopctl.watch.backlog import OLDEST_SECONDS_MAX
from shopctl.watch.database_state import DatabaseState
from shopctl.watch.health import SERVING
from shopctl.watch.parallel import query_all
from shopctl.watch.unavailable import Unavailable

ALL_IS_WELL = "All is well."


@dataclass(frozen=True)
class ProcessState:
    """A process. `state` is running, frozen or gone; `ready` and `alive` are its health statuses."""

    name: str
    pid: int | None
    state: str
    address: str
    ready: str
    alive: str
    version: str

    @property
    def serves(self) -> bool:
        return self.state == "running" and self.ready == SERVING


@dataclass(frozen=True)
class Lag:
    """The number of events of one partition that a group has not handled."""

    group: str
    topic: str
    partition: int
    lag: int


@dataclass(frozen=True)
class Status:
    """The status of each part, or why it is unavailable. `broker` is the state of the embedded broker."""

    processes: list[ProcessState] | Unavailable
    broker: str | None
    databases: Mapping[str, DatabaseState | Unavailable]
    consumers: list[Lag] | Unavailable
    dead_letters: dict[str, int] | Unavailable

    @property
    def is_well(self) -> bool:
        """True if every part responded and every process serves."""
        return (
            not self.unavailable
            and not isinstance(self.processes, Unavailable)
            and all(one.serves for one in self.processes)
        )

    @property
    def unavailable(self) -> dict[str, str]:
        """The parts that did not respond, with the reason."""
        parts: dict[str, object] = {f"{name} database": state for name, state in self.databases.items()}
        parts |= {"processes": self.processes, "consumers": self.consumers, "dead letters": self.dead_letters}
        return {name: part.reason for name, part in parts.items() if isinstance(part, Unavailable)}

    @property
    def summary(self) -> str:
        """One sentence that lists the problems, the most serious first."""
        problems = "; ".join(self._problems())
        return f"Trouble: {problems}." if problems else ALL_IS_WELL

    def _problems(self) -> Iterator[str]:
        processes = [] if isinstance(self.processes, Unavailable) else self.processes
        unavailable = dict(self.unavailable)
        yield from (f"{one.name} is gone" for one in processes if one.state == "gone")
        yield from (
            f"the {name} is unavailable: {unavailable.pop(name)}"
            for name in list(unavailable)
            if name.endswith("database")
        )
        if self.broker in ("gone", "frozen"):
            # The broker's state explains why these are unavailable.
            yield f"the broker is {self.broker}"
            unavailable.pop("consumers", None)
            unavailable.pop("dead letters", None)
        yield from (f"{one.name} is frozen" for one in processes if one.state == "frozen")
        # Two parts are often unavailable for the same reason.
        reasons: dict[str, list[str]] = {}
        for name, reason in unavailable.items():
            reasons.setdefault(reason, []).append(name)
        yield from (f"{' and '.join(names)} cannot be read: {reason}" for reason, names in reasons.items())
        yield from (f"{one.name} is {one.ready}" for one in processes if one.state == "running" and not one.serves)
        yield from self._waiting_events()
        if not processes and not isinstance(self.processes, Unavailable):
            yield "no process is running here"

    def _waiting_events(self) -> Iterator[str]:
        for name, state in self.databases.items():
            oldest = 0.0 if isinstance(state, Unavailable) else state.oldest_unshipped_seconds or 0.0
            if oldest > OLDEST_SECONDS_MAX:
                yield f"events of the {name} database have waited for {oldest:.0f} s"
        if not isinstance(self.dead_letters, Unavailable) and (count := sum(self.dead_letters.values())):
            yield f"{count} dead letters were not redriven (./task dlq)"


def status(options: argparse.Namespace) -> Status:
    """Return the status of the running system, or of the parts that the options name."""
    results: dict[str, Any] = query_all(
        {
            "processes": _processes,
            "inventory": lambda: database_state.read(target.databases(options).inventory),
            "orders": lambda: database_state.read(target.databases(options).orders),
            "consumers": lambda: _lags(connection(options)),
            "dead letters": lambda: _dead_letters(connection(options)),
        }
    )
    found = target.running()
    return Status(
        processes=results["processes"],
        broker=state_of(found.broker_pid) if isinstance(found, RunFile) and found.broker_pid else None,
        databases={name: results[name] for name in ("inventory", "orders")},
        consumers=results["consumers"],
        dead_letters=results["dead letters"],
    )


def _processes() -> list[ProcessState]:
    """Return the processes of the running system; empty if none is running."""
    found = target.running()
    if found is None:
        return []
    healths = health.of_system()
    # Read the states after the health checks, so that a process that stopped meanwhile is shown as gone or frozen.
    known: dict[str, tuple[int | None, str, str]]
    if isinstance(found, RunFile):
        known = {name: (one.pid, state_of(one.pid), version(name)) for name, one in found.processes.items()}
    else:
        known = {one.name: (None, "running" if one.runs else "gone", one.version) for one in found.processes}
    return [
        ProcessState(one.name, pid, state, one.address, one.ready, one.alive, of_version)
        for one in healths
        for pid, state, of_version in [known[one.name]]
    ]


def _lags(kafka: KafkaConnection) -> list[Lag]:
    found = []
    for topic, group in READERS.items():
        with Broker(kafka, group) as broker:
            commits = broker.commits(topic)
            for partition, bounds in broker.bounds(topic).items():
                done = commits[partition].offset if partition in commits else bounds.first
                found.append(Lag(group, topic, partition, bounds.end - max(done, bounds.first)))
    return found


def _dead_letters(kafka: KafkaConnection) -> dict[str, int]:
    with Broker(kafka, GROUP) as broker:
        return {topic: DeadLetterTopic(broker, topic).waiting() for topic in TOPICS if topic.endswith(SUFFIX)}
