"""Show the state of the system: processes, databases and consumers. The first line lists the problems.

  oldest unshipped   age of the oldest event in the outbox; above 10 s, Kafka or the relay does not work
  lag                events of a topic that its consumer has not handled yet
  dead letters       events that a consumer set aside and that were not redriven; ./task dlq lists them

The command changes nothing. A part that does not respond is shown as unavailable, with the reason. The exit code is 0
if every part responded and every process serves, otherwise 1. Waiting events and dead letters do not change it.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict

from rich.table import Column
from rich.text import Text

from shopctl.events.connection import add_broker
from shopctl.system import target
from shopctl.terminal.output import add_json, console, number, print_json, print_table, whole
from shopctl.watch import health
from shopctl.watch.database_state import DatabaseState
from shopctl.watch.system_status import ALL_IS_WELL, Lag, ProcessState, Status, status
from shopctl.watch.unavailable import Unavailable

_STATE_STYLES = {"running": "green", "frozen": "bold cyan", "gone": "bold red"}


def configure(parser: argparse.ArgumentParser) -> None:
    target.add_databases(parser)
    add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the state. Raises NotRunning if no system is running and the options do not name all parts."""
    if not (options.bootstrap and options.inventory_url and options.orders_url):
        target.system()
    state = status(options)
    if options.json:
        print_json(_document(state))
    else:
        console().print(
            Text(state.summary, "bold green" if state.summary == ALL_IS_WELL else "bold red"), soft_wrap=True
        )
        console().print()
        _show_processes(state.processes)
        _show_databases(state.databases)
        _show_consumers(state.consumers)
        _show_dead_letters(state.dead_letters)
    return 0 if state.is_well else 1


def _document(state: Status) -> dict[str, object]:
    processes = [] if isinstance(state.processes, Unavailable) else state.processes
    return {
        "summary": state.summary,
        "away": state.unavailable,
        "processes": [asdict(one) | {"running": one.state != "gone"} for one in processes],
        "broker": state.broker,
        "databases": {name: asdict(one) for name, one in state.databases.items() if not isinstance(one, Unavailable)},
        "consumers": [] if isinstance(state.consumers, Unavailable) else [asdict(lag) for lag in state.consumers],
        "dead_letters": {} if isinstance(state.dead_letters, Unavailable) else state.dead_letters,
    }


def _show_processes(processes: list[ProcessState] | Unavailable) -> None:
    columns: list[str | Column] = ["process", whole("pid"), "state", "address", "health", "version"]
    if isinstance(processes, Unavailable):
        print_table("processes", columns, [[_unavailable(processes), *[None] * 5]])
        return
    rows = [
        (
            one.name,
            one.pid,
            Text(one.state, _STATE_STYLES[one.state]),
            one.address,
            health.coloured(one.ready),
            one.version,
        )
        for one in processes
    ]
    print_table("processes", columns, rows)
    if not rows:
        console().print("no process is running here", style="dim")
    console().print()


def _show_databases(states: Mapping[str, DatabaseState | Unavailable]) -> None:
    counts: list[tuple[object, ...]] = []
    outboxes: list[tuple[object, ...]] = []
    for name, state in states.items():
        if isinstance(state, Unavailable):
            counts.append((name, _unavailable(state), None))
            outboxes.append((name, None, None, _unavailable(state)))
            continue
        counts += [(name, table, rows) for table, rows in state.rows.items()]
        oldest = state.oldest_unshipped_seconds
        owners = ", ".join(f"{owner} ({shards} shards)" for owner, shards in state.leases.items())
        outboxes.append((name, state.outbox_backlog, None if oldest is None else f"{oldest:.1f} s", owners or None))
    columns: list[str | Column] = ["database", "table", number("rows")]
    print_table("rows", columns, counts)
    console().print()
    columns = ["database", number("unshipped events"), number("oldest unshipped"), "shipped by"]
    print_table("outboxes", columns, outboxes)
    console().print()


def _show_consumers(lags: list[Lag] | Unavailable) -> None:
    columns: list[str | Column] = ["group", "topic", whole("partition"), number("lag")]
    if isinstance(lags, Unavailable):
        rows: list[tuple[object, ...]] = [(_unavailable(lags), None, None, None)]
    else:
        rows = [(lag.group, lag.topic, lag.partition, lag.lag) for lag in lags]
    print_table("consumers", columns, rows)
    console().print()


def _show_dead_letters(letters: dict[str, int] | Unavailable) -> None:
    rows: list[tuple[object, ...]] = (
        [(_unavailable(letters), None)] if isinstance(letters, Unavailable) else list(letters.items())
    )
    columns: list[str | Column] = ["topic", number("not redriven")]
    print_table("dead letters", columns, rows)


def _unavailable(part: Unavailable) -> Text:
    return Text(f"unavailable: {part.reason}", "bold red")
