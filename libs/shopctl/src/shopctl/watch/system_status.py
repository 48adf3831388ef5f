"""What the parts of the system say of themselves, asked at the same time, and what is wrong with them."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from shop_common.events.dead_letters import SUFFIX
from shopctl.events.dead_letters import GROUP, DeadLetters
from shopctl.events.topics import READERS, TOPICS, Broker
from shopctl.system import target
from shopctl.system.process_state import state_of
from shopctl.system.runfile import RunFile
from shopctl.watch import database_state, health
from shopctl.watch.asking import ask
from shopctl.watch.away import Away
from shopctl.watch.database_state import DatabaseState
from shopctl.watch.health import SERVING

ALL_IS_WELL = "All is well."

OLDEST_SECONDS_MAX = 10.0
"""An event waits for less, unless the relay or the broker is away."""


@dataclass(frozen=True)
class ProcessState:
    """`state` is running, frozen or gone; `ready` and `alive` are what its health service says."""

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
    """Events of one partition that a group has not acted upon."""

    group: str
    topic: str
    partition: int
    lag: int


@dataclass(frozen=True)
class Status:
    """What each part said, or why it said nothing. `broker` is the state of the embedded one."""

    processes: list[ProcessState] | Away
    broker: str | None
    databases: Mapping[str, DatabaseState | Away]
    consumers: list[Lag] | Away
    dead_letters: dict[str, int] | Away

    @property
    def is_well(self) -> bool:
        """Whether every part answered, and every process serves."""
        return not self.away and not isinstance(self.processes, Away) and all(one.serves for one in self.processes)

    @property
    def away(self) -> dict[str, str]:
        """The parts that did not answer, and why."""
        parts: dict[str, object] = {f"{name} database": state for name, state in self.databases.items()}
        parts |= {"processes": self.processes, "consumers": self.consumers, "dead letters": self.dead_letters}
        return {name: part.reason for name, part in parts.items() if isinstance(part, Away)}

    @property
    def summary(self) -> str:
        """One sentence: what is wrong, the worst first."""
        troubles = "; ".join(self._troubles())
        return f"Trouble: {troubles}." if troubles else ALL_IS_WELL

    def _troubles(self) -> Iterator[str]:
        processes = [] if isinstance(self.processes, Away) else self.processes
        away = dict(self.away)
        yield from (f"{one.name} is gone" for one in processes if one.state == "gone")
        yield from (f"the {name} is away: {away.pop(name)}" for name in list(away) if name.endswith("database"))
        if self.broker in ("gone", "frozen"):
            # Why they are away is said with it.
            yield f"the broker is {self.broker}"
            away.pop("consumers", None)
            away.pop("dead letters", None)
        yield from (f"{one.name} is frozen" for one in processes if one.state == "frozen")
        # Two parts are often away for one reason.
        reasons: dict[str, list[str]] = {}
        for name, reason in away.items():
            reasons.setdefault(reason, []).append(name)
        yield from (f"{' and '.join(names)} can't be read: {reason}" for reason, names in reasons.items())
        yield from (f"{one.name} is {one.ready}" for one in processes if one.state == "running" and not one.serves)
        yield from self._waiting_events()
        if not processes and not isinstance(self.processes, Away):
            yield "no process runs here"

    def _waiting_events(self) -> Iterator[str]:
        for name, state in self.databases.items():
            oldest = 0.0 if isinstance(state, Away) else state.oldest_unshipped_seconds or 0.0
            if oldest > OLDEST_SECONDS_MAX:
                yield f"events of the {name} database have waited for {oldest:.0f} s to be shipped"
        if not isinstance(self.dead_letters, Away) and (count := sum(self.dead_letters.values())):
            yield f"{count} dead letters wait for somebody (./task dlq)"


def status(options: argparse.Namespace) -> Status:
    """Of what runs here, or of what the options name."""
    answers: dict[str, Any] = ask(
        {
            "processes": _processes,
            "inventory": lambda: database_state.read(target.databases(options).inventory),
            "orders": lambda: database_state.read(target.databases(options).orders),
            "consumers": lambda: _lags(target.bootstrap(options)),
            "dead letters": lambda: _dead_letters(target.bootstrap(options)),
        }
    )
    found = target.running()
    return Status(
        processes=answers["processes"],
        broker=state_of(found.broker_pid) if isinstance(found, RunFile) and found.broker_pid else None,
        databases={name: answers[name] for name in ("inventory", "orders")},
        consumers=answers["consumers"],
        dead_letters=answers["dead letters"],
    )


def _processes() -> list[ProcessState]:
    """Of what runs here; none when nothing does."""
    found = target.running()
    if found is None:
        return []
    answers = health.of_system()
    # After the answers: one that is stopped or ends meanwhile is called so, and not by the answer that it did not give.
    known: dict[str, tuple[int | None, str, str]]
    if isinstance(found, RunFile):
        known = {name: (one.pid, state_of(one.pid), version(name)) for name, one in found.processes.items()}
    else:
        known = {one.name: (None, "running" if one.runs else "gone", one.version) for one in found.processes}
    return [
        ProcessState(one.name, pid, state, one.address, one.ready, one.alive, of_version)
        for one in answers
        for pid, state, of_version in [known[one.name]]
    ]


def _lags(bootstrap: str) -> list[Lag]:
    found = []
    for topic, group in READERS.items():
        with Broker(bootstrap, group) as broker:
            commits = broker.commits(topic)
            for partition, bounds in broker.bounds(topic).items():
                done = commits[partition].offset if partition in commits else bounds.first
                found.append(Lag(group, topic, partition, bounds.end - max(done, bounds.first)))
    return found


def _dead_letters(bootstrap: str) -> dict[str, int]:
    with Broker(bootstrap, GROUP) as broker:
        return {topic: DeadLetters(broker, topic).waiting() for topic in TOPICS if topic.endswith(SUFFIX)}
