"""Domain to protobuf."""

from collections.abc import Sequence
from dataclasses import replace

from inventory_api.api.requests import STATE_NUMBERS
from inventory_api.domain.model import Item, Reservation
from shop_common.errors import ShopError
from shop_common.moments import to_proto, to_proto_or_none
from shop_common.rpc.status import to_status
from shop_protos.inventory.v1 import inventory_pb2 as pb

ANSWER_ALLOCATIONS_MAX = 25_000
"""Each is at most 90 bytes; with 5,000 reservations of at most 200 bytes an answer has less than 4 MB."""


def item(found: Item) -> pb.InventoryItem:
    return pb.InventoryItem(
        id=found.id,
        product_id=found.product_id,
        location=found.location,
        quantity=found.quantity,
        reserved_quantity=found.reserved_quantity,
        available_quantity=found.available_quantity,
        version=found.version,
        created_at=to_proto(found.created_at),
        updated_at=to_proto(found.updated_at),
    )


def reservation(found: Reservation) -> pb.Reservation:
    return pb.Reservation(
        id=found.id,
        product_id=found.product_id,
        quantity=found.quantity,
        order_id=found.order_id,
        state=STATE_NUMBERS[found.state],
        created_at=to_proto(found.created_at),
        expires_at=to_proto_or_none(found.expires_at),
        allocations=[
            pb.Allocation(item_id=part.item_id, location=part.location, quantity=part.quantity)
            for part in found.allocations
        ],
    )


def batch(outcomes: Sequence[list[Reservation] | ShopError]) -> pb.BatchReserveStockResponse:
    """The answer of a batch; without allocations where all of them would be more than an answer may have."""
    left = ANSWER_ALLOCATIONS_MAX
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
