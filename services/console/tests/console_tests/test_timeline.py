"""The timeline of an order."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from console.feeds.shop import Event, OrderDetails, Rows, timeline
from shop_client.values import (
    ItemUnits,
    Order,
    OrderItem,
    OrderStatus,
    Reservation,
    ReservationState,
    Return,
    ReturnedUnits,
    ReturnTreatment,
    Shipment,
    StatusChange,
)

_START = datetime(2026, 1, 2, tzinfo=UTC)


def _after(minutes: int) -> datetime:
    return _START + timedelta(minutes=minutes)


def _order(
    status: OrderStatus,
    history: tuple[StatusChange, ...] = (),
    shipments: tuple[Shipment, ...] = (),
    returns: tuple[Return, ...] = (),
) -> Order:
    return Order(
        id="an-order",
        user_id=7,
        items=(OrderItem(1, 4711, 2000, Decimal(1)),),
        total_amount=Decimal(2000),
        currency="EUR",
        status=status,
        status_reason="",
        reserved_until=_after(15),
        version=1,
        created_at=_START,
        updated_at=_START,
        shipments=shipments,
        returns=returns,
        history=history,
    )


def _timeline(order: Order) -> list[Event]:
    return timeline(OrderDetails(order, Rows((), has_more=False)))


def test_it_has_each_change_with_its_reason_and_its_caller_and_each_shipment() -> None:
    history = (
        StatusChange(OrderStatus.PENDING, _START, "", "user:anna"),
        StatusChange(OrderStatus.CONFIRMED, _after(1), "paid", "key:3"),
        StatusChange(OrderStatus.SHIPPED, _after(2), "", ""),
    )
    shipment = Shipment("a-shipment", "DHL", "17", (ItemUnits(1, 2000),), _after(2))

    assert _timeline(_order(OrderStatus.SHIPPED, history, (shipment,))) == [
        Event(_START, "Order created for user 7", "by user:anna"),
        Event(_after(1), "Order confirmed", "paid; by key:3"),
        Event(_after(2), "Shipment of 2,000 of product 4711", "DHL 17"),
        Event(_after(2), "Order shipped"),
    ]


def test_it_has_each_return_with_its_reason_and_what_happened_to_the_units() -> None:
    units = (
        ReturnedUnits(1, 2, ReturnTreatment.RESTOCK, "WAREHOUSE_A"),
        ReturnedUnits(1, 1, ReturnTreatment.DISCARD),
        ReturnedUnits(1, 1, ReturnTreatment.WITHHOLD, "WAREHOUSE_B", "DAMAGED"),
    )

    *_, last = _timeline(_order(OrderStatus.DELIVERED, returns=(Return("a-return", "too small", units, _after(3)),)))

    assert last == Event(
        _after(3),
        "Return of 2 of product 4711, 1 of product 4711, 1 of product 4711",
        "too small; 2 restocked in WAREHOUSE_A; 1 discarded; 1 withheld as DAMAGED in WAREHOUSE_B",
    )


def test_a_split_reservation_is_shown_as_its_parts_and_an_expired_one_that_was_replaced_stays() -> None:
    def reservation(quantity: int, state: ReservationState, minutes: int) -> Reservation:
        return Reservation(f"{quantity}-{state}", 4711, quantity, "an-order", state, _after(minutes), None, ())

    reservations = (
        reservation(5, ReservationState.REPLACED, 0),
        reservation(3, ReservationState.REPLACED, 1),
        reservation(2, ReservationState.FULFILLED, 1),
        reservation(1, ReservationState.CONFIRMED, 1),
    )
    details = OrderDetails(_order(OrderStatus.PROCESSING), Rows(reservations, has_more=False))

    assert [event.title for event in timeline(details)[1:]] == [
        "5 of product 4711 reserved",
        "2 of product 4711 reserved",
        "1 of product 4711 reserved",
    ]


def test_a_pending_order_ends_with_the_expiry_of_its_reservation() -> None:
    assert [event.title for event in _timeline(_order(OrderStatus.PENDING))] == [
        "Order created for user 7",
        "Reservation expires",
    ]
