"""Measures the same calls with ten thousand rows and with millions: `python -m benchmarks.scale --help`.

The cost of a call must depend on its request, not on the size of the tables.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from benchmarks import command, rows, stock
from benchmarks.command import POSTGRESQL, SQLITE
from benchmarks.load import Generator
from benchmarks.results import Cell, Numbers, Results, verdict
from benchmarks.scenarios import CHECK_STOCK, INVENTORY, LIST_ORDERS, ORDERS, PAGE_SIZE, RESERVE_SPREAD, Scenario
from benchmarks.subjects import ALONE, NO_BROKER, Services, migrate
from devstack.stack import Databases, Options, Stack
from inventory_api.migrations import SCHEMA as INVENTORY_SCHEMA
from inventory_api.store import tables as inventory
from order_api.domain.commands import OrderFilter
from order_api.domain.model import Status
from order_api.migrations import SCHEMA as ORDERS_SCHEMA
from shop_common.api import paging
from shop_common.api.paging import Page, PageRequest
from shop_common.identity.tenant import DEFAULT
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2

ROWS = (10_000, 1_000_000)
GOAL = 1.2
_BODIES = 10_000


class Sized(Services):
    """The two APIs with this many items, reservations and orders."""

    def __init__(
        self,
        count: int,
        database: str,
        databases: Databases,
        generator: Generator,
        database_pids: list[int],
        *,
        in_memory: bool,
    ) -> None:
        super().__init__(f"{count:,}", database, generator, database_pids)
        self.now = datetime.now(UTC)
        self._rows = count
        self._in_memory = in_memory
        self._databases = databases
        self.serve_by(Stack(databases, NO_BROKER, options=Options(environment=ALONE)))
        self.scenarios = scenarios(count, self.now)

    def start(self) -> None:
        migrate(self._databases.inventory, INVENTORY_SCHEMA)
        migrate(self._databases.orders, ORDERS_SCHEMA)
        rows.fill_catalogue(self._databases.inventory, self._rows, self.now)
        rows.fill_orders(self._databases.orders, self._rows, self.now)
        if self._in_memory:
            rows.read_into_memory(self._databases.inventory)
            rows.read_into_memory(self._databases.orders)
        super().start()

    def check(self) -> None:
        """Check that the reserved units are the initial ones plus one per successful call."""
        with stock.reading(self._databases.inventory) as tx:
            reserved = tx.execute(select(func.sum(inventory.inventory_items.c.reserved_quantity))).scalar_one()
        before = sum(number % 4 < 2 for number in range(1, self._rows + 1))
        granted = self.count(lambda scenario: scenario.reservations)
        stock.compare({"new units in the counters": int(reserved) - before}, granted, "reservations were granted")


def scenarios(count: int, now: datetime) -> list[Scenario]:
    """Return the kinds of calls. The calls of one kind use different rows."""
    numbers = random.choices(range(1, count + 1), k=_BODIES)

    def bodies(of: Callable[[int], Message]) -> Callable[[], list[bytes]]:
        return lambda: [of(number).SerializeToString() for number in numbers]

    def check(number: int) -> Message:
        return inventory_pb2.CheckStockRequest(product_id=number, required_quantity=1)

    def reserve(number: int) -> Message:
        return inventory_pb2.ReserveStockRequest(product_id=number, quantity=1)

    def of_user(number: int) -> Message:
        return order_pb2.ListOrdersRequest(user_id=1 + number % rows.users(count), page_size=PAGE_SIZE)

    def first(_: int) -> Message:
        return order_pb2.ListOrdersRequest(page_size=PAGE_SIZE)

    def deep(number: int) -> Message:
        return order_pb2.ListOrdersRequest(page_size=PAGE_SIZE, page_token=token(number, OrderFilter(DEFAULT)))

    def deep_of_status(number: int) -> Message:
        filter_ = OrderFilter(DEFAULT, statuses=(Status.DELIVERED,))
        return order_pb2.ListOrdersRequest(
            page_size=PAGE_SIZE, status=order_pb2.ORDER_STATUS_DELIVERED, page_token=token(number, filter_)
        )

    def token(number: int, filter_: OrderFilter) -> str:
        position = (rows.created_at_micros(number, count, now), rows.row_id(number))
        return paging.next_token(Page([], position), PageRequest("orders", filter_, None, PAGE_SIZE))

    def listing(name: str, title: str, of: Callable[[int], Message]) -> Scenario:
        return Scenario(name, title, ORDERS, LIST_ORDERS.method, bodies(of))

    return [
        Scenario("check-stock", "CheckStock", INVENTORY, CHECK_STOCK, bodies(check)),
        Scenario(
            "reserve-stock",
            "ReserveStock",
            INVENTORY,
            RESERVE_SPREAD.method,
            bodies(reserve),
            RESERVE_SPREAD.tail_field,
            reservations=1,
        ),
        listing("list-of-user", "ListOrders of a user", of_user),
        listing("list-first", "ListOrders, first page of all", first),
        listing("list-deep", "ListOrders, a page far down", deep),
        listing("list-deep-status", "ListOrders of a status, far down", deep_of_status),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code: a wrong count fails the run, a missed goal does not."""
    options = _options(argv)
    results = command.measured(lambda console: _measure(options, console))
    if results is None:
        return 1
    _show(results, options, command.output())
    if options.json:
        cells = [asdict(cell) | asdict(numbers) for cell, numbers in results.cells()]
        options.json.write_text(json.dumps(cells, indent=2) + "\n")
    return 0


