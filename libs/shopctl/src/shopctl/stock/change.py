"""Change one item of the stock, with a reason and a reference for its movement.

  adjust 1001 WAREHOUSE_A -3 --reason lost        takes three units out; a positive number adds units
  count 1001 WAREHOUSE_A 40 --reference count-7   sets the quantity to 40, reserved and withheld units included
  move 1001 WAREHOUSE_A WAREHOUSE_B 5             moves five units that are not reserved to another location
  withhold 1001 WAREHOUSE_A 3 --reason DAMAGED    takes three units that are not reserved out of sale
  give-back 1001 WAREHOUSE_A 2 --reason DAMAGED   puts two of these units on sale again

The item is shown after the change, or with --json printed on one line; after a move, so is the item at the new
location. With --version, the change is refused if the item has changed since this version was read.

With --release-shortfall, a count or an adjustment that leaves too few units for the reservations is not refused: the
newest reservations are released, and their orders are cancelled.

If the outcome of a change is unknown, the error names the --request-id with which the same command can be repeated
without a second effect. The commands need the permission `inventory.write`. For many changes, use `import`.
"""

import argparse
import shlex
from uuid import uuid4

from shop_client import convert
from shop_client.values import StockChange
from shop_common.errors import Unavailable
from shop_common.rpc.status import from_status
from shop_protos.inventory.v1.inventory_pb2 import BatchChangeStockRequest
from shopctl.data import query_inventory
from shopctl.system import target
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, print_json, print_table

_WITHHOLDING = ("withhold", "give-back")
_RELEASING = ("count", "adjust")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("product_id", type=_whole, metavar="PRODUCT_ID")
    parser.add_argument("location", metavar="LOCATION")
    if parser.get_default("kind") == "move":
        parser.add_argument("to_location", metavar="TO_LOCATION")
    parser.add_argument("units", type=_whole, metavar="UNITS")
    if parser.get_default("kind") in _WITHHOLDING:
        parser.add_argument(
            "--reason", required=True, help="why, such as DAMAGED or QUALITY_CONTROL: at most 64 of A-Z a-z 0-9 _ -"
        )
    else:
        parser.add_argument("--reason", default="", help="why, such as lost: at most 64 characters")
    parser.add_argument("--reference", default="", help="your document, such as a delivery note: at most 64 characters")
    if parser.get_default("kind") in _RELEASING:
        parser.add_argument(
            "--release-shortfall",
            action="store_true",
            help="if too few units are left, release the newest reservations and cancel their orders",
        )
    parser.add_argument("--version", type=_whole, metavar="N", help="only if the item still has this version")
    parser.add_argument("--request-id", default="", metavar="ID", help="repeat the command with this id")
    target.add_apis(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Make the change. Raises the ShopError of the API."""
    # In a batch of one, an atomic change would fail with CHANGES_REFUSED instead of its own reason.
    change = convert.stock_change(_change(options))
    request = BatchChangeStockRequest(changes=[change], request_id=options.request_id or str(uuid4()))
    with target.shop(options) as shop:
        try:
            (result,) = shop.call(shop.inventory.BatchChangeStock, request).results
            if result.HasField("error"):
                raise from_status(result.error, unavailable_reason="UNAVAILABLE")
        except Unavailable as error:
            repeat = f"repeat the command with --request-id {shlex.quote(request.request_id)}"
            raise CommandFailed(f"{error}; the outcome is unknown: {repeat}") from error
    items = [result.item, result.target] if result.HasField("target") else [result.item]
    rows = [query_inventory.as_row(item) for item in items]
    if options.json:
        for row in rows:
            print_json(row)
    else:
        print_table("items", rows[0], (row.values() for row in rows))
    return 0


def _change(options: argparse.Namespace) -> StockChange:
    units: int = options.units
    return StockChange(
        product_id=options.product_id,
        location=options.location,
        adjusted=units if options.kind == "adjust" else None,
        counted=units if options.kind == "count" else None,
        moved=units if options.kind == "move" else None,
        to_location=options.to_location if options.kind == "move" else None,
        withheld={"withhold": units, "give-back": -units}.get(options.kind),
        version=options.version,
        reason=options.reason,
        reference=options.reference,
        release_shortfall=options.kind in _RELEASING and options.release_shortfall,
    )


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a whole number") from None
    if abs(number) >= 2**63:
        raise argparse.ArgumentTypeError("is too large")
    return number
