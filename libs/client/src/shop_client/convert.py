"""Converts between the messages of the contract and the values of this package."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

from shop_client.values import (
    Allocation,
    AllocationPolicy,
    Availability,
    Caller,
    ChangedStock,
    Charge,
    ChargeKind,
    ErasedUser,
    Item,
    ItemUnits,
    Location,
    LocationAvailability,
    Movement,
    MovementKind,
    Order,
    OrderItem,
    OrderStatus,
    PastItem,
    RedrivenLetter,
    RedriveOutcome,
    Reservation,
    ReservationState,
    Return,
    ReturnedUnits,
    ReturnTreatment,
    Shipment,
    StatusChange,
    Stock,
    StockChange,
)
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NANOS = 1_000_000_000

_STATES = {
    number: ReservationState(name.removeprefix("RESERVATION_STATE_"))
    for name, number in inventory.ReservationState.items()
    if number
}
_STATE_NUMBERS = {state: number for number, state in _STATES.items()}
_MOVEMENT_KINDS = {
    number: MovementKind(name.removeprefix("MOVEMENT_KIND_"))
    for name, number in inventory.MovementKind.items()
    if number
}
_MOVEMENT_KIND_NUMBERS = {kind: number for number, kind in _MOVEMENT_KINDS.items()}
_STATUSES = {
    number: OrderStatus(name.removeprefix("ORDER_STATUS_")) for name, number in orders.OrderStatus.items() if number
}
_TREATMENTS = {
    number: ReturnTreatment(name.removeprefix("RETURN_TREATMENT_"))
    for name, number in orders.ReturnTreatment.items()
    if number
}
_TREATMENT_NUMBERS = {treatment: number for number, treatment in _TREATMENTS.items()}
_STATUS_NUMBERS = {status: number for number, status in _STATUSES.items()}
_CHARGE_KINDS = {
    number: ChargeKind(name.removeprefix("CHARGE_KIND_")) for name, number in orders.ChargeKind.items() if number
}
_CHARGE_KIND_NUMBERS = {kind: number for number, kind in _CHARGE_KINDS.items()}
_REDRIVE_OUTCOMES: dict[int, RedriveOutcome] = {
    number: RedriveOutcome(name.removeprefix("REDRIVE_OUTCOME_"))
    for name, number in inventory.RedriveOutcome.items()  # those of order-api have the same numbers
    if number
}


def item(message: inventory.InventoryItem) -> Item:
    return Item(
        id=message.id,
        product_id=message.product_id,
        location=message.location,
        quantity=message.quantity,
        reserved_quantity=message.reserved_quantity,
        available_quantity=message.available_quantity,
        version=message.version,
        created_at=_utc(message.created_at),
        updated_at=_utc(message.updated_at),
        withheld_quantity=message.withheld_quantity,
        withholdings={each.reason: each.quantity for each in message.withholdings},
    )


def stock(message: inventory.CheckStockResponse) -> Stock:
    return Stock(message.available, message.available_quantity)


def availabilities(message: inventory.BatchGetAvailabilityResponse) -> list[Availability]:
    read_at = _utc(message.read_at)
    return [
        Availability(
            product_id=each.product_id,
            available_quantity=each.available_quantity,
            reserved_quantity=each.reserved_quantity,
            withheld_quantity=each.withheld_quantity,
            next_release_at=_utc(each.next_release_at) if each.HasField("next_release_at") else None,
            locations=tuple(
                LocationAvailability(
                    part.location, part.available_quantity, part.reserved_quantity, part.withheld_quantity
                )
                for part in each.locations
            ),
            read_at=read_at,
        )
        for each in message.products
    ]


def location(message: inventory.Location) -> Location:
    return Location(
        location=message.location,
        is_active=message.active,
        priority=message.priority,
        region=message.region,
        labels={each.name: each.value for each in message.labels},
        updated_at=_utc(message.updated_at),
    )


def stock_of_product(required_quantity: int, message: inventory.ProductAvailability) -> Stock:
    return Stock(message.available_quantity >= required_quantity, message.available_quantity)


def past_item(message: inventory.InventoryItem) -> PastItem:
    return PastItem(
        id=message.id,
        product_id=message.product_id,
        location=message.location,
        quantity=message.quantity,
        created_at=_utc(message.created_at),
        withheld_quantity=message.withheld_quantity,
    )


def changed_stock(message: inventory.BatchChangeStockResult) -> ChangedStock:
    return ChangedStock(item(message.item), item(message.target) if message.HasField("target") else None)


def movement(message: inventory.Movement) -> Movement:
    return Movement(
        item_id=message.item_id,
        product_id=message.product_id,
        location=message.location,
        revision=message.revision,
        kind=_MOVEMENT_KINDS.get(message.kind, MovementKind.UNKNOWN),
        quantity=message.quantity,
        quantity_after=message.quantity_after,
        order_id=message.order_id,
        reason=message.reason,
        reference=message.reference,
        actor=message.actor,
        occurred_at=_utc(message.occurred_at) if message.HasField("occurred_at") else None,
        created_at=_utc(message.created_at),
        withheld=message.withheld,
        withheld_after=message.withheld_after,
    )


def reservation(message: inventory.Reservation) -> Reservation:
    return Reservation(
        id=message.id,
        product_id=message.product_id,
        quantity=message.quantity,
        order_id=message.order_id,
        state=_STATES.get(message.state, ReservationState.UNKNOWN),
        created_at=_utc(message.created_at),
        expires_at=_utc(message.expires_at) if message.HasField("expires_at") else None,
        allocations=tuple(Allocation(each.item_id, each.location, each.quantity) for each in message.allocations),
    )


def order(message: orders.Order, history: Iterable[orders.StatusChange] = ()) -> Order:
    return Order(
        id=message.id,
        user_id=message.user_id,
        items=tuple(_order_item(each) for each in message.items),
        total_amount=_amount(message.total_amount),
        currency=message.total_amount.currency_code,
        status=_STATUSES.get(message.status, OrderStatus.UNKNOWN),
        status_reason=message.status_reason,
        reserved_until=_utc(message.reserved_until),
        version=message.version,
        created_at=_utc(message.created_at),
        updated_at=_utc(message.updated_at),
        shipments=tuple(_shipment(each) for each in message.shipments),
        returns=tuple(_return(each) for each in message.returns),
        history=tuple(_status_change(each) for each in history),
        charges=tuple(_charge(each) for each in message.charges),
        external_reference=message.external_reference,
        labels={each.name: each.value for each in message.labels},
    )


def _order_item(message: orders.OrderItem) -> OrderItem:
    return OrderItem(
        id=message.id,
        product_id=message.product_id,
        quantity=message.quantity,
        price=_amount(message.price),
        shipped=message.shipped,
        cancelled=message.cancelled,
        returned=message.returned,
        location=message.location,
    )


def _status_change(message: orders.StatusChange) -> StatusChange:
    status = _STATUSES.get(message.status, OrderStatus.UNKNOWN)
    return StatusChange(status, _utc(message.time), message.reason, message.actor)


def _charge(message: orders.Charge) -> Charge:
    return Charge(_CHARGE_KINDS.get(message.kind, ChargeKind.UNKNOWN), _amount(message.amount), message.label)


def _shipment(message: orders.Shipment) -> Shipment:
    items = tuple(ItemUnits(each.item_id, each.quantity) for each in message.items)
    return Shipment(message.id, message.carrier, message.tracking_number, items, _utc(message.created_at))


def _return(message: orders.Return) -> Return:
    items = tuple(
        ReturnedUnits(
            each.item_id,
            each.quantity,
            _TREATMENTS.get(each.treatment, ReturnTreatment.UNKNOWN),
            each.location or None,
            each.withholding_reason or None,
        )
        for each in message.items
    )
    return Return(message.id, message.reason, items, _utc(message.created_at))


def returned_units(value: ReturnedUnits) -> orders.ReturnedUnits:
    """Convert returned units. Raises ValueError for the treatment UNKNOWN."""
    if value.treatment is ReturnTreatment.UNKNOWN:
        raise ValueError("UNKNOWN is not a treatment of the contract")
    return orders.ReturnedUnits(
        item_id=value.item_id,
        quantity=value.quantity,
        treatment=_TREATMENT_NUMBERS[ReturnTreatment(value.treatment)],
        location=value.location or "",
        withholding_reason=value.withholding_reason or "",
    )


def state_number(state: ReservationState | None) -> inventory.ReservationState.ValueType:
    """Return the number of the state, or of UNSPECIFIED for None. Raises ValueError for UNKNOWN."""
    if state is ReservationState.UNKNOWN:
        raise ValueError("UNKNOWN is not a state of the contract")
    return inventory.RESERVATION_STATE_UNSPECIFIED if state is None else _STATE_NUMBERS[ReservationState(state)]


def movement_kind_number(kind: MovementKind | None) -> inventory.MovementKind.ValueType:
    """Return the number of the kind, or of UNSPECIFIED for None. Raises ValueError for UNKNOWN."""
    if kind is MovementKind.UNKNOWN:
        raise ValueError("UNKNOWN is not a kind of the contract")
    return inventory.MOVEMENT_KIND_UNSPECIFIED if kind is None else _MOVEMENT_KIND_NUMBERS[MovementKind(kind)]


def status_number(status: OrderStatus | None) -> orders.OrderStatus.ValueType:
    """Return the number of the status, or of UNSPECIFIED for None. Raises ValueError for UNKNOWN."""
    if status is OrderStatus.UNKNOWN:
        raise ValueError("UNKNOWN is not a status of the contract")
    return orders.ORDER_STATUS_UNSPECIFIED if status is None else _STATUS_NUMBERS[OrderStatus(status)]


def charge(value: Charge, currency: str) -> orders.Charge:
    """Convert a charge. Raises ValueError for the kind UNKNOWN, and what `money` raises."""
    if value.kind is ChargeKind.UNKNOWN:
        raise ValueError("UNKNOWN is not a kind of the contract")
    kind = _CHARGE_KIND_NUMBERS[ChargeKind(value.kind)]
    return orders.Charge(kind=kind, label=value.label, amount=money(value.amount, currency))


def labels(values: Mapping[str, str]) -> list[orders.Label]:
    return [orders.Label(name=name, value=value) for name, value in values.items()]


def policy(value: AllocationPolicy | None) -> inventory.AllocationPolicy | None:
    if value is None:
        return None
    return inventory.AllocationPolicy(
        strategy=inventory.AllocationStrategy.Value(f"ALLOCATION_STRATEGY_{value.strategy}"),
        locations=value.locations,
        excluded_locations=value.excluded_locations,
        max_locations=value.max_locations or 0,
    )


def money(amount: Decimal, currency: str) -> Money:
    """Convert an exact amount. Raises TypeError for a float, ValueError for an amount with more than nine decimals."""
    if not isinstance(amount, Decimal):
        raise TypeError(f"an amount must be a Decimal, not {type(amount).__name__}")
    if not amount.is_finite():
        raise ValueError(f"not an amount: {amount}")
    # Integers only: arithmetic with Decimal rounds to the precision of the caller's context.
    sign, digits, exponent = amount.as_tuple()
    assert isinstance(exponent, int)
    nanos, rest = divmod(int("".join(map(str, digits))) * 10 ** max(exponent + 9, 0), 10 ** max(-exponent - 9, 0))
    if rest:
        raise ValueError(f"an amount has at most nine decimals: {amount}")
    units, nanos = divmod(nanos, _NANOS)
    return Money(currency_code=currency, units=-units if sign else units, nanos=-nanos if sign else nanos)


def redriven_letters(
    message: inventory.RedriveDeadLettersResponse | orders.RedriveDeadLettersResponse,
) -> list[RedrivenLetter]:
    return [
        RedrivenLetter(_REDRIVE_OUTCOMES.get(each.outcome, RedriveOutcome.UNKNOWN), each.event_id)
        for each in message.letters
    ]


def erased_user(message: orders.EraseUserResponse) -> ErasedUser:
    return ErasedUser(message.erased_count, message.has_more, message.has_open_orders)


def caller(message: orders.GetCallerResponse) -> Caller:
    return Caller(message.name, message.tenant, tuple(message.permissions))


def duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    result = Duration()
    result.FromNanoseconds(round(seconds * _NANOS))
    return result


def stock_change(change: StockChange) -> inventory.StockChange:
    """Return the message of a change. Raises ValueError if the change does not have exactly one quantity."""
    values = {
        "received": change.received,
        "adjusted": change.adjusted,
        "counted": change.counted,
        "move": change.moved,
        "withheld": change.withheld,
    }
    quantity: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if len(quantity) != 1:
        raise ValueError("a change of stock has exactly one of received, adjusted, counted, moved and withheld")
    if (change.moved is None) != (change.to_location is None):
        raise ValueError("only a move has a to_location, and it needs one")
    if change.moved is not None:
        quantity["move"] = inventory.StockMove(to_location=change.to_location or "", quantity=change.moved)
    if change.withheld is not None:
        quantity["withheld"] = inventory.StockWithholding(reason=change.reason, quantity=change.withheld)
    return inventory.StockChange(
        product_id=change.product_id,
        location=change.location or "",
        **quantity,
        version=change.version,
        reason=change.reason if change.withheld is None else "",
        reference=change.reference,
        occurred_at=timestamp(change.occurred_at),
        release_shortfall=change.release_shortfall,
    )


def timestamp(time: datetime | None) -> Timestamp | None:
    """Convert a time. Raises ValueError for a time without a time zone, or outside the years 1 to 9999 in UTC."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError(f"a time needs a time zone, for example UTC: {time}")
    result = Timestamp()
    try:
        result.FromDatetime(time)
    except OverflowError:
        raise ValueError(f"the year of a time must be 1 to 9999 in UTC: {time}") from None
    return result


def _utc(message: Timestamp) -> datetime:
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def _amount(message: Money) -> Decimal:
    if not message.nanos:
        return Decimal(message.units)
    # The constructor is exact in every decimal context. No amount of the contract is negative.
    return Decimal(f"{message.units}.{message.nanos:09d}".rstrip("0"))
