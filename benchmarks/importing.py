"""Measures `import stock`: a file with one row per item, imported by the command as a process of its own.

The first import creates the items, the second one changes them, and the third one repeats the second and changes
nothing. Goal: each takes at most 15 s for 100,000 rows on PostgreSQL.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from benchmarks import command, cpu, stock
from benchmarks.command import POSTGRESQL, SQLITE
from benchmarks.http2 import LoadError
from benchmarks.results import verdict
from benchmarks.subjects import ALONE, NO_BROKER
from devstack.stack import READY_SECONDS, Options, Stack
from inventory_api.store import tables

GOAL_ROWS_PER_SECOND = 100_000 / 15
FIRST, SECOND, REPEATED = "creates the items", "changes the items", "repeated"


@dataclass(frozen=True)
class Imported:
    """The duration of an import and its CPU times, in seconds, the start of the command included."""

    seconds: float
    cpu: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code: a wrong count fails the run, a missed goal does not."""
    options = _options(argv)
    found = command.measured(lambda console: _measure(options, console))
    if found is None:
        return 1
    _show(found, options.rows, command.output())
    return 0


def _measure(options: argparse.Namespace, console: Console) -> dict[str, dict[str, Imported]]:
    with ExitStack() as stack:
        return {database: _on(database, options.rows, stack, console) for database in options.databases}


def _on(database: str, rows: int, stack: ExitStack, console: Console) -> dict[str, Imported]:
    new, database_pids = command.databases(database, stack, console)
    databases = new()
    system = Stack(databases, NO_BROKER, options=Options(environment=ALONE))
    stack.callback(system.stop)
    system.migrate()
    system.inventory_api.start()
    system.inventory_api.wait_ready(READY_SECONDS)
    folder = command.folder(stack)
    files = {name: _write(folder / f"{reference}.csv", rows, reference) for name, reference in _REFERENCES.items()}
    cpu_of = {"server": [system.inventory_api.pid], "database": database_pids}
    found = {}
    for name, file in files.items():
        console.print(f"{database}: {name}", highlight=False)
        before = {kind: sum(map(cpu.seconds, pids)) for kind, pids in cpu_of.items()}
        found[name] = imported = _import(system.inventory_address, file, rows)
        imported.cpu.update((kind, sum(map(cpu.seconds, pids)) - before[kind]) for kind, pids in cpu_of.items())
    _check(databases.inventory, rows)
    return found


_REFERENCES = {FIRST: "first", SECOND: "second", REPEATED: "second"}


def _write(file: Path, rows: int, reference: str) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["product_id", "location", "received", "reason", "reference"])
        writer.writerows([number, "WAREHOUSE_A", 5, "delivery", reference] for number in range(1, rows + 1))
    return file


def _import(address: str, file: Path, rows: int) -> Imported:
    """Import the file, and measure the command. Raises LoadError if a row was refused."""
    words = ["import", "stock", str(file), "--json", "--inventory", address]
    began, before = time.monotonic(), _cpu_of_commands()
    done = subprocess.run([sys.executable, "-m", "shopctl", *words], capture_output=True, text=True, check=False)
    measured = Imported(time.monotonic() - began, {"command": _cpu_of_commands() - before})
    if done.returncode or json.loads(done.stdout)["imported"] != rows:
        raise LoadError(f"the import failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    return measured


def _cpu_of_commands() -> float:
    """Return the CPU seconds of the child processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _check(url: str, rows: int) -> None:
    """Check that each item and its movements have the units of two imports. Raises WrongCount."""
    items, movements = tables.inventory_items, tables.stock_movements
    with stock.reading(url) as tx:
        counts = {
            "units of items": int(tx.execute(select(func.sum(items.c.quantity))).scalar_one()),
            "units of movements": int(tx.execute(select(func.sum(movements.c.quantity))).scalar_one()),
        }
    stock.compare(counts, 2 * 5 * rows, "units were imported")


def _show(found: dict[str, dict[str, Imported]], rows: int, console: Console) -> None:
    table = Table("database", "import", title=f"import stock, {rows:,} rows", title_justify="left")
    for name in ("seconds", "rows/s", "CPU s of command", "server", "database"):
        table.add_column(name, justify="right")
    for database, imports in found.items():
        for name, each in imports.items():
            spent = (f"{each.cpu[kind]:.1f}" for kind in ("command", "server", "database"))
            table.add_row(database, name, f"{each.seconds:.1f}", f"{rows / each.seconds:,.0f}", *spent)
    console.print(table)
    for database, imports in found.items():
        rate = rows / max(each.seconds for each in imports.values())
        fast = verdict(rate >= GOAL_ROWS_PER_SECOND)
        console.print(f"{database}: ≥ {GOAL_ROWS_PER_SECOND:,.0f} rows per second: {rate:,.0f} {fast}")
    console.print("All units and movements were checked at the end.")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importing", description=__doc__)
    parser.add_argument("--databases", nargs="+", choices=(POSTGRESQL, SQLITE), default=(POSTGRESQL, SQLITE))
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the file (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
