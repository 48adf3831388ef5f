"""Create a catalogue through the API: an item for each product at each location (WAREHOUSE_A, WAREHOUSE_B, …).

The command can be repeated. Existing items stay as they are, even if their quantity differs. Each call's request_id
consists of product and location. So neither a repeated run nor two concurrent runs create an item twice.
"""

import argparse
import string
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shop_protos.inventory.v1.inventory_pb2 import CreateInventoryItemRequest, ListInventoryItemsRequest
from shopctl.client import Shop
from shopctl.data.pages import PAGE_SIZE_MAX
from shopctl.system import target
from shopctl.terminal.output import add_json, error_console, print_json

CONCURRENT_CALLS = 32
"""The API handles concurrent calls in one transaction, so more of them are faster."""

QUEUED_ITEMS_MAX = 1_000
"""Limits the items that a failure or Ctrl-C leaves in the queue."""

Item = tuple[int, str]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--products", type=_within(1, 1_000_000), default=1_000, metavar="N", help="default: 1000")
    parser.add_argument(
        "--warehouses", type=_within(1, 26), default=3, metavar="N", help="locations per product (default: 3)"
    )
    parser.add_argument(
        "--quantity", type=_within(0, 10**15), default=100, metavar="N", help="units per item (default: 100)"
    )
    parser.add_argument(
        "--first-product", type=_within(1, 10**18), default=1, metavar="ID", help="the lowest product id (default: 1)"
    )
    target.add_apis(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    products = range(options.first_product, options.first_product + options.products)
    locations = [f"WAREHOUSE_{letter}" for letter in string.ascii_uppercase[: options.warehouses]]
    with target.shop(options) as shop:
        existing = _existing_items(shop, products, locations)
        missing = (
            (product, location) for product in products for location in locations if (product, location) not in existing
        )
        count = len(products) * len(locations) - len(existing)
        began = time.monotonic()
        _create(shop, missing, count, options.quantity)
    seconds = time.monotonic() - began
    rate = count / seconds if count else 0.0
    if options.json:
        print_json(
            {"created": count, "there_already": len(existing), "seconds": round(seconds, 3), "per_second": round(rate)}
        )
    else:
        print(f"{count:,} items created, {len(existing):,} already existed; {seconds:.1f} s, {rate:,.0f} per second")
    return 0


def _existing_items(shop: Shop, products: range, locations: list[str]) -> set[Item]:
    """Return the items of the catalogue that already exist."""
    existing: set[Item] = set()
    for location in locations:
        request = ListInventoryItemsRequest(location=location, page_size=PAGE_SIZE_MAX)
        while True:
            response = shop.call(shop.inventory.ListInventoryItems, request)
            existing.update((item.product_id, location) for item in response.items if item.product_id in products)
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
    return existing


def _create(shop: Shop, items: Iterator[Item], count: int, quantity: int) -> None:
    def create(item: Item) -> None:
        product, location = item
        request = CreateInventoryItemRequest(
            product_id=product, location=location, quantity=quantity, request_id=f"seed-{product}-{location}"
        )
        shop.call(shop.inventory.CreateInventoryItem, request, timeout_seconds=30)

    # Progress goes to standard error: standard output carries only the result.
    columns = (TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=error_console(), transient=True) as progress,
        ThreadPoolExecutor(CONCURRENT_CALLS) as pool,
    ):
        bar = progress.add_task("items", total=count)
        while some := list(islice(items, QUEUED_ITEMS_MAX)):
            for _ in pool.map(create, some):
                progress.advance(bar)


def _within(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"must be a number from {lowest} to {highest}")
        return int(text)

    return parse
