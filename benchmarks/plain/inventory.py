"""The plain inventory service: ReserveStock, and BatchReserveStock for the plain order service."""

import json
import os
from collections.abc import Sequence
from datetime import datetime, timedelta

import grpc
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from uuid_utils import uuid7

from benchmarks.plain.models import Allocation, Event, Item, ItemColumns, Reservation, sessions
from benchmarks.plain.server import serve
from shop_common.db.sql import now
from shop_common.events.outbox import shard_of
from shop_common.timestamps import rfc3339, to_proto
from shop_protos.inventory.v1 import inventory_pb2 as pb

TTL = timedelta(minutes=30)

Line = tuple[int, int]
"""A product and a quantity."""


class Inventory:
    """Runs one transaction per order of a call."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def reserve_stock(self, request: pb.ReserveStockRequest, context: grpc.ServicerContext) -> pb.ReserveStockResponse:
        (made,) = self._reserve(request.order_id, [(request.product_id, request.quantity)], context)
        return pb.ReserveStockResponse(reservation=made)

    def batch_reserve_stock(
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
            created_at = now(session.connection())
            return [hold(session, _chosen(items, line, context), order_id, line, created_at) for line in lines]


def _chosen(items: Sequence[Item], line: Line, context: grpc.ServicerContext) -> Item:
    product_id, quantity = line
    for item in items:
        if item.product_id == product_id and item.quantity - item.reserved_quantity >= quantity:
            return item
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"product {product_id}: {quantity} requested")
    raise AssertionError("abort raises")


def hold(session: Session, item: ItemColumns, order_id: str, line: Line, created_at: datetime) -> pb.Reservation:
    """Add a reservation with its allocation and event to the session, and count its units in the item."""
    product_id, quantity = line
    item.reserved_quantity += quantity
    item.updated_at = created_at
    held = Reservation(
        id=str(uuid7()),
        product_id=product_id,
        quantity=quantity,
        order_id=order_id,
        state="HELD",
        created_at=created_at,
        expires_at=created_at + TTL,
        allocations=[Allocation(item_id=item.id, quantity=quantity)],
    )
    session.add_all([held, _event(held, item)])
    return pb.Reservation(
        id=held.id,
        product_id=product_id,
        quantity=quantity,
        order_id=order_id,
        state=pb.RESERVATION_STATE_HELD,
        created_at=to_proto(created_at),
        expires_at=to_proto(held.expires_at),
        allocations=[pb.Allocation(item_id=item.id, location=item.location, quantity=quantity)],
    )


def _event(held: Reservation, item: ItemColumns) -> Event:
    key = str(held.product_id)
    data = {
        "product_id": held.product_id,
        "reserved_quantity": held.quantity,
        "expires_at": rfc3339(held.expires_at),
        "order_id": held.order_id,
        "reservation_id": held.id,
        "allocations": [{"item_id": item.id, "location": item.location, "quantity": held.quantity}],
    }
    return Event(
        shard=shard_of(key),
        event_id=str(uuid7()),
        topic="inventory-events",
        key=key,
        type="STOCK_RESERVED",
        payload=json.dumps({"event_type": "STOCK_RESERVED", "timestamp": rfc3339(held.created_at), "data": data}),
        created_at=held.created_at,
    )


if __name__ == "__main__":
    inventory = Inventory(sessions(os.environ["DATABASE_URL"]))
    serve(
        pb.DESCRIPTOR.services_by_name["InventoryService"],
        {"ReserveStock": inventory.reserve_stock, "BatchReserveStock": inventory.batch_reserve_stock},
    )
