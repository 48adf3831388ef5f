"""Show how the system is: processes, databases, and how far the consumers are.

  oldest unshipped   how long the oldest event has waited for the relay; above a few seconds, Kafka or the relay is away
  lag                events of a topic that its consumer has not acted upon yet
  dead letters       events that a consumer gave up on and nobody has redriven; ./task dlq shows them

Reads only. Exit code 0 when all of it could be read, whatever it says.
"""

import argparse
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import psutil
from rich.table import Column
from rich.text import Text

from devstack.broker import TOPICS
from devstack.commands import database_state, health, target
from devstack.commands.database_state import DatabaseState
from devstack.commands.dead_letters import GROUP, DeadLetters
from devstack.commands.output import add_json, console, number, print_json, print_table, whole
from devstack.commands.topics import Broker
from devstack.drain import READERS
from devstack.runfile import RunFile
from shop_common.dead_letters import SUFFIX


@dataclass(frozen=True)
class Lag:
    """Events of one partition that a group has not acted upon."""

    group: str
    topic: str
    partition: int
    lag: int


def configure(parser: argparse.ArgumentParser) -> None:
    target.add_databases(parser)
    target.add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    bootstrap, databases = target.bootstrap(options), target.databases(options)
    processes = _processes()
    states = {"inventory": database_state.read(databases.inventory), "orders": database_state.read(databases.orders)}
    lags, letters = _lags(bootstrap), _dead_letters(bootstrap)
    if options.json:
        print_json(
            {
                "processes": processes,
                "databases": {name: asdict(state) for name, state in states.items()},
                "consumers": [asdict(lag) for lag in lags],
                "dead_letters": letters,
            }
        )
        return 0
    _show_processes(processes)
    _show_databases(states)
    print_table("consumers", ["group", "topic", whole("partition"), number("lag")], [_row(lag) for lag in lags])
    console().print()
    print_table("dead letters", ["topic", number("not redriven")], letters.items())
    return 0


def _processes() -> list[dict[str, Any]]:
    """Of what runs here; none when nothing does."""
    found = target.running()
    if found is None:
        return []
    if isinstance(found, RunFile):
        known = {
            name: {"pid": one.pid, "running": psutil.pid_exists(one.pid), "version": version(name)}
            for name, one in found.processes.items()
        }
    else:
        known = {one.name: {"pid": None, "running": one.runs, "version": one.version} for one in found.processes}
    return [
        {"name": one.name, "address": one.address, "ready": one.ready, "alive": one.alive} | known[one.name]
        for one in health.of_system()
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


def _row(lag: Lag) -> list[object]:
    return [lag.group, lag.topic, lag.partition, lag.lag]


def _show_processes(processes: list[dict[str, Any]]) -> None:
    rows = [
        (
            one["name"],
            one["pid"],
            Text("running", "green") if one["running"] else Text("gone", "bold red"),
            one["address"],
            health.coloured(one["ready"]),
            one["version"],
        )
        for one in processes
    ]
    print_table("processes", ["process", whole("pid"), "state", "address", "health", "version"], rows)
    if not rows:
        console().print("nothing is running here", style="dim")
    console().print()


def _show_databases(states: dict[str, DatabaseState]) -> None:
    counts = [(name, table, rows) for name, state in states.items() for table, rows in state.rows.items()]
    print_table("rows", ["database", "table", number("rows")], counts)
    console().print()
    outboxes = [
        (
            name,
            state.outbox_backlog,
            None if state.oldest_unshipped_seconds is None else f"{state.oldest_unshipped_seconds:.1f} s",
            ", ".join(f"{owner} ({shards} shards)" for owner, shards in state.leases.items()) or None,
        )
        for name, state in states.items()
    ]
    columns: list[str | Column] = ["database", number("unshipped events"), number("oldest unshipped"), "shipped by"]
    print_table("outboxes", columns, outboxes)
    console().print()
