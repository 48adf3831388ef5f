"""Measures what an order leaves behind: rows, write-ahead log, events, transactions, and CPU time.

These are the constants of the model in docs/capacity.md. `python -m benchmarks.capacity --help`
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, text

from benchmarks import command, cpu, stock
from benchmarks.scenarios import LINES, PRODUCTS
from benchmarks.subjects import ALONE, NO_BROKER, READY_SECONDS, STOP_SECONDS, fill_inventory, migrate
from devstack.stack import Databases, Options, Stack
from order_api.migrations import SCHEMA as ORDERS_SCHEMA
from shop_client import Settings, Shop
from shop_client.values import NewItem, OrderStatus

CALL_SECONDS = 120.0
INVENTORY, ORDERS = "inventory", "orders"

_SIZES = """
SELECT relname, pg_total_relation_size(oid) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
_TRANSACTIONS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
_EVENTS = "SELECT count(*), coalesce(sum(octet_length(payload) + octet_length(key)), 0) FROM outbox"
_LOG_BYTES = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"


@dataclass
class Counts:
    """The totals at one time. Sizes are in bytes, by database and table."""

    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    event_bytes: dict[str, int] = field(default_factory=dict)
    transactions: dict[str, int] = field(default_factory=dict)
    log_bytes: dict[str, int] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    orders: int
    before: Counts
    after: Counts


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code."""
    options = _options(argv)
    results = command.measured(partial(_measure, options))
    if results is None:
        return 1
    _show(results, command.output())
    return 0


def _measure(options: argparse.Namespace, console: Console) -> Results:
    with ExitStack() as stack:
        # A server for each database shows which of the two needs what.
        databases_of = {name: command.synced_server(stack, console) for name in (INVENTORY, ORDERS)}
        databases = Databases(*(server.new_database() for server in databases_of.values()))
        fill_inventory(databases.inventory)
        migrate(databases.orders, ORDERS_SCHEMA)
        system = Stack(databases, NO_BROKER, options=Options(environment=ALONE))
        servers = {"inventory-api": system.inventory_api, "order-api": system.order_api}
        for server in servers.values():
            server.start()
            stack.callback(server.stop, STOP_SECONDS)
        for server in servers.values():
            server.wait_ready(READY_SECONDS)
        pids_of = {name: [server.pid] for name, server in servers.items()} | {
            f"PostgreSQL of {name}": [server.pid] for name, server in databases_of.items()
        }
        urls = {INVENTORY: databases.inventory, ORDERS: databases.orders}
        settings = Settings(system.inventory_address, system.orders_address, timeout_seconds=CALL_SECONDS)
        with Shop(settings) as shop, ThreadPoolExecutor(options.callers) as callers:
            # The first pages of tables and indexes, and the full-page images after a checkpoint, are not of one order.
            _run(callers, options.warmup_orders, partial(_order, shop))
            before = _counts(urls, pids_of)
            _run(callers, options.orders, partial(_order, shop))
            return Results(options.orders, before, _counts(urls, pids_of))


def _run(callers: ThreadPoolExecutor, number: int, order: Callable[[int], None]) -> None:
    for finished in callers.map(order, range(number)):
        assert finished is None


def _order(shop: Shop, number: int) -> None:
    """Create an order of three lines and confirm it."""
    items = [NewItem(product, 1, Decimal("12.99")) for product in random.sample(PRODUCTS, LINES)]
    order = shop.create_order(1_000 + number % 1_000, items, "EUR")
    shop.update_order_status(order.id, OrderStatus.CONFIRMED)


def _counts(urls: dict[str, str], pids: dict[str, list[int]]) -> Counts:
    counts = Counts(cpu_seconds={name: sum(map(cpu.seconds, roots)) for name, roots in pids.items()})
    for name, url in urls.items():
        with stock.reading(url) as tx:
            counts.sizes |= {(name, table): size for table, size in tx.execute(text(_SIZES)).tuples()}
            counts.events[name], counts.event_bytes[name] = map(int, tx.execute(text(_EVENTS)).one())
            counts.transactions[name] = _number(tx, _TRANSACTIONS)
            counts.log_bytes[name] = _number(tx, _LOG_BYTES)
    return counts


def _number(tx: Connection, query: str) -> int:
    return int(tx.execute(text(query)).scalar_one())


def _show(results: Results, console: Console) -> None:
    before, after, orders = results.before, results.after, results.orders
    title = f"an order of {LINES} lines, created and confirmed; the average of {orders:,} orders"
    table = Table("of each order", title=title, title_justify="left")
    table.add_column("", justify="right")
    for name, spent in after.cpu_seconds.items():
        table.add_row(f"CPU of {name}, ms", f"{(spent - before.cpu_seconds[name]) / orders * 1e3:.2f}")
    for name in (INVENTORY, ORDERS):
        logged = after.log_bytes[name] - before.log_bytes[name]
        table.add_row(f"{name}: bytes of the write-ahead log", f"{logged / orders:,.0f}")
        committed = after.transactions[name] - before.transactions[name]
        table.add_row(f"{name}: transactions", f"{committed / orders:.3f}")
        table.add_row(f"{name}: events", f"{(after.events[name] - before.events[name]) / orders:.2f}")
        written = after.event_bytes[name] - before.event_bytes[name]
        table.add_row(f"{name}: bytes of their keys and payloads", f"{written / orders:,.0f}")
    grown = {where: size - before.sizes.get(where, 0) for where, size in after.sizes.items()}
    for (name, of), size in sorted(grown.items()):
        if size > orders:
            table.add_row(f"{name}: table {of} with its indexes, bytes", f"{size / orders:,.0f}")
    console.print(table)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__.partition("\n")[0])
    parser.add_argument("--orders", type=int, default=20_000, help="measured orders (%(default)s)")
    parser.add_argument("--warmup-orders", type=int, default=2_000, help="orders before them (%(default)s)")
    parser.add_argument("--callers", type=int, default=64, help="concurrent callers (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
