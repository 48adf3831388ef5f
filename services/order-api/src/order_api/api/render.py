"""Converts domain values to protobuf."""

from collections.abc import Iterable

from order_api.api.parse import CHARGE_NUMBERS, STATUS_NUMBERS, TREATMENT_NUMBERS
from order_api.domain import units
from order_api.domain.model import Order, StatusChange
from shop_common.api import money
from shop_common.errors import ShopError
from shop_common.events.redrive import RedriveResult
from shop_common.rpc.status import to_status
from shop_common.timestamps import to_proto
from shop_protos.order.v1 import order_pb2 as pb


def order(value: Order) -> pb.Order:
    currency = value.currency
    return pb.Order(
        id=value.id,
        user_id=value.user_id,
        items=[
            pb.OrderItem(
                id=item.id,
                product_id=item.product_id,
                quantity=item.quantity,
                price=money.to_proto(item.price, currency),
                location=item.location,
                shipped=units.shipped(value, item),
                cancelled=item.quantity - units.kept(value, item),
                returned=item.returned,
            )
            for item in value.items
        ],
        total_amount=money.to_proto(value.total_amount, currency),
        status=STATUS_NUMBERS[value.status],
        status_reason=value.status_reason,
        reserved_until=to_proto(value.reserved_until),
        version=value.version,
        created_at=to_proto(value.created_at),
        updated_at=to_proto(value.updated_at),
        charges=[
            pb.Charge(
                kind=CHARGE_NUMBERS[charge.kind], label=charge.label, amount=money.to_proto(charge.amount, currency)
            )
            for charge in value.charges
        ],
        external_reference=value.external_reference,
        labels=[pb.Label(name=name, value=text) for name, text in value.labels],
        shipments=[
            pb.Shipment(
                id=shipment.id,
                carrier=shipment.carrier,
                tracking_number=shipment.tracking_number,
                items=[pb.ItemUnits(item_id=item_id, quantity=quantity) for item_id, quantity in shipment.units],
                created_at=to_proto(shipment.created_at),
            )
            for shipment in value.shipments
        ],
        returns=[
            pb.Return(
                id=each.id,
                reason=each.reason,
                items=[
                    pb.ReturnedUnits(
                        item_id=returned.item_id,
                        quantity=returned.quantity,
                        treatment=TREATMENT_NUMBERS[returned.treatment],
                        location=returned.location,
                        withholding_reason=returned.withholding_reason,
                    )
                    for returned in each.units
                ],
                created_at=to_proto(each.created_at),
            )
            for each in value.returns
        ],
    )


def batch(outcomes: Iterable[Order | ShopError]) -> pb.BatchCreateOrdersResponse:
    return pb.BatchCreateOrdersResponse(
        results=[
            pb.BatchCreateOrdersResult(error=to_status(each))
            if isinstance(each, ShopError)
            else pb.BatchCreateOrdersResult(order=order(each))
            for each in outcomes
        ]
    )


def status_change(value: StatusChange) -> pb.StatusChange:
    return pb.StatusChange(
        status=STATUS_NUMBERS[value.status], time=to_proto(value.time), reason=value.reason, actor=value.actor
    )


def redriven(results: Iterable[RedriveResult]) -> pb.RedriveDeadLettersResponse:
    return pb.RedriveDeadLettersResponse(
        letters=[
            pb.RedrivenLetter(
                outcome=pb.RedriveOutcome.Value(f"REDRIVE_OUTCOME_{each.outcome}"), event_id=each.event_id
            )
            for each in results
        ]
    )
