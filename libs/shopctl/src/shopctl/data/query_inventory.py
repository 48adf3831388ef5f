"""Show items, by ascending id: the stock of each product at each location.

`available_quantity` is the number of units that can be reserved now: the quantity minus the withheld units and those of
active reservations that are not due. With --json, each item is one line.
"""

import argparse
from typing import Any

from rich.table import Column

from shop_protos.inventory.v1.inventory_pb2 import InventoryItem, ListInventoryItemsRequest
from shopctl.client import Shop
from shopctl.data import pages
from shopctl.system import target
from shopctl.terminal.output import number, to_datetime, whole


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--product-id", type=int, metavar="ID", help="only items of this product")
    parser.add_argument("--location", default="", help="only items at this location")
    pages.configure(parser)
    target.add_apis(parser)


def run(options: argparse.Namespace) -> int:
    columns: list[str | Column] = [
        whole("id"),
        whole("product_id"),
        "location",
        *map(number, ("quantity", "withheld_quantity", "reserved_quantity", "available_quantity")),
        "updated_at",
    ]
    with target.shop(options) as shop:
        found = pages.fetch_rows(options, lambda size, token: _page(shop, options, size, token))
        pages.show(options, "items", columns, map(as_row, found))
    return 0


def as_row(item: InventoryItem) -> dict[str, Any]:
    """Return an item as a row with the API's field names."""
    return {
        "id": item.id,
        "product_id": item.product_id,
        "location": item.location,
        "quantity": item.quantity,
        "withheld_quantity": item.withheld_quantity,
        "reserved_quantity": item.reserved_quantity,
        "available_quantity": item.available_quantity,
        "version": item.version,
        "created_at": to_datetime(item.created_at),
        "updated_at": to_datetime(item.updated_at),
    }


def _page(shop: Shop, options: argparse.Namespace, size: int, token: str) -> tuple[list[InventoryItem], str]:
    response = shop.call(
        shop.inventory.ListInventoryItems,
        ListInventoryItemsRequest(
            product_id=options.product_id, location=options.location, page_size=size, page_token=token
        ),
    )
    return list(response.items), response.next_page_token
