"""A client of inventory-api: reserves, confirms and releases the stock of orders."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

from google.protobuf.duration_pb2 import Duration

from order_api.domain.changes import BegunChange
from order_api.domain.commands import ChangeLines, ChangeStatus, ExtendOrder, NewOrder, Reinstate, ReservedOrder
from order_api.domain.model import OrderKey, OrderReservation, Status, VersionedStatus
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import InvalidInput, ShopError, Unavailable, Violation
from shop_common.identity import tenant
from shop_common.identity.authenticator import delegation_headers
from shop_common.rpc.client import Client
from shop_common.rpc.status import from_status
from shop_common.rpc.tls import ReloadedCertificates
from shop_common.telemetry import logs
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1 import inventory_pb2_grpc, maintenance_pb2, maintenance_pb2_grpc

RELEASES_WAITING_MAX = 1_000
RELEASE_SECONDS = 1.0

_LOGGED_RESERVATIONS_MAX = 20

_ACTIVE = frozenset({pb.RESERVATION_STATE_HELD, pb.RESERVATION_STATE_CONFIRMED})

_log = logs.get(__name__)


class InventoryUnavailable(Unavailable):
    """inventory-api did not respond in time. The call may have had its effect."""

    reason: ClassVar[str] = "INVENTORY_UNAVAILABLE"


class Inventory:
    """A client of inventory-api. `call_seconds` limits each `reserve` and `confirm`, besides the caller's deadline."""

    def __init__(self, target: str, *, call_seconds: float, certificates: ReloadedCertificates | None = None) -> None:
        service = pb.DESCRIPTOR.services_by_name["InventoryService"]
        self._client = Client(
            target,
            service,
            # BatchReserveStock may be repeated because it always has request_ids. The others check the state.
            repeatable=("BatchReserveStock", "ConfirmReservations", "ExtendReservations", "ReleaseStock"),
            unavailable_reason=InventoryUnavailable.reason,
            certificates=certificates,
        )
        self._maintenance_client = Client(
            target,
            maintenance_pb2.DESCRIPTOR.services_by_name["InventoryMaintenanceService"],
            repeatable=("ListReservedOrders", "SettleOrders"),
            unavailable_reason=InventoryUnavailable.reason,
            certificates=certificates,
        )
        self._maintenance = maintenance_pb2_grpc.InventoryMaintenanceServiceStub(self._maintenance_client.channel)
        self._stub = inventory_pb2_grpc.InventoryServiceStub(self._client.channel)
        self._call_seconds = call_seconds
        self._background = ThreadPoolExecutor(4, thread_name_prefix="release")
        self._room = threading.BoundedSemaphore(RELEASES_WAITING_MAX)

    def reserve(self, orders: Sequence[NewOrder]) -> list[OrderReservation | ShopError]:
        """Reserve the stock of up to 500 orders with 5,000 lines in one call. Reserves all lines of an order or none.

        Returns one outcome per order, in order: its reservation or the refusal. For a repeated order id, it is the
        current state of the reservation that the first call made. Raises ShopError if the call itself fails.
        """
        request = pb.BatchReserveStockRequest(orders=[_lines(order) for order in orders])
        response = self._client.call(
            self._stub.BatchReserveStock,
            request,
            timeout_seconds=self._call_seconds,
            # Used only if the batch has no span of its own. Each order also carries the trace of its caller.
            traceparent=orders[0].traceparent,
        )
        return [_outcome(order, result) for order, result in zip(orders, response.results, strict=True)]

    def confirm(self, command: ChangeStatus, *, seconds_left: float) -> dict[int, int]:
        """Confirm the reservations of the command's order. Returns the confirmed units of each product.

        May be repeated. Raises the refusals of ConfirmReservations. Raises Unavailable if the outcome is unknown.
        """
        request = pb.ConfirmReservationsRequest(order_id=command.order_id)
        return self._confirm(command, request, seconds_left)

    def retake(self, command: Reinstate, version: int, *, seconds_left: float) -> dict[int, int]:
        """Confirm the reservations of the command's order, and reserve the units of the expired ones again.

        Events of the order with versions below this one no longer change its reservations. Returns and raises as
        `confirm` does, but raises InsufficientStock instead of ReservationExpired. May be repeated.
        """
        request = pb.ConfirmReservationsRequest(order_id=command.order_id, retake=True, order_version=version)
        return self._confirm(command, request, seconds_left)

    def _confirm(
        self, command: ChangeStatus, request: pb.ConfirmReservationsRequest, seconds_left: float
    ) -> dict[int, int]:
        response = self._client.call(
            self._stub.ConfirmReservations,
            request,
            timeout_seconds=min(self._call_seconds, seconds_left),
            traceparent=command.traceparent,
            headers=delegation_headers(command.caller),
        )
        return _active_units(response.reservations)

    def extend(self, command: ExtendOrder, *, seconds_left: float) -> None:
        """Extend the reservations of the command's order. May be repeated.

        Raises the refusals of ExtendReservations. Raises Unavailable if the outcome is unknown.
        """
        self._client.call(
            self._stub.ExtendReservations,
            pb.ExtendReservationsRequest(order_id=command.order_id, ttl=_duration(command.ttl_seconds)),
            timeout_seconds=min(self._call_seconds, seconds_left),
            traceparent=command.traceparent,
            headers=delegation_headers(command.caller),
        )

    def reserve_additions(self, command: ChangeLines, begun: BegunChange, *, seconds_left: float) -> None:
        """Reserve the units that a change adds to the command's order. May be repeated.

        Raises the refusals of ReserveAdditions. Raises Unavailable if the outcome is unknown. Sends the request only
        once: if a retry is refused, the first attempt may still have reserved the units.
        """
        request = maintenance_pb2.ReserveAdditionsRequest(
            tenant=command.tenant,
            order_id=command.order_id,
            version=begun.version,
            change_id=begun.change_id or "",
            confirmed=begun.is_confirmed,
            lines=[
                maintenance_pb2.AddedLine(product_id=each.product_id, quantity=each.quantity, location=each.location)
                for each in begun.added
            ],
            ordered=[
                maintenance_pb2.OrderedUnits(product_id=product_id, quantity=quantity)
                for product_id, quantity in (begun.ordered or {}).items()
            ],
        )
        self._maintenance_client.call(
            self._maintenance.ReserveAdditions,
            request,
            timeout_seconds=min(self._call_seconds, seconds_left),
            traceparent=command.traceparent,
        )

    def release_soon(self, reserved: ReservedOrder) -> None:
        """Release the reservations in the background. If the queue is full, they expire. Never waits or raises."""
        if self._room.acquire(blocking=False):
            with suppress(RuntimeError):  # `close` was called
                self._background.submit(self._release, reserved)

    def reserved_orders(self, page_size: int, page_token: str) -> tuple[list[OrderKey], str]:
        """Return a page of orders of all tenants that may have active reservations, and the token of the next page.

        order-api may not know some of them, because callers of ReserveStock choose order ids freely. Raises
        InvalidInput if the token is invalid.
        """
        page = self._maintenance_client.call(
            self._maintenance.ListReservedOrders,
            maintenance_pb2.ListReservedOrdersRequest(page_size=page_size, page_token=page_token),
            timeout_seconds=self._call_seconds,
        )
        return [OrderKey(order.tenant, order.order_id) for order in page.orders], page.next_page_token

    def settle(self, orders: Mapping[OrderKey, VersionedStatus]) -> list[OrderKey]:
        """Release the reservations of cancelled orders, and fulfil those of shipped ones. May be repeated.

        inventory-api leaves out orders to which it has applied a later version. Returns the orders whose reservations
        changed.
        """
        response = self._maintenance_client.call(
            self._maintenance.SettleOrders,
            maintenance_pb2.SettleOrdersRequest(
                orders=[
                    maintenance_pb2.SettledOrder(
                        tenant=key.tenant,
                        order_id=key.id,
                        status=maintenance_pb2.FINAL_ORDER_STATUS_CANCELLED
                        if settled.status is Status.CANCELLED
                        else maintenance_pb2.FINAL_ORDER_STATUS_SHIPPED,
                        version=settled.version,
                    )
                    for key, settled in orders.items()
                ]
            ),
            timeout_seconds=self._call_seconds,
        )
        return [key for key, changed in zip(orders, response.changed, strict=True) if changed]

    def close(self) -> None:
        """Drop the waiting releases, finish the running ones, and close the connections."""
        self._background.shutdown(cancel_futures=True)
        self._client.close()
        self._maintenance_client.close()

    def _release(self, reserved: ReservedOrder) -> None:
        try:
            for reservation_id in reserved.reservation_ids:
                self._client.call(
                    self._stub.ReleaseStock,
                    pb.ReleaseStockRequest(reservation_id=reservation_id),
                    timeout_seconds=RELEASE_SECONDS,
                    traceparent=reserved.order.traceparent,
                    headers=delegation_headers(reserved.order.caller),
                )
        except ShopError as error:
            _log.info(
                "the reservations were not released and will expire",
                order_id=reserved.key.id,
                reservation_ids=reserved.reservation_ids[:_LOGGED_RESERVATIONS_MAX],
                reason=error.reason,
                error=error.message,
            )
        finally:
            self._room.release()


