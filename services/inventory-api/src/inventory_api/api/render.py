"""Converts domain values to protobuf messages."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import cast

import grpc

from inventory_api.api.parse import MOVEMENT_KIND_NUMBERS, STATE_NUMBERS
from inventory_api.domain.commands import OrderLines
from inventory_api.domain.model import Availability, Item, Location, OrderKey, PastItem, Reservation
from inventory_api.domain.movements import Movement
from inventory_api.domain.reserving import shortfalls
from inventory_api.domain.stock_changes import ChangedStock
from inventory_api.domain.verification import Mismatch, MismatchKind
from inventory_api.operations.items.availability import Availabilities
from shop_common.errors import ShopError
from shop_common.events.redrive import RedriveResult
from shop_common.rpc.status import new_status, to_status
from shop_common.timestamps import to_proto, to_proto_or_none
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1 import maintenance_pb2

RESPONSE_ALLOCATIONS_MAX = 25_000
"""The most allocations in a response.

With 90 bytes per allocation, and 5,000 reservations of 200 bytes each, the response stays below 4 MB.
"""

RESPONSE_RESERVATIONS_MAX = 5_000
"""The most reservations in a response of BatchConfirmReservations, so that it stays below 4 MB."""

_KINDS: dict[MismatchKind, maintenance_pb2.StockMismatchKind.ValueType] = {
    MismatchKind.RESERVED_QUANTITY: maintenance_pb2.STOCK_MISMATCH_KIND_RESERVED_QUANTITY,
    MismatchKind.ALLOCATIONS: maintenance_pb2.STOCK_MISMATCH_KIND_ALLOCATIONS,
    MismatchKind.MOVEMENTS: maintenance_pb2.STOCK_MISMATCH_KIND_MOVEMENTS,
    MismatchKind.QUANTITY: maintenance_pb2.STOCK_MISMATCH_KIND_QUANTITY,
    MismatchKind.WITHHELD_QUANTITY: maintenance_pb2.STOCK_MISMATCH_KIND_WITHHELD_QUANTITY,
}
_CONFIRMED_BUT_TOO_LARGE = "the order is confirmed, but the response has no room for its reservations"


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
        withheld_quantity=value.withheld_quantity,
        withholdings=[pb.Withholding(reason=reason, quantity=units) for reason, units in value.withholdings],
    )


def past_item(value: PastItem) -> pb.InventoryItem:
    return pb.InventoryItem(
        id=value.item.id,
        product_id=value.item.product_id,
        location=value.item.location,
        quantity=value.quantity,
        withheld_quantity=value.withheld_quantity,
        created_at=to_proto(value.item.created_at),
    )


def availability(value: Availabilities) -> pb.BatchGetAvailabilityResponse:
    return pb.BatchGetAvailabilityResponse(
        read_at=to_proto(value.read_at), products=[_product_availability(each) for each in value.products]
    )


def _product_availability(value: Availability) -> pb.ProductAvailability:
    return pb.ProductAvailability(
        product_id=value.product_id,
        available_quantity=value.available_quantity,
        reserved_quantity=value.reserved_quantity,
        withheld_quantity=value.withheld_quantity,
        next_release_at=to_proto_or_none(value.next_release_at),
        locations=[
            pb.LocationAvailability(
                location=each.location,
                available_quantity=each.available_quantity,
                reserved_quantity=each.reserved_quantity,
                withheld_quantity=each.withheld_quantity,
            )
            for each in value.locations
        ],
    )


def location(value: Location) -> pb.Location:
    return pb.Location(
        location=value.location,
        active=value.is_active,
        priority=value.priority,
        region=value.region,
        labels=[pb.Label(name=name, value=text) for name, text in value.labels],
        updated_at=to_proto_or_none(value.updated_at),
    )


def movement(value: Movement) -> pb.Movement:
    return pb.Movement(
        item_id=value.item_id,
        product_id=value.product_id,
        location=value.location,
        revision=value.revision,
        kind=MOVEMENT_KIND_NUMBERS[value.kind],
        quantity=value.quantity,
        quantity_after=value.quantity_after,
        order_id=value.order_id,
        reason=value.reason,
        reference=value.reference,
        actor=value.actor,
        occurred_at=to_proto_or_none(value.occurred_at),
        created_at=to_proto(value.created_at),
        withheld=value.withheld,
        withheld_after=value.withheld_after,
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


def reserved(order: OrderLines, reservations: Sequence[Reservation]) -> pb.ReserveStockResponse:
    """Render the reservation of an order with one line."""
    (only,) = reservations
    return pb.ReserveStockResponse(reservation=reservation(only), shortfalls=_shortfalls(order, reservations))


def _shortfalls(order: OrderLines, reservations: Sequence[Reservation]) -> list[pb.Shortfall]:
    if not order.allow_partial:
        return []
    return [
        pb.Shortfall(product_id=each.product_id, requested_quantity=each.requested, reserved_quantity=each.reserved)
        for each in shortfalls(order, reservations)
    ]


def batch(
    orders: Sequence[OrderLines | ShopError], outcomes: Sequence[list[Reservation] | ShopError]
) -> pb.BatchReserveStockResponse:
    """Render the outcomes of a batch, one per order."""
    room = _RoomForAllocations()
    results = []
    for order, outcome in zip(orders, outcomes, strict=True):
        if isinstance(outcome, ShopError) or isinstance(order, ShopError):
            results.append(pb.BatchReserveStockResult(error=to_status(cast("ShopError", outcome))))
        else:
            reservations = pb.Reservations(
                reservations=[reservation(each) for each in room.take(outcome)],
                shortfalls=_shortfalls(order, outcome),
            )
            results.append(pb.BatchReserveStockResult(reservations=reservations))
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


def changed_stock(outcomes: Sequence[ChangedStock | ShopError]) -> pb.BatchChangeStockResponse:
    return pb.BatchChangeStockResponse(
        results=[
            pb.BatchChangeStockResult(error=to_status(outcome))
            if isinstance(outcome, ShopError)
            else pb.BatchChangeStockResult(
                item=item(outcome.item), target=None if outcome.target is None else item(outcome.target)
            )
            for outcome in outcomes
        ]
    )


def batch_release(outcomes: Sequence[int | ShopError]) -> pb.BatchReleaseStockResponse:
    return pb.BatchReleaseStockResponse(
        results=[
            pb.BatchReleaseStockResult(error=to_status(outcome))
            if isinstance(outcome, ShopError)
            else pb.BatchReleaseStockResult(response=pb.ReleaseStockResponse(released_quantity=outcome))
            for outcome in outcomes
        ]
    )


def batch_confirm(outcomes: Sequence[list[Reservation] | ShopError]) -> pb.BatchConfirmReservationsResponse:
    """Render the outcomes of a batch.

    An order that would bring the response above RESPONSE_RESERVATIONS_MAX gets the error ANSWER_TOO_LARGE.
    """
    left, room = RESPONSE_RESERVATIONS_MAX, _RoomForAllocations()
    results = []
    for outcome in outcomes:
        if isinstance(outcome, ShopError):
            results.append(pb.BatchConfirmReservationsResult(error=to_status(outcome)))
        elif len(outcome) > left:
            error = new_status(grpc.StatusCode.RESOURCE_EXHAUSTED, _CONFIRMED_BUT_TOO_LARGE, "ANSWER_TOO_LARGE")
            results.append(pb.BatchConfirmReservationsResult(error=error))
        else:
            left -= len(outcome)
            response = pb.ConfirmReservationsResponse(reservations=[reservation(each) for each in room.take(outcome)])
            results.append(pb.BatchConfirmReservationsResult(response=response))
    return pb.BatchConfirmReservationsResponse(results=results)


class _RoomForAllocations:
    """Limits the allocations of one response to RESPONSE_ALLOCATIONS_MAX."""

    def __init__(self) -> None:
        self._left = RESPONSE_ALLOCATIONS_MAX

    def take(self, reservations: list[Reservation]) -> list[Reservation]:
        """Return the reservations of one order.

        If this order would bring the response above the limit, its reservations and those of all later orders are
        returned without allocations.
        """
        self._left -= sum(len(each.allocations) for each in reservations)
        return reservations if self._left >= 0 else [replace(each, allocations=()) for each in reservations]


def settled(
    request: maintenance_pb2.SettleOrdersRequest, changed: Collection[OrderKey]
) -> maintenance_pb2.SettleOrdersResponse:
    return maintenance_pb2.SettleOrdersResponse(
        changed=(OrderKey(order.tenant, "", order.order_id) in changed for order in request.orders)
    )


def redriven(results: Sequence[RedriveResult]) -> pb.RedriveDeadLettersResponse:
    return pb.RedriveDeadLettersResponse(
        letters=[
            pb.RedrivenLetter(
                outcome=pb.RedriveOutcome.Value(f"REDRIVE_OUTCOME_{each.outcome}"), event_id=each.event_id
            )
            for each in results
        ]
    )
