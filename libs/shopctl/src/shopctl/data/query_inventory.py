"""Show items, by ascending id: the stock of each product at each location.

`available` is what can be reserved now: the quantity less what is reserved, holds past their time not counted. With
--json one item a line.
"""

import argparse
from typing import Any

from rich.table import Column

from shop_protos.inventory.v1.inventory_pb2 import InventoryItem, ListInventoryItemsRequest
from shopctl.client import Shop
from shopctl.data import pages
from shopctl.system import target
from shopctl.terminal.output import moment, number, whole


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
        *map(number, ("quantity", "reserved_quantity", "available_quantity")),
        "updated_at",
    ]
    with target.shop(options) as shop:
        found = pages.rows(options, lambda size, token: _page(shop, options, size, token))
        pages.show(options, "items", columns, map(as_row, found))
    return 0


def as_row(item: InventoryItem) -> dict[str, Any]:
    """An item with the API's own field names."""
    return {
        "id": item.id,
        "product_id": item.product_id,
        "location": item.location,
        "quantity": item.quantity,
        "reserved_quantity": item.reserved_quantity,
        "available_quantity": item.available_quantity,
        "version": item.version,
        "created_at": moment(item.created_at),
        "updated_at": moment(item.updated_at),
    }


def _page(shop: Shop, options: argparse.Namespace, size: int, token: str) -> tuple[list[InventoryItem], str]:
    answer = shop.call(
        shop.inventory.ListInventoryItems,
        ListInventoryItemsRequest(
            product_id=options.product_id, location=options.location, page_size=size, page_token=token
        ),
    )
    return list(answer.items), answer.next_page_token
