"""Domain to protobuf."""

from inventory_api.domain import Item, Reservation
from inventory_api.requests import STATE_NUMBERS
from shop.inventory.v1 import inventory_pb2 as pb
from shop_common.errors import ShopError
from shop_common.moments import to_proto, to_proto_or_none
from shop_common.status import to_status


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


def batch_result(outcome: list[Reservation] | ShopError) -> pb.BatchReserveStockResult:
    if isinstance(outcome, ShopError):
        return pb.BatchReserveStockResult(error=to_status(outcome))
    return pb.BatchReserveStockResult(
        reservations=pb.Reservations(reservations=[reservation(each) for each in outcome])
    )
