"""Show orders, newest first. With --json, each order is one line with its items; amounts are decimal strings."""

import argparse
from collections.abc import Mapping
from typing import Any

from rich.table import Column

from shop_common.api import money
from shop_protos.order.v1.order_pb2 import ChargeKind, Label, ListOrdersRequest, Order, OrderStatus
from shopctl.client import Shop
from shopctl.data import pages
from shopctl.system import target
from shopctl.terminal import since
from shopctl.terminal.output import number, to_datetime, whole

_PREFIX = "ORDER_STATUS_"


def configure(parser: argparse.ArgumentParser) -> None:
    statuses = [name.removeprefix(_PREFIX) for name in OrderStatus.keys()[1:]]
    parser.add_argument("--user-id", type=int, metavar="ID", help="only orders of this user")
    parser.add_argument(
        "--status",
        type=str.upper,
        choices=statuses,
        action="append",
        default=[],
        help="only orders in this status; may be repeated, for orders in one of several statuses",
    )
    parser.add_argument("--product-id", type=int, metavar="ID", help="only orders with a line of this product")
    parser.add_argument("--reference", default="", metavar="TEXT", help="only orders with this external reference")
    parser.add_argument("--label", type=_label, metavar="NAME=VALUE", help="only orders with this label")
    parser.add_argument(
        "--since",
        type=since.parse,
        metavar="WHEN",
        help=f"only orders created since then: {since.FORMS}",
    )
    parser.add_argument(
        "--updated-since",
        type=since.parse,
        metavar="WHEN",
        help=f"only orders that changed since then, the oldest change first: {since.FORMS}",
    )
    pages.configure(parser)
    target.add_apis(parser)


def run(options: argparse.Namespace) -> int:
    columns: list[str | Column] = [
        whole("id"),
        whole("user_id"),
        "status",
        number("total"),
        number("lines"),
        number("units"),
        number("shipped"),
        number("cancelled"),
        number("returned"),
        "created_at",
        "status_reason",
    ]
    with target.shop(options) as shop:
        found = pages.fetch_rows(options, lambda size, token: _page(shop, options, size, token))
        rows = (as_row(order) for order in found)
        if not options.json:
            rows = (row | _sums(row) for row in rows)
        pages.show(options, "orders", columns, rows)
    return 0


def as_row(order: Order) -> dict[str, Any]:
    """Return an order as a row with the API's field names. Amounts are decimal strings: JSON numbers become floats."""
    return {
        "id": order.id,
        "user_id": order.user_id,
        "status": OrderStatus.Name(order.status).removeprefix(_PREFIX),
        "status_reason": order.status_reason,
        "total_amount": _amount(order.total_amount.units, order.total_amount.nanos),
        "currency": order.total_amount.currency_code,
        "reserved_until": to_datetime(order.reserved_until) if order.HasField("reserved_until") else None,
        "version": order.version,
        "created_at": to_datetime(order.created_at),
        "updated_at": to_datetime(order.updated_at),
        "external_reference": order.external_reference,
        "labels": {label.name: label.value for label in order.labels},
        "charges": [
            {
                "kind": ChargeKind.Name(charge.kind).removeprefix("CHARGE_KIND_"),
                "label": charge.label,
                "amount": _amount(charge.amount.units, charge.amount.nanos),
            }
            for charge in order.charges
        ],
        "items": [
            {
                "id": item.id,
                "product_id": item.product_id,
                "quantity": item.quantity,
                "price": _amount(item.price.units, item.price.nanos),
                "location": item.location,
                "shipped": item.shipped,
                "cancelled": item.cancelled,
                "returned": item.returned,
            }
            for item in order.items
        ],
    }


def _sums(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of the table that are not in the row itself: the total, and the units of all lines together."""
    items = row["items"]
    return {
        "total": f"{row['total_amount']} {row['currency']}",
        "lines": len(items),
        "units": sum(item["quantity"] for item in items),
        **{name: sum(item[name] for item in items) for name in ("shipped", "cancelled", "returned")},
    }


def _amount(units: int, nanos: int) -> str:
    return money.as_json_number(money.exact(units, nanos)).decode()


def _label(text: str) -> Label:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return Label(name=name, value=value)


def _page(shop: Shop, options: argparse.Namespace, size: int, token: str) -> tuple[list[Order], str]:
    request = ListOrdersRequest(
        user_id=options.user_id,
        page_size=size,
        page_token=token,
        product_id=options.product_id,
        external_reference=options.reference,
        label=options.label,
        statuses=[OrderStatus.Value(f"{_PREFIX}{status}") for status in options.status],
    )
    if options.since:
        request.created_after.FromDatetime(options.since)
    if options.updated_since:
        request.updated_after.FromDatetime(options.updated_since)
    response = shop.call(shop.orders.ListOrders, request)
    return list(response.orders), response.next_page_token