def _measure(options: argparse.Namespace, console: Console) -> Results:
    results = Results()
    with ExitStack() as stack:
        found = _subjects(options, stack, console)
        for _ in range(options.rounds):
            _round(found, results, options, console)
        for subject in found:
            subject.check()
    return results


def _subjects(options: argparse.Namespace, stack: ExitStack, console: Console) -> list[Sized]:
    generator = stack.enter_context(Generator())
    found = []
    for database in options.databases:
        new, pids = command.databases(database, stack, console, shared_buffers=options.shared_buffers)
        in_memory = database == POSTGRESQL and options.shared_buffers is not None
        for count in sorted(options.rows):
            subject = Sized(count, database, new(), generator, pids, in_memory=in_memory)
            stack.callback(subject.stop)
            console.print(f"{database}: creating {count:,} rows", highlight=False)
            subject.start()
            found.append(subject)
    return found


def _round(found: Sequence[Sized], results: Results, options: argparse.Namespace, console: Console) -> None:
    """Measure each kind of call with all sizes in one round, because the machine's speed varies."""
    for several in zip(*(subject.scenarios for subject in found), strict=True):
        for subject, scenario in zip(found, several, strict=True):
            console.print(f"{scenario.name}, {subject.name} rows, {subject.database}", highlight=False)
            outcome = subject.measure(scenario, options.calls, options.seconds, options.warmup_seconds)
            results.add(Cell(scenario.name, subject.database, subject.name, options.calls), outcome)


def _show(results: Results, options: argparse.Namespace, console: Console) -> None:
    title = f"{options.calls} concurrent calls; CPU of servers and database; medians of {options.rounds} rounds"
    table = Table(title=title, title_justify="left")
    for name in ("database", "call"):
        table.add_column(name)
    for name in ("rows", "calls/s", "p50 ms", "p99 ms", "CPU ms", "CPU, ratio", "p50, ratio", ""):
        table.add_column(name, justify="right")
    smallest: dict[tuple[str, str], Numbers] = {}
    for cell, numbers in sorted(results.cells(), key=lambda found: (found[0].database, found[0].scenario)):
        first = smallest.setdefault((cell.database, cell.scenario), numbers)
        ratio = numbers.served / first.served
        table.add_row(
            cell.database,
            cell.scenario,
            cell.subject,
            f"{numbers.rate:,.0f}",
            f"{numbers.p50 * 1e3:.2f}",
            f"{numbers.p99 * 1e3:.2f}",
            f"{numbers.served * 1e3:.3f}",
            f"{ratio:.2f}",
            f"{numbers.p50 / first.p50:.2f}",
            "" if numbers is first else verdict(ratio <= GOAL),
        )
    console.print(table)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--databases", nargs="+", choices=(POSTGRESQL, SQLITE), default=(POSTGRESQL, SQLITE))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="sizes to compare (%(default)s)")
    parser.add_argument(
        "--shared-buffers",
        metavar="SIZE",
        help="PostgreSQL's setting, such as 8GB, filled before measuring (default: PostgreSQL's, not filled)",
    )
    parser.add_argument("--calls", type=int, default=16, help="concurrent calls (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each measurement (%(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=0.5, help="warm-up before each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each cell (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
