"""The plain inventory service: ReserveStock, and BatchReserveStock for the plain order service."""

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NoReturn

import grpc
from shop.inventory.v1 import inventory_pb2 as pb
from shop.inventory.v1 import inventory_pb2_grpc
from shop_common.moments import rfc3339, to_proto
from shop_common.outbox import shard_of
from shop_common.sql import now
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from uuid_utils import uuid7

from benchmarks.plain.models import Allocation, InventoryEvent, Item, Reservation
from benchmarks.plain.server import serve

TTL = timedelta(minutes=30)

Line = tuple[int, int]
"""Product and quantity."""


class InventoryServicer(inventory_pb2_grpc.InventoryServiceServicer):
    """One transaction a call."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def ReserveStock(self, request: pb.ReserveStockRequest, context: grpc.ServicerContext) -> pb.ReserveStockResponse:
        (made,) = self._reserve(request.order_id, [(request.product_id, request.quantity)], context)
        return pb.ReserveStockResponse(reservation=made)

    def BatchReserveStock(
        self, request: pb.BatchReserveStockRequest, context: grpc.ServicerContext
    ) -> pb.BatchReserveStockResponse:
        results = []
        for order in request.orders:
            made = self._reserve(order.order_id, [(line.product_id, line.quantity) for line in order.lines], context)
            results.append(pb.BatchReserveStockResult(reservations=pb.Reservations(reservations=made)))
        return pb.BatchReserveStockResponse(results=results)

    def _reserve(self, order_id: str, lines: Sequence[Line], context: grpc.ServicerContext) -> list[pb.Reservation]:
        with self._sessions.begin() as session:
            products = {product_id for product_id, _ in lines}
            locked = select(Item).where(Item.product_id.in_(products)).order_by(Item.id).with_for_update()
            items = session.scalars(locked).all()
            moment = now(session.connection())
            return [_hold(session, items, order_id, line, moment, context) for line in lines]


def _hold(
    session: Session,
    items: Sequence[Item],
    order_id: str,
    line: Line,
    moment: datetime,
    context: grpc.ServicerContext,
) -> pb.Reservation:
    product_id, quantity = line
    item = next(
        (
            each
            for each in items
            if each.product_id == product_id and each.quantity - each.reserved_quantity >= quantity
        ),
        None,
    )
    if item is None:
        _refuse(context, f"product {product_id}: {quantity} requested")
    item.reserved_quantity += quantity
    item.updated_at = moment
    held = Reservation(
        id=str(uuid7()),
        product_id=product_id,
        quantity=quantity,
        order_id=order_id,
        state="HELD",
        created_at=moment,
        expires_at=moment + TTL,
        allocations=[Allocation(item_id=item.id, quantity=quantity)],
    )
    session.add_all([held, _event(held, item, moment)])
    return pb.Reservation(
        id=held.id,
        product_id=product_id,
        quantity=quantity,
        order_id=order_id,
        state=pb.RESERVATION_STATE_HELD,
        created_at=to_proto(moment),
        expires_at=to_proto(held.expires_at),
        allocations=[pb.Allocation(item_id=item.id, location=item.location, quantity=quantity)],
    )


def _event(held: Reservation, item: Item, moment: datetime) -> InventoryEvent:
    key = str(held.product_id)
    data = {
        "product_id": held.product_id,
        "reserved_quantity": held.quantity,
        "expires_at": rfc3339(held.expires_at),
        "order_id": held.order_id,
        "reservation_id": held.id,
        "allocations": [{"item_id": item.id, "location": item.location, "quantity": held.quantity}],
    }
    return InventoryEvent(
        shard=shard_of(key),
        event_id=str(uuid7()),
        topic="inventory-events",
        key=key,
        type="STOCK_RESERVED",
        payload=json.dumps({"event_type": "STOCK_RESERVED", "timestamp": rfc3339(moment), "data": data}),
        created_at=moment,
    )


def _refuse(context: grpc.ServicerContext, details: str) -> NoReturn:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, details)
    raise AssertionError("abort raises")


def main() -> None:
    serve(
        lambda server, sessions: inventory_pb2_grpc.add_InventoryServiceServicer_to_server(
            InventoryServicer(sessions), server
        )
    )


if __name__ == "__main__":
    sys.exit(main())
