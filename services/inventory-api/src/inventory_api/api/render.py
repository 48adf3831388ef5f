"""Converts domain values to protobuf messages."""

from collections.abc import Sequence
from dataclasses import replace

from inventory_api.api.parse import STATE_NUMBERS
from inventory_api.domain.model import Item, Reservation
from inventory_api.domain.verification import Mismatch, MismatchKind
from shop_common.errors import ShopError
from shop_common.rpc.status import to_status
from shop_common.timestamps import to_proto, to_proto_or_none
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1 import maintenance_pb2

RESPONSE_ALLOCATIONS_MAX = 25_000
"""The most allocations in a response.

With 90 bytes per allocation, and 5,000 reservations of 200 bytes each, the response stays below 4 MB.
"""

_KINDS: dict[MismatchKind, maintenance_pb2.StockMismatchKind.ValueType] = {
    MismatchKind.RESERVED_QUANTITY: maintenance_pb2.STOCK_MISMATCH_KIND_RESERVED_QUANTITY,
    MismatchKind.ALLOCATIONS: maintenance_pb2.STOCK_MISMATCH_KIND_ALLOCATIONS,
}


def item(value: Item) -> pb.InventoryItem:
    return pb.InventoryItem(
        id=value.id,
        product_id=value.product_id,
        location=value.location,
        quantity=value.quantity,
        reserved_quantity=value.reserved_quantity,
        available_quantity=value.available_quantity,
        version=value.version,
        created_at=to_proto(value.created_at),
        updated_at=to_proto(value.updated_at),
    )


def reservation(value: Reservation) -> pb.Reservation:
    return pb.Reservation(
        id=value.id,
        product_id=value.product_id,
        quantity=value.quantity,
        order_id=value.order_id,
        state=STATE_NUMBERS[value.state],
        created_at=to_proto(value.created_at),
        expires_at=to_proto_or_none(value.expires_at),
        allocations=[
            pb.Allocation(item_id=part.item_id, location=part.location, quantity=part.quantity)
            for part in value.allocations
        ],
    )


def batch(outcomes: Sequence[list[Reservation] | ShopError]) -> pb.BatchReserveStockResponse:
    """Render the outcomes of a batch.

    If an order would bring the response above RESPONSE_ALLOCATIONS_MAX, the reservations of this order and of all later
    orders are rendered without allocations.
    """
    left = RESPONSE_ALLOCATIONS_MAX
    results = []
    for outcome in outcomes:
        if isinstance(outcome, ShopError):
            results.append(pb.BatchReserveStockResult(error=to_status(outcome)))
            continue
        left -= sum(len(each.allocations) for each in outcome)
        shown = outcome if left >= 0 else [replace(each, allocations=()) for each in outcome]
        results.append(
            pb.BatchReserveStockResult(reservations=pb.Reservations(reservations=[reservation(each) for each in shown]))
        )
    return pb.BatchReserveStockResponse(results=results)


def mismatch(value: Mismatch) -> maintenance_pb2.StockMismatch:
    return maintenance_pb2.StockMismatch(
        kind=_KINDS[value.kind],
        tenant=value.item.tenant,
        item_id=value.item.id,
        product_id=value.item.product_id,
        location=value.item.location,
        reservation_id=value.reservation_id,
        expected=value.expected,
        actual=value.actual,
        repaired=value.repaired,
    )
