"""Verify the stock of all tenants: compare each item's counters with the rows from which they follow.

Buyers do not notice it: inventory-api reads without locks, and locks only an item that does not match. The reaper does
the same every hour, but repairs nothing. docs/runbook.md describes each kind of mismatch.

With --repair, mismatches that have only one right answer are repaired. The exit code is 0 if no mismatch is left, and
1 otherwise. With --json, each mismatch is one line. The command needs the permission `maintenance`.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column

from shop_protos.inventory.v1.maintenance_pb2 import StockMismatch, StockMismatchKind, VerifyStockRequest
from shopctl.client import Shop
from shopctl.system import target
from shopctl.terminal.output import add_json, error_console, number, print_json, print_table, whole

BATCH_ITEMS = 2_000
CALL_SECONDS = 30.0

_COLUMNS: list[str | Column] = [
    "kind",
    "tenant",
    *map(whole, ("item_id", "product_id")),
    "location",
    whole("reservation_id"),
    *map(number, ("expected", "actual")),
    "repaired",
]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="repair the mismatches that have only one right answer")
    target.add_apis(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Verify all items. Raises the ShopError of the API."""
    with target.shop(options) as shop:
        rows = [as_row(mismatch) for mismatch in _mismatches(shop, repair=options.repair)]
    if options.json:
        for row in rows:
            print_json(row)
    elif rows:
        print_table("mismatches", _COLUMNS, (row.values() for row in rows))
    left = sum(not row["repaired"] for row in rows)
    if left and not options.repair:
        error_console().print("--repair repairs those that have only one right answer.", style="dim")
    return 1 if left else 0


def as_row(mismatch: StockMismatch) -> dict[str, Any]:
    """Return a mismatch as a row with the API's field names."""
    return {
        "kind": StockMismatchKind.Name(mismatch.kind).removeprefix("STOCK_MISMATCH_KIND_"),
        "tenant": mismatch.tenant,
        "item_id": mismatch.item_id,
        "product_id": mismatch.product_id,
        "location": mismatch.location,
        "reservation_id": mismatch.reservation_id or None,
        "expected": mismatch.expected,
        "actual": mismatch.actual,
        "repaired": mismatch.repaired,
    }


def _mismatches(shop: Shop, *, repair: bool) -> Iterator[StockMismatch]:
    """Yield the mismatches of all items, by item id, and print the number of items at the end."""
    console = error_console()
    verified = after = 0
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as progress:
        bar = progress.add_task("0 items verified", total=None)
        while True:
            request = VerifyStockRequest(after_item_id=after, max_count=BATCH_ITEMS, repair=repair)
            response = shop.call(shop.inventory_maintenance.VerifyStock, request, timeout_seconds=CALL_SECONDS)
            yield from response.mismatches
            verified, after = verified + response.verified_count, response.next_after_item_id
            progress.update(bar, description=f"{verified:,} items verified")
            if not after:
                break
    console.print(f"{verified:,} items verified")
