"""Write the stock, or its movements, as CSV for spreadsheets, to standard output or to a file.

  export stock --output stock.csv                            all items
  export stock --location WAREHOUSE_A --as-of 2024-12-31T23:59:59Z   the quantities at an earlier time
  export movements --since 7d --output movements.csv         why the quantities have changed, newest first

Times are in UTC. A file of --output replaces an older one only when it is complete. A spreadsheet could run a text
that begins with = + - or @ as a formula, so such a text begins with an apostrophe. With --json, each row is a line of
JSON with the exact texts. The command needs the permission `inventory.read`. docs/stock-files.md has more.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rich.progress import Progress, SpinnerColumn, TextColumn

from shop_protos.inventory.v1.inventory_pb2 import (
    InventoryItem,
    ListInventoryItemsRequest,
    ListMovementsRequest,
    Movement,
    MovementKind,
)
from shopctl.client import Shop
from shopctl.data.pages import PAGE_SIZE_MAX, every
from shopctl.data.query_inventory import as_row
from shopctl.system import target
from shopctl.terminal import since
from shopctl.terminal.output import add_json, error_console, print_json, timestamp, to_datetime

CALL_SECONDS = 30.0

_KIND = "MOVEMENT_KIND_"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TEXTS = ("order_id", "reason", "reference", "actor")


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    stock = kinds.add_parser("stock", help="items, by ascending id")
    stock.add_argument("--as-of", type=since.parse, metavar="TIME", help=f"the quantities at this time: {since.FORMS}")
    stock.set_defaults(rows=_stock)
    movements = kinds.add_parser("movements", help="changes of the quantities of items, newest first")
    names = sorted(name.removeprefix(_KIND) for name, number in MovementKind.items() if number)
    movements.add_argument("--kind", choices=names, help="only movements of this kind")
    movements.add_argument("--since", type=since.parse, metavar="TIME", help=f"from this time on: {since.FORMS}")
    movements.add_argument("--before", type=since.parse, metavar="TIME", help="only older movements")
    movements.set_defaults(rows=_movements)
    for kind in (stock, movements):
        kind.add_argument("--product-id", type=int, metavar="ID", help="only this product")
        kind.add_argument("--location", default="", help="only this location")
        kind.add_argument("--output", type=Path, metavar="FILE.csv", help="write to this file")
        target.add_apis(kind)
        add_json(kind)


def run(options: argparse.Namespace) -> int:
    """Write all rows, page by page. Raises the ShopError of the API."""
    count = 0
    with target.shop(options) as shop, _progress(options) as progress, _opened(options.output) as file:
        bar = progress.add_task("0 rows", total=None)
        write = _json_writer(file) if options.json else _csv_writer(options, file)
        for row in options.rows(shop, options):
            write(row)
            count += 1
            if not count % PAGE_SIZE_MAX:
                progress.update(bar, description=f"{count:,} rows")
    if options.output is not None and options.json:
        print_json({"rows": count, "output": str(options.output)})
    elif options.output is not None:
        print(f"{count:,} rows written to {options.output}")
    return 0


def _stock(shop: Shop, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    request = ListInventoryItemsRequest(
        product_id=options.product_id, location=options.location, page_size=PAGE_SIZE_MAX
    )
    if options.as_of is not None:
        request.as_of.FromDatetime(options.as_of)

    def fetch(token: str) -> tuple[Iterable[InventoryItem], str]:
        request.page_token = token
        response = shop.call(shop.inventory.ListInventoryItems, request, timeout_seconds=CALL_SECONDS)
        return response.items, response.next_page_token

    for row in map(_item, every(fetch)):
        yield row if options.as_of is None else {name: row[name] for name in _PAST_COLUMNS}


def _movements(shop: Shop, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    request = ListMovementsRequest(
        product_id=options.product_id,
        location=options.location,
        kind=MovementKind.Value(f"{_KIND}{options.kind or 'UNSPECIFIED'}"),
        page_size=PAGE_SIZE_MAX,
    )
    if options.since is not None:
        request.created_after.FromDatetime(options.since)
    if options.before is not None:
        request.created_before.FromDatetime(options.before)

    def fetch(token: str) -> tuple[Iterable[Movement], str]:
        request.page_token = token
        response = shop.call(shop.inventory.ListMovements, request, timeout_seconds=CALL_SECONDS)
        return response.movements, response.next_page_token

    return map(_movement, every(fetch))


def _item(item: InventoryItem) -> dict[str, Any]:
    row = as_row(item)
    return {"item_id": row.pop("id"), **row}


def _movement(movement: Movement) -> dict[str, Any]:
    return {
        "created_at": to_datetime(movement.created_at),
        "kind": MovementKind.Name(movement.kind).removeprefix(_KIND),
        "product_id": movement.product_id,
        "location": movement.location,
        "quantity": movement.quantity,
        "quantity_after": movement.quantity_after,
        "withheld": movement.withheld,
        "withheld_after": movement.withheld_after,
        "reason": movement.reason,
        "reference": movement.reference,
        "order_id": movement.order_id,
        "actor": movement.actor,
        "occurred_at": to_datetime(movement.occurred_at) if movement.HasField("occurred_at") else None,
        "item_id": movement.item_id,
        "revision": movement.revision,
    }


_PAST_COLUMNS = ("item_id", "product_id", "location", "quantity", "withheld_quantity", "created_at")
_STOCK_COLUMNS = tuple(_item(InventoryItem()))
_MOVEMENT_COLUMNS = tuple(_movement(Movement()))


def _csv_writer(options: argparse.Namespace, file: TextIO) -> Callable[[Mapping[str, Any]], object]:
    """Write the header, and return a function that writes a row."""
    if options.rows is _movements:
        columns = _MOVEMENT_COLUMNS
    else:
        columns = _STOCK_COLUMNS if options.as_of is None else _PAST_COLUMNS
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    return lambda row: writer.writerow([_cell(name, value) for name, value in row.items()])


def _json_writer(file: TextIO) -> Callable[[Mapping[str, Any]], object]:
    return lambda row: print_json(row, file)


def _cell(name: str, value: object) -> object:
    if isinstance(value, datetime):
        return timestamp(value)
    # Callers choose these texts, and a spreadsheet would run a formula in them.
    if name in _TEXTS and str(value).startswith(_FORMULA):
        return f"'{value}"
    return value


def _progress(options: argparse.Namespace) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=error_console(),
        transient=True,
        redirect_stdout=False,
        disable=options.output is None and sys.stdout.isatty(),  # the rows on the terminal show the progress
    )


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Yield standard output, or a new file that replaces `path` if the block succeeds."""
    if path is None:
        yield sys.stdout
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
