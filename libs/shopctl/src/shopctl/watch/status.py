"""Show how the system is: processes, databases, and how far the consumers are. The first line says what is wrong.

  oldest unshipped   how long the oldest event has waited for the relay; above a few seconds, Kafka or the relay is away
  lag                events of a topic that its consumer has not acted upon yet
  dead letters       events that a consumer gave up on and nobody has redriven; ./task dlq shows them

Reads only. A part that does not answer is shown as away, with the reason. Exit code 0 when every part answered and
every process serves, 1 otherwise.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict

from rich.table import Column
from rich.text import Text

from shopctl.system import target
from shopctl.terminal.output import add_json, console, number, print_json, print_table, whole
from shopctl.watch import health
from shopctl.watch.away import Away
from shopctl.watch.database_state import DatabaseState
from shopctl.watch.system_status import ALL_IS_WELL, Lag, ProcessState, Status, status

_STATE_STYLES = {"running": "green", "frozen": "bold cyan", "gone": "bold red"}


def configure(parser: argparse.ArgumentParser) -> None:
    target.add_databases(parser)
    target.add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Raises NotRunning when nothing runs here and the options name not all of it."""
    if not (options.bootstrap and options.inventory_url and options.orders_url):
        target.system()
    seen = status(options)
    if options.json:
        print_json(_document(seen))
    else:
        console().print(Text(seen.summary, "bold green" if seen.summary == ALL_IS_WELL else "bold red"), soft_wrap=True)
        console().print()
        _show_processes(seen.processes)
        _show_databases(seen.databases)
        _show_consumers(seen.consumers)
        _show_dead_letters(seen.dead_letters)
    return 0 if seen.is_well else 1


def _document(seen: Status) -> dict[str, object]:
    processes = [] if isinstance(seen.processes, Away) else seen.processes
    return {
        "summary": seen.summary,
        "away": seen.away,
        "processes": [asdict(one) | {"running": one.state != "gone"} for one in processes],
        "broker": seen.broker,
        "databases": {name: asdict(state) for name, state in seen.databases.items() if not isinstance(state, Away)},
        "consumers": [] if isinstance(seen.consumers, Away) else [asdict(lag) for lag in seen.consumers],
        "dead_letters": {} if isinstance(seen.dead_letters, Away) else seen.dead_letters,
    }


def _show_processes(processes: list[ProcessState] | Away) -> None:
    columns: list[str | Column] = ["process", whole("pid"), "state", "address", "health", "version"]
    if isinstance(processes, Away):
        print_table("processes", columns, [[_away(processes), *[None] * 5]])
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
        console().print("nothing is running here", style="dim")
    console().print()


def _show_databases(states: Mapping[str, DatabaseState | Away]) -> None:
    counts: list[tuple[object, ...]] = []
    outboxes: list[tuple[object, ...]] = []
    for name, state in states.items():
        if isinstance(state, Away):
            counts.append((name, _away(state), None))
            outboxes.append((name, None, None, _away(state)))
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


def _show_consumers(lags: list[Lag] | Away) -> None:
    columns: list[str | Column] = ["group", "topic", whole("partition"), number("lag")]
    if isinstance(lags, Away):
        rows: list[tuple[object, ...]] = [(_away(lags), None, None, None)]
    else:
        rows = [(lag.group, lag.topic, lag.partition, lag.lag) for lag in lags]
    print_table("consumers", columns, rows)
    console().print()


def _show_dead_letters(letters: dict[str, int] | Away) -> None:
    rows: list[tuple[object, ...]] = [(_away(letters), None)] if isinstance(letters, Away) else list(letters.items())
    columns: list[str | Column] = ["topic", number("not redriven")]
    print_table("dead letters", columns, rows)


def _away(part: Away) -> Text:
    return Text(f"away: {part.reason}", "bold red")
