"""Add a catalogue through the API: each product at each of some locations, WAREHOUSE_A and on.

Repeatable: an item that is there already is left as it is, whatever its quantity, and every call carries a request_id
made of product and location, so that a run that was cut off, or two at once, add nothing twice.
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

CALLS_AT_ONCE = 32
"""Calls that arrive together are one transaction: this is what makes it fast."""

ITEMS_AHEAD = 1_000
"""What a failure, or Ctrl-C, leaves in the queue to be thrown away."""

Item = tuple[int, str]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--products", type=_within(1, 1_000_000), default=1_000, metavar="N", help="default: 1000")
    parser.add_argument(
        "--warehouses", type=_within(1, 26), default=3, metavar="N", help="locations of each product (default: 3)"
    )
    parser.add_argument(
        "--quantity", type=_within(0, 10**15), default=100, metavar="N", help="units of each item (default: 100)"
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
        there = _items_there(shop, products, locations)
        missing = (
            (product, location) for product in products for location in locations if (product, location) not in there
        )
        count = len(products) * len(locations) - len(there)
        began = time.monotonic()
        _create(shop, missing, count, options.quantity)
    seconds = time.monotonic() - began
    rate = count / seconds if count else 0.0
    if options.json:
        print_json(
            {"created": count, "there_already": len(there), "seconds": round(seconds, 3), "per_second": round(rate)}
        )
    else:
        print(f"{count:,} items created, {len(there):,} there already; {seconds:.1f} s, {rate:,.0f} a second")
    return 0


def _items_there(shop: Shop, products: range, locations: list[str]) -> set[Item]:
    """Those of the catalogue's items that exist."""
    there: set[Item] = set()
    for location in locations:
        request = ListInventoryItemsRequest(location=location, page_size=PAGE_SIZE_MAX)
        while True:
            answer = shop.call(shop.inventory.ListInventoryItems, request)
            there.update((item.product_id, location) for item in answer.items if item.product_id in products)
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
    return there


def _create(shop: Shop, items: Iterator[Item], count: int, quantity: int) -> None:
    def create(item: Item) -> None:
        product, location = item
        request = CreateInventoryItemRequest(
            product_id=product, location=location, quantity=quantity, request_id=f"seed-{product}-{location}"
        )
        shop.call(shop.inventory.CreateInventoryItem, request, timeout_seconds=30)

    # On standard error, so that a program reads only the result.
    columns = (TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=error_console(), transient=True) as progress,
        ThreadPoolExecutor(CALLS_AT_ONCE) as pool,
    ):
        bar = progress.add_task("items", total=count)
        while some := list(islice(items, ITEMS_AHEAD)):
            for _ in pool.map(create, some):
                progress.advance(bar)


def _within(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"must be a number from {lowest} to {highest}")
        return int(text)

    return parse
