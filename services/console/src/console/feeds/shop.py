"""Orders and stock, read through the published client with the viewer's own credentials."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from console import words
from shop_client import AsyncShop
from shop_client.values import (
    Item,
    Movement,
    Order,
    OrderStatus,
    Reservation,
    ReservationState,
    Return,
    ReturnTreatment,
    Shipment,
)

_Value = TypeVar("_Value")

PAGE_ROWS = 50
RESERVATIONS_MAX = 200

_TREATMENTS = {
    ReturnTreatment.RESTOCK: "restocked",
    ReturnTreatment.DISCARD: "discarded",
    ReturnTreatment.WITHHOLD: "withheld",
    ReturnTreatment.UNKNOWN: "treated in a way that this console does not know",
}

NEXT_STATUSES: dict[OrderStatus, tuple[OrderStatus, ...]] = {
    OrderStatus.PENDING: (OrderStatus.CONFIRMED, OrderStatus.CANCELLED),
    OrderStatus.CONFIRMED: (OrderStatus.PROCESSING, OrderStatus.CANCELLED),
    OrderStatus.PROCESSING: (OrderStatus.SHIPPED, OrderStatus.CANCELLED),
    OrderStatus.SHIPPED: (OrderStatus.DELIVERED,),
}
"""The status changes of docs/states.md. They choose the buttons; order-api decides whether a change is allowed."""


@dataclass(frozen=True)
class Rows(Generic[_Value]):
    """The first rows of a list. `has_more` is true if the list continues."""

    rows: tuple[_Value, ...]
    has_more: bool


@dataclass(frozen=True)
class OrderDetails:
    """An order and its reservations."""

    order: Order
    reservations: Rows[Reservation]


@dataclass(frozen=True)
class OrderFilter:
    """The filters of the list of orders. None means all."""

    user_id: int | None = None
    status: OrderStatus | None = None
    rows: int = PAGE_ROWS


@dataclass(frozen=True)
class Event:
    """An entry of the timeline of an order: something that has happened, or a deadline."""

    at: datetime
    title: str
    detail: str = ""


async def orders(shop: AsyncShop, chosen: OrderFilter) -> Rows[Order]:
    """Return the newest orders that match the filter."""
    return await _first(
        shop.list_orders(user_id=chosen.user_id, status=chosen.status, page_size=chosen.rows + 1), chosen.rows
    )


async def order(shop: AsyncShop, order_id: str) -> OrderDetails:
    """Return an order with its reservations. Raises OrderNotFound."""
    found = await shop.get_order(order_id)
    return OrderDetails(
        found, await _first(shop.list_reservations(order_id=order_id, page_size=RESERVATIONS_MAX + 1), RESERVATIONS_MAX)
    )


async def items(shop: AsyncShop, product_id: int | None, rows: int) -> Rows[Item]:
    """Return the stock by product and location."""
    return await _first(shop.list_items(product_id=product_id, page_size=rows + 1), rows)


async def held_reservations(shop: AsyncShop, product_id: int) -> Rows[Reservation]:
    """Return the reservations of a product that are neither confirmed nor over."""
    return await _first(
        shop.list_reservations(product_id=product_id, state=ReservationState.HELD, page_size=PAGE_ROWS + 1), PAGE_ROWS
    )


async def movements(shop: AsyncShop, product_id: int) -> Rows[Movement]:
    """Return the newest changes of the quantities of a product."""
    return await _first(shop.list_movements(product_id=product_id, page_size=PAGE_ROWS + 1), PAGE_ROWS)


def timeline(details: OrderDetails) -> list[Event]:
    """Return what has happened to an order and what is due, the oldest first."""
    order = details.order
    created_by = order.history[0].actor if order.history else ""
    # Events at the same time keep this order: a shipment of the last units comes before the status that it causes.
    events = [Event(order.created_at, f"Order created for {words.buyer(order.user_id)}", _by(created_by))]
    for each in _without_split(details.reservations.rows):
        where = ", ".join(f"{part.quantity:,} from {part.location}" for part in each.allocations)
        title = f"{each.quantity:,} of product {each.product_id} reserved"
        events.append(Event(each.created_at, title, f"{where}; now {each.state.lower()}"))
    events += [_shipment(order, each) for each in order.shipments]
    events += [_return(order, each) for each in order.returns]
    for change in order.history[1:]:
        detail = "; ".join(filter(None, (change.reason, _by(change.actor))))
        events.append(Event(change.at, f"Order {change.status.lower()}", detail))
    if order.status is OrderStatus.PENDING:
        events.append(Event(order.reserved_until, "Reservation expires", "unless the order is confirmed before"))
    return sorted(events, key=lambda event: event.at)


def _without_split(reservations: Sequence[Reservation]) -> list[Reservation]:
    """Return the reservations, without split ones whose parts are also there: the parts have the same units."""
    parts = {(each.product_id, each.created_at) for each in reservations if each.state is not ReservationState.REPLACED}
    return [
        each
        for each in reservations
        if each.state is not ReservationState.REPLACED or (each.product_id, each.created_at) not in parts
    ]


def _by(actor: str) -> str:
    return f"by {actor}" if actor else ""


def _shipment(order: Order, shipment: Shipment) -> Event:
    products = {line.id: line.product_id for line in order.items}
    units = ", ".join(f"{each.quantity:,} of product {products[each.item_id]}" for each in shipment.items)
    return Event(
        shipment.created_at, f"Shipment of {units}", " ".join((shipment.carrier, shipment.tracking_number)).strip()
    )


def _return(order: Order, returned: Return) -> Event:
    products = {line.id: line.product_id for line in order.items}
    units = ", ".join(f"{each.quantity:,} of product {products[each.item_id]}" for each in returned.items)
    treatments = (
        f"{each.quantity:,} {_TREATMENTS[each.treatment]}"
        f"{f' as {each.withholding_reason}' if each.withholding_reason else ''}"
        f"{f' in {each.location}' if each.location else ''}"
        for each in returned.items
    )
    return Event(returned.created_at, f"Return of {units}", "; ".join(filter(None, (returned.reason, *treatments))))


async def _first(values: AsyncIterator[_Value], limit: int) -> Rows[_Value]:
    found: list[_Value] = []
    async for value in values:
        if len(found) == limit:
            return Rows(tuple(found), has_more=True)
        found.append(value)
    return Rows(tuple(found), has_more=False)