def _active_units(reservations: Sequence[pb.Reservation]) -> dict[int, int]:
    """Return the units of each product that are still reserved."""
    units: dict[int, int] = {}
    for each in reservations:
        if each.state in _ACTIVE:
            units[each.product_id] = units.get(each.product_id, 0) + each.quantity
    return units


def _order_reservation(reservations: Sequence[pb.Reservation]) -> OrderReservation:
    seconds = [
        each.expires_at.seconds - each.created_at.seconds + (each.expires_at.nanos - each.created_at.nanos) / 1e9
        for each in reservations
        if each.HasField("expires_at")
    ]
    return OrderReservation(
        tuple(each.id for each in reservations), _active_units(reservations), min(seconds, default=None)
    )


def _lines(order: NewOrder) -> pb.OrderLines:
    return pb.OrderLines(
        order_id=order.id,
        # Set it even if the client sent none, so that a retry of our call never reserves twice.
        request_id=order.id,
        lines=[
            pb.Line(product_id=item.product_id, quantity=item.quantity, location=item.location) for item in order.items
        ],
        ttl=None if order.ttl_seconds is None else _duration(order.ttl_seconds),
        traceparent=order.traceparent or "",
        tenant="" if order.caller.tenant == tenant.DEFAULT else order.caller.tenant,
        subject=order.caller.subject or "",
    )


def _outcome(order: NewOrder, result: pb.BatchReserveStockResult) -> OrderReservation | ShopError:
    if result.HasField("reservations"):
        return _order_reservation(result.reservations.reservations)
    error = from_status(result.error, unavailable_reason=InventoryUnavailable.reason)
    if not isinstance(error, InvalidInput):
        return error
    if error.reason == RequestIdReused.reason:
        # This call has the order's id as request_id. An earlier attempt with the caller's request_id had other lines.
        return RequestIdReused(order.request_id or order.id)
    # order-api calls the lines items.
    return InvalidInput([Violation(v.field.replace("lines[", "items[", 1), v.description) for v in error.violations])


def _duration(seconds: float) -> Duration:
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return Duration(seconds=whole, nanos=micro * 1000)
