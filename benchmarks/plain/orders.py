"""The plain order service: CreateOrder, GetOrder, ListOrders."""

import json
import os
from datetime import timedelta
from decimal import Decimal

import grpc
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload, sessionmaker
from uuid_utils import uuid7

from benchmarks.plain.models import READ_ONLY, Event, Order, OrderItem, sessions
from benchmarks.plain.server import serve
from shop_common.api import money
from shop_common.db.sql import now
from shop_common.events.outbox import shard_of
from shop_common.timestamps import rfc3339, to_proto
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2 as pb

TTL = timedelta(minutes=30)
CALL_SECONDS = 30


class Orders:
    """Runs one transaction per call; CreateOrder first calls the plain inventory service."""

    def __init__(self, sessions: sessionmaker[Session], inventory: inventory_pb2_grpc.InventoryServiceStub) -> None:
        self._sessions = sessions
        self._inventory = inventory

    def create_order(self, request: pb.CreateOrderRequest, context: grpc.ServicerContext) -> pb.OrderResponse:
        order_id = str(uuid7())
        try:
            self._reserve(order_id, request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details() or "")
        with self._sessions.begin() as session:
            created_at = now(session.connection())
            items = [
                OrderItem(
                    product_id=item.product_id,
                    quantity=item.quantity,
                    price=money.exact(item.price.units, item.price.nanos),
                )
                for item in request.items
            ]
            order = Order(
                id=order_id,
                user_id=request.user_id,
                total_amount=sum((item.price * item.quantity for item in items), Decimal()),
                currency=request.items[0].price.currency_code,
                status="PENDING",
                status_reason="",
                reserved_until=created_at + TTL,
                version=1,
                created_at=created_at,
                updated_at=created_at,
                items=items,
            )
            session.add_all([order, _event(order)])
            session.flush()
            return pb.OrderResponse(order=_to_proto(order))

    def get_order(self, request: pb.GetOrderRequest, context: grpc.ServicerContext) -> pb.OrderResponse:
        with self._sessions() as session:
            session.connection(execution_options=READ_ONLY)
            order = session.get(Order, request.id, options=[selectinload(Order.items)])
            if order is None:
                context.abort(grpc.StatusCode.NOT_FOUND, f"there is no order {request.id}")
            return pb.OrderResponse(order=_to_proto(order))

    def list_orders(self, request: pb.ListOrdersRequest, context: grpc.ServicerContext) -> pb.ListOrdersResponse:
        newest = (
            select(Order).where(Order.user_id == request.user_id).order_by(Order.created_at.desc(), Order.id.desc())
        )
        with self._sessions() as session:
            session.connection(execution_options=READ_ONLY)
            orders = session.scalars(newest.limit(request.page_size).options(selectinload(Order.items))).all()
            return pb.ListOrdersResponse(orders=[_to_proto(order) for order in orders])

    def _reserve(self, order_id: str, request: pb.CreateOrderRequest) -> None:
        lines = [inventory_pb2.Line(product_id=item.product_id, quantity=item.quantity) for item in request.items]
        wanted = inventory_pb2.OrderLines(order_id=order_id, lines=lines)
        self._inventory.BatchReserveStock(inventory_pb2.BatchReserveStockRequest(orders=[wanted]), timeout=CALL_SECONDS)


def _event(order: Order) -> Event:
    data = {
        "order_id": order.id,
        "user_id": order.user_id,
        "total_amount": str(order.total_amount),
        "currency": order.currency,
        "status": order.status,
        "items": [
            {"product_id": item.product_id, "quantity": item.quantity, "price": str(item.price)} for item in order.items
        ],
    }
    return Event(
        shard=shard_of(order.id),
        event_id=str(uuid7()),
        topic="order-events",
        key=order.id,
        type="ORDER_CREATED",
        payload=json.dumps({"event_type": "ORDER_CREATED", "timestamp": rfc3339(order.created_at), "data": data}),
        created_at=order.created_at,
    )


def _to_proto(order: Order) -> pb.Order:
    return pb.Order(
        id=order.id,
        user_id=order.user_id,
        items=[
            pb.OrderItem(
                id=item.id,
                product_id=item.product_id,
                quantity=item.quantity,
                price=money.to_proto(item.price, order.currency),
            )
            for item in order.items
        ],
        total_amount=money.to_proto(order.total_amount, order.currency),
        status=pb.OrderStatus.Value(f"ORDER_STATUS_{order.status}"),
        status_reason=order.status_reason,
        reserved_until=to_proto(order.reserved_until),
        version=order.version,
        created_at=to_proto(order.created_at),
        updated_at=to_proto(order.updated_at),
    )


if __name__ == "__main__":
    channel = grpc.insecure_channel(os.environ["INVENTORY_TARGET"])
    orders = Orders(sessions(os.environ["DATABASE_URL"]), inventory_pb2_grpc.InventoryServiceStub(channel))
    serve(
        pb.DESCRIPTOR.services_by_name["OrderService"],
        {"CreateOrder": orders.create_order, "GetOrder": orders.get_order, "ListOrders": orders.list_orders},
    )
