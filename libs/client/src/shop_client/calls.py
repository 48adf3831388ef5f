"""The calls of InventoryService and OrderService: the request of each, and how its response is read.

`Shop` and `AsyncShop` send these calls; here nothing depends on threads or asyncio. Every change gets a request_id, so
that a repeat has no second effect.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from shop_client import convert
from shop_client.errors import ShopError
from shop_client.statuses import error_of
from shop_client.values import (
    Availability,
    Caller,
    ChangedStock,
    Charge,
    ErasedUser,
    Item,
    ItemUnits,
    Location,
    Movement,
    MovementKind,
    NewItem,
    NewOrder,
    Order,
    OrderLines,
    OrderStatus,
    PastItem,
    RedrivenLetter,
    Reservation,
    ReservationState,
    ReturnedUnits,
    Stock,
    StockChange,
)
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders

_Result = TypeVar("_Result")
_Value = TypeVar("_Value")

_INVENTORY = inventory.DESCRIPTOR.services_by_name["InventoryService"]
_ORDERS = orders.DESCRIPTOR.services_by_name["OrderService"]
INVENTORY_SERVICE, ORDER_SERVICE = _INVENTORY.full_name, _ORDERS.full_name

_INT64_MAX = 2**63 - 1
_QUANTITY_MAX = 10**9
"""The largest quantity of a CheckStock."""

PAGE_SIZE = 200
"""The number of entries that an iterator reads at once."""


@dataclass(frozen=True)
class Method:
    """An RPC, with the classes of its request and response."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


@dataclass(frozen=True, slots=True)
class Call(Generic[_Result]):
    """One call: its RPC, its request, and the function that converts the response to the result."""

    method: Method
    request: Message
    read: Callable[[Any], _Result]
    request_id: str = ""


class BatchRpc(Protocol):
    """An RPC that sends concurrent calls as one batch."""

    @property
    def method(self) -> Method: ...

    def request(self, messages: Sequence[Any]) -> Message:
        """Return the request of the RPC for the messages of these calls."""
        ...

    def results(self, messages: Sequence[Any], response: Any) -> Sequence[Message]:
        """Return the part of the response of each call, in order, or the Status of its failure."""
        ...


@dataclass(frozen=True)
class BatchMethod:
    """An RPC that decides many requests independently. They are in the field `requests` of the RPC's request."""

    method: Method
    requests: str

    def request(self, messages: Sequence[Any]) -> Message:
        fields: dict[str, Any] = {self.requests: messages}
        return self.method.request(**fields)

    def results(self, messages: Sequence[Any], response: Any) -> Sequence[Message]:
        return [result.error if result.HasField("error") else result for result in response.results]


@dataclass(frozen=True)
class AvailabilityBatch:
    """BatchGetAvailability for the products of many CheckStockRequest. Several may name the same product."""

    method: Method

    def request(self, messages: Sequence[Any]) -> Message:
        products = dict.fromkeys(message.product_id for message in messages)
        return inventory.BatchGetAvailabilityRequest(product_ids=products)

    def results(self, messages: Sequence[Any], response: Any) -> Sequence[Message]:
        found = {each.product_id: each for each in response.products}
        return [found[message.product_id] for message in messages if message.product_id in found]


@dataclass(frozen=True, slots=True)
class BatchedCall(Generic[_Result]):
    """A call that is sent in one RPC with the concurrent calls of other threads or tasks.

    `message` is its part of the request, with this many `lines`. `read` converts its part of the response.
    """

    rpc: BatchRpc
    message: Message
    read: Callable[[Any], _Result]
    request_id: str = ""
    lines: int = 1


@dataclass(frozen=True, slots=True)
class Page(Generic[_Value]):
    """A page of a list. The last page has an empty `next_token`."""

    values: tuple[_Value, ...]
    next_token: str


def _method(service: ServiceDescriptor, name: str) -> Method:
    rpc = service.methods_by_name[name]
    return Method(service.full_name, name, GetMessageClass(rpc.input_type), GetMessageClass(rpc.output_type))


CREATE_INVENTORY_ITEM = _method(_INVENTORY, "CreateInventoryItem")
GET_INVENTORY_ITEM = _method(_INVENTORY, "GetInventoryItem")
UPDATE_INVENTORY_ITEM = _method(_INVENTORY, "UpdateInventoryItem")
BATCH_CHANGE_STOCK = _method(_INVENTORY, "BatchChangeStock")
LIST_INVENTORY_ITEMS = _method(_INVENTORY, "ListInventoryItems")
LIST_MOVEMENTS = _method(_INVENTORY, "ListMovements")
CHECK_STOCK = _method(_INVENTORY, "CheckStock")
BATCH_GET_AVAILABILITY = _method(_INVENTORY, "BatchGetAvailability")
UPDATE_LOCATION = _method(_INVENTORY, "UpdateLocation")
LIST_LOCATIONS = _method(_INVENTORY, "ListLocations")
BATCH_RESERVE_STOCK = _method(_INVENTORY, "BatchReserveStock")
BATCH_RELEASE_STOCK = _method(_INVENTORY, "BatchReleaseStock")
BATCH_CONFIRM_RESERVATIONS = _method(_INVENTORY, "BatchConfirmReservations")
CONFIRM_RESERVATIONS = _method(_INVENTORY, "ConfirmReservations")
EXTEND_RESERVATIONS = _method(_INVENTORY, "ExtendReservations")
GET_RESERVATION = _method(_INVENTORY, "GetReservation")
LIST_RESERVATIONS = _method(_INVENTORY, "ListReservations")
BATCH_CREATE_ORDERS = _method(_ORDERS, "BatchCreateOrders")
GET_ORDER = _method(_ORDERS, "GetOrder")
UPDATE_ORDER_STATUS = _method(_ORDERS, "UpdateOrderStatus")
CREATE_SHIPMENT = _method(_ORDERS, "CreateShipment")
CANCEL_ORDER_ITEMS = _method(_ORDERS, "CancelOrderItems")
CREATE_RETURN = _method(_ORDERS, "CreateReturn")
CHANGE_ORDER = _method(_ORDERS, "ChangeOrder")
EXTEND_ORDER = _method(_ORDERS, "ExtendOrder")
REINSTATE_ORDER = _method(_ORDERS, "ReinstateOrder")
LIST_ORDERS = _method(_ORDERS, "ListOrders")
ERASE_USER = _method(_ORDERS, "EraseUser")
GET_CALLER = _method(_ORDERS, "GetCaller")
REDRIVE_ORDER_EVENTS = _method(_INVENTORY, "RedriveDeadLetters")
REDRIVE_INVENTORY_EVENTS = _method(_ORDERS, "RedriveDeadLetters")

_RESERVE = BatchMethod(BATCH_RESERVE_STOCK, "orders")
_RELEASE = BatchMethod(BATCH_RELEASE_STOCK, "requests")
_CONFIRM = BatchMethod(BATCH_CONFIRM_RESERVATIONS, "requests")
_CREATE = BatchMethod(BATCH_CREATE_ORDERS, "orders")
_CHECK = AvailabilityBatch(BATCH_GET_AVAILABILITY)
BATCHED: tuple[BatchRpc, ...] = (_RESERVE, _RELEASE, _CONFIRM, _CREATE, _CHECK)
"""The RPCs that send concurrent calls as one batch."""


# --- stock ---


def add_stock(product_id: int, quantity: int, location: str | None, request_id: str | None) -> Call[Item]:
    request = inventory.CreateInventoryItemRequest(
        product_id=product_id, quantity=quantity, location=location or "", request_id=request_id or _new_id()
    )
    return Call(CREATE_INVENTORY_ITEM, request, _item, request.request_id)


def get_item(item_id: int) -> Call[Item]:
    return Call(GET_INVENTORY_ITEM, inventory.GetInventoryItemRequest(id=item_id), _item)


def get_past_item(item_id: int, as_of: datetime) -> Call[PastItem]:
    request = inventory.GetInventoryItemRequest(id=item_id, as_of=convert.timestamp(as_of))
    return Call(GET_INVENTORY_ITEM, request, _past_item)


def set_quantity(item_id: int, quantity: int, version: int | None, request_id: str | None) -> Call[Item]:
    request = inventory.UpdateInventoryItemRequest(
        id=item_id, quantity=quantity, version=version, request_id=request_id or _new_id()
    )
    return Call(UPDATE_INVENTORY_ITEM, request, _item, request.request_id)


def batch_change_stock(
    changes: Iterable[StockChange], atomic: bool, request_id: str | None
) -> Call[list[ChangedStock | ShopError]]:
    request = inventory.BatchChangeStockRequest(
        changes=map(convert.stock_change, changes), atomic=atomic, request_id=request_id or _new_id()
    )
    return Call(BATCH_CHANGE_STOCK, request, partial(_changed, request.request_id), request.request_id)


def list_items(product_id: int | None, location: str | None, page_size: int) -> Call[Page[Item]]:
    request = inventory.ListInventoryItemsRequest(product_id=product_id, location=location or "", page_size=page_size)
    return Call(LIST_INVENTORY_ITEMS, request, _items)


def list_past_items(
    as_of: datetime, product_id: int | None, location: str | None, page_size: int
) -> Call[Page[PastItem]]:
    request = inventory.ListInventoryItemsRequest(
        product_id=product_id, location=location or "", page_size=page_size, as_of=convert.timestamp(as_of)
    )
    return Call(LIST_INVENTORY_ITEMS, request, _past_items)


def check_stock_in_batch(product_id: int, required_quantity: int, location: str | None) -> BatchedCall[Stock] | None:
    """Return the call, or None if it has a location or an invalid value, which would refuse the whole batch."""
    if location or not 0 < product_id <= _INT64_MAX or not 0 < required_quantity <= _QUANTITY_MAX:
        return None
    message = inventory.CheckStockRequest(product_id=product_id, required_quantity=required_quantity)
    return BatchedCall(_CHECK, message, partial(convert.stock_of_product, required_quantity))


def list_movements(
    product_id: int | None,
    location: str | None,
    order_id: str | None,
    kind: MovementKind | None,
    actor: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
    page_size: int,
) -> Call[Page[Movement]]:
    request = inventory.ListMovementsRequest(
        product_id=product_id,
        location=location or "",
        order_id=order_id or "",
        kind=convert.movement_kind_number(kind),
        actor=actor or "",
        created_after=convert.timestamp(created_after),
        created_before=convert.timestamp(created_before),
        page_size=page_size,
    )
    return Call(LIST_MOVEMENTS, request, _movements)


def check_stock(product_id: int, required_quantity: int, location: str | None) -> Call[Stock]:
    request = inventory.CheckStockRequest(
        product_id=product_id, required_quantity=required_quantity, location=location or ""
    )
    return Call(CHECK_STOCK, request, convert.stock)


def get_availability(product_ids: Iterable[int], by_location: bool) -> Call[list[Availability]]:
    request = inventory.BatchGetAvailabilityRequest(product_ids=product_ids, by_location=by_location)
    return Call(BATCH_GET_AVAILABILITY, request, convert.availabilities)


def update_location(
    location: str,
    is_active: bool | None,
    priority: int | None,
    region: str | None,
    labels: Mapping[str, str] | None,
    request_id: str | None,
) -> Call[Location]:
    request = inventory.UpdateLocationRequest(
        location=location,
        active=is_active,
        priority=priority,
        region=region,
        labels=None if labels is None else _labels(labels),
        request_id=request_id or _new_id(),
    )
    return Call(UPDATE_LOCATION, request, _location, request.request_id)


def _labels(labels: Mapping[str, str]) -> inventory.LocationLabels:
    return inventory.LocationLabels(labels=[inventory.Label(name=name, value=value) for name, value in labels.items()])


def list_locations(page_size: int) -> Call[Page[Location]]:
    return Call(LIST_LOCATIONS, inventory.ListLocationsRequest(page_size=page_size), _locations)


# --- reservations ---


def order_lines(order: OrderLines, traceparent: str) -> inventory.OrderLines:
    """Return the message for one order of a batch. Without a request_id, it gets a new one."""
    return inventory.OrderLines(
        order_id=order.order_id,
        lines=[
            inventory.Line(
                product_id=line.product_id,
                quantity=line.quantity,
                location=line.location or "",
                policy=convert.policy(line.policy),
            )
            for line in order.lines
        ],
        ttl=convert.duration(order.ttl_seconds),
        request_id=order.request_id or _new_id(),
        traceparent=traceparent,
        allow_partial=order.allow_partial,
    )


def reserve_lines(order: OrderLines, traceparent: str) -> BatchedCall[list[Reservation]]:
    message = order_lines(order, traceparent)
    return BatchedCall(_RESERVE, message, _reserved, message.request_id, len(message.lines))


def batch_reserve(orders_: Sequence[inventory.OrderLines]) -> Call[list[list[Reservation] | ShopError]]:
    request = inventory.BatchReserveStockRequest(orders=orders_)
    return Call(BATCH_RESERVE_STOCK, request, partial(_outcomes, [order.request_id for order in orders_]))


def release(reservation_id: str, traceparent: str) -> BatchedCall[int]:
    message = inventory.ReleaseStockRequest(reservation_id=reservation_id, traceparent=traceparent)
    return BatchedCall(_RELEASE, message, _released_quantity)


def confirm_reservations(order_id: str, retake: bool, traceparent: str) -> BatchedCall[list[Reservation]]:
    message = inventory.ConfirmReservationsRequest(order_id=order_id, traceparent=traceparent, retake=retake)
    return BatchedCall(_CONFIRM, message, _confirmed_in_batch)


def confirm_reservations_alone(order_id: str) -> Call[list[Reservation]]:
    """Return the call for an order whose reservations do not fit into the response of a batch."""
    return Call(CONFIRM_RESERVATIONS, inventory.ConfirmReservationsRequest(order_id=order_id), _confirmed)


def extend_reservations(order_id: str, ttl_seconds: float) -> Call[list[Reservation]]:
    request = inventory.ExtendReservationsRequest(order_id=order_id, ttl=convert.duration(ttl_seconds))
    return Call(EXTEND_RESERVATIONS, request, _extended)


def get_reservation(reservation_id: str) -> Call[Reservation]:
    return Call(GET_RESERVATION, inventory.GetReservationRequest(id=reservation_id), _reservation)


def list_reservations(
    order_id: str | None, product_id: int | None, state: ReservationState | None, page_size: int
) -> Call[Page[Reservation]]:
    request = inventory.ListReservationsRequest(
        order_id=order_id or "",
        product_id=product_id,
        state=convert.state_number(state),
        page_size=page_size,
    )
    return Call(LIST_RESERVATIONS, request, _reservations)


# --- orders ---


def create_order(order: NewOrder, traceparent: str) -> BatchedCall[Order]:
    message = new_order(order, traceparent)
    return BatchedCall(_CREATE, message, _created_in_batch, message.request_id, len(message.items))


def batch_create_orders(orders_: Sequence[orders.CreateOrderRequest]) -> Call[list[Order | ShopError]]:
    request = orders.BatchCreateOrdersRequest(orders=orders_)
    return Call(BATCH_CREATE_ORDERS, request, partial(_created, [order.request_id for order in request.orders]))


def new_order(order: NewOrder, traceparent: str) -> orders.CreateOrderRequest:
    """Return the message for one order of a batch. Without a request_id, it gets a new one."""
    return orders.CreateOrderRequest(
        user_id=order.user_id,
        items=_new_items(order.items, order.currency),
        ttl=convert.duration(order.ttl_seconds),
        request_id=order.request_id or _new_id(),
        traceparent=traceparent,
        charges=[convert.charge(each, order.currency) for each in order.charges],
        external_reference=order.external_reference,
        labels=convert.labels(order.labels),
    )


def _new_items(items: Iterable[NewItem], currency: str) -> list[orders.CreateOrderItem]:
    return [
        orders.CreateOrderItem(
            product_id=item.product_id,
            quantity=item.quantity,
            price=convert.money(item.price, currency),
            location=item.location or "",
            buyer_limit=item.buyer_limit or 0,
        )
        for item in items
    ]


def get_order(order_id: str) -> Call[Order]:
    return Call(GET_ORDER, orders.GetOrderRequest(id=order_id), _order)


def update_order_status(order_id: str, status: OrderStatus, reason: str, request_id: str | None) -> Call[Order]:
    request = orders.UpdateOrderStatusRequest(
        id=order_id, status=convert.status_number(status), reason=reason, request_id=request_id or _new_id()
    )
    return Call(UPDATE_ORDER_STATUS, request, _order, request.request_id)


def create_shipment(
    order_id: str, items: Sequence[ItemUnits], carrier: str, tracking_number: str, request_id: str | None
) -> Call[Order]:
    request = orders.CreateShipmentRequest(
        id=order_id,
        items=_units(items),
        carrier=carrier,
        tracking_number=tracking_number,
        request_id=request_id or _new_id(),
    )
    return Call(CREATE_SHIPMENT, request, _order, request.request_id)


def cancel_order_items(order_id: str, items: Sequence[ItemUnits], reason: str, request_id: str | None) -> Call[Order]:
    request = orders.CancelOrderItemsRequest(
        id=order_id, items=_units(items), reason=reason, request_id=request_id or _new_id()
    )
    return Call(CANCEL_ORDER_ITEMS, request, _order, request.request_id)


def create_return(order_id: str, items: Sequence[ReturnedUnits], reason: str, request_id: str | None) -> Call[Order]:
    request = orders.CreateReturnRequest(
        id=order_id,
        items=[convert.returned_units(each) for each in items],
        reason=reason,
        request_id=request_id or _new_id(),
    )
    return Call(CREATE_RETURN, request, _order, request.request_id)


def change_order(
    order_id: str,
    version: int,
    items: Sequence[ItemUnits],
    new_items: Sequence[NewItem],
    charges: Sequence[Charge] | None,
    currency: str,
    reason: str,
    request_id: str | None,
) -> Call[Order]:
    request = orders.ChangeOrderRequest(
        id=order_id,
        version=version,
        items=[orders.ChangedItem(item_id=each.item_id, quantity=each.quantity) for each in items],
        new_items=_new_items(new_items, currency),
        charges=None
        if charges is None
        else orders.ChangedCharges(charges=[convert.charge(each, currency) for each in charges]),
        reason=reason,
        request_id=request_id or _new_id(),
    )
    return Call(CHANGE_ORDER, request, _order, request.request_id)


def extend_order(order_id: str, ttl_seconds: float) -> Call[Order]:
    return Call(EXTEND_ORDER, orders.ExtendOrderRequest(id=order_id, ttl=convert.duration(ttl_seconds)), _order)


def reinstate_order(order_id: str, reason: str, request_id: str | None) -> Call[Order]:
    request = orders.ReinstateOrderRequest(id=order_id, reason=reason, request_id=request_id or _new_id())
    return Call(REINSTATE_ORDER, request, _order, request.request_id)


def erase_user(user_id: int) -> Call[ErasedUser]:
    return Call(ERASE_USER, orders.EraseUserRequest(user_id=user_id), convert.erased_user)


def get_caller() -> Call[Caller]:
    return Call(GET_CALLER, orders.GetCallerRequest(), convert.caller)


def redrive_order_events(letters: Iterable[tuple[int, int]]) -> Call[list[RedrivenLetter]]:
    positions = [inventory.DeadLetterPosition(partition=number, offset=offset) for number, offset in letters]
    request = inventory.RedriveDeadLettersRequest(letters=positions)
    return Call(REDRIVE_ORDER_EVENTS, request, convert.redriven_letters)


def redrive_inventory_events(letters: Iterable[tuple[int, int]]) -> Call[list[RedrivenLetter]]:
    positions = [orders.DeadLetterPosition(partition=number, offset=offset) for number, offset in letters]
    request = orders.RedriveDeadLettersRequest(letters=positions)
    return Call(REDRIVE_INVENTORY_EVENTS, request, convert.redriven_letters)


def _units(items: Sequence[ItemUnits]) -> list[orders.ItemUnits]:
    return [orders.ItemUnits(item_id=each.item_id, quantity=each.quantity) for each in items]


def list_orders(
    *,
    user_id: int | None,
    status: OrderStatus | None,
    statuses: Iterable[OrderStatus],
    product_id: int | None,
    external_reference: str | None,
    label: tuple[str, str] | None,
    created_after: datetime | None,
    created_before: datetime | None,
    updated_after: datetime | None,
    updated_before: datetime | None,
    page_size: int,
) -> Call[Page[Order]]:
    request = orders.ListOrdersRequest(
        user_id=user_id,
        status=convert.status_number(status),
        statuses=[convert.status_number(each) for each in statuses],
        product_id=product_id,
        external_reference=external_reference or "",
        label=None if label is None else orders.Label(name=label[0], value=label[1]),
        created_after=convert.timestamp(created_after),
        created_before=convert.timestamp(created_before),
        updated_after=convert.timestamp(updated_after),
        updated_before=convert.timestamp(updated_before),
        page_size=page_size,
    )
    return Call(LIST_ORDERS, request, _orders)


def _new_id() -> str:
    return str(uuid4())


def _item(response: inventory.InventoryItemResponse) -> Item:
    return convert.item(response.item)


def _items(response: inventory.ListInventoryItemsResponse) -> Page[Item]:
    return Page(tuple(map(convert.item, response.items)), response.next_page_token)


def _location(response: inventory.UpdateLocationResponse) -> Location:
    return convert.location(response.location)


def _locations(response: inventory.ListLocationsResponse) -> Page[Location]:
    return Page(tuple(map(convert.location, response.locations)), response.next_page_token)


def _past_item(response: inventory.InventoryItemResponse) -> PastItem:
    return convert.past_item(response.item)


def _past_items(response: inventory.ListInventoryItemsResponse) -> Page[PastItem]:
    return Page(tuple(map(convert.past_item, response.items)), response.next_page_token)


def _changed(request_id: str, response: inventory.BatchChangeStockResponse) -> list[ChangedStock | ShopError]:
    return [
        error_of(result.error, request_id) if result.HasField("error") else convert.changed_stock(result)
        for result in response.results
    ]


def _movements(response: inventory.ListMovementsResponse) -> Page[Movement]:
    return Page(tuple(map(convert.movement, response.movements)), response.next_page_token)


def _outcomes(
    request_ids: Sequence[str], response: inventory.BatchReserveStockResponse
) -> list[list[Reservation] | ShopError]:
    return [
        error_of(result.error, request_id) if result.HasField("error") else _reserved(result)
        for request_id, result in zip(request_ids, response.results, strict=True)
    ]


def _reserved(result: inventory.BatchReserveStockResult) -> list[Reservation]:
    return [convert.reservation(each) for each in result.reservations.reservations]


def _released_quantity(result: inventory.BatchReleaseStockResult) -> int:
    return result.response.released_quantity


def _confirmed_in_batch(result: inventory.BatchConfirmReservationsResult) -> list[Reservation]:
    return _confirmed(result.response)


def _confirmed(response: inventory.ConfirmReservationsResponse) -> list[Reservation]:
    return [convert.reservation(each) for each in response.reservations]


def _extended(response: inventory.ExtendReservationsResponse) -> list[Reservation]:
    return [convert.reservation(each) for each in response.reservations]


def _reservation(response: inventory.GetReservationResponse) -> Reservation:
    return convert.reservation(response.reservation)


def _reservations(response: inventory.ListReservationsResponse) -> Page[Reservation]:
    return Page(tuple(map(convert.reservation, response.reservations)), response.next_page_token)


def _order(response: orders.OrderResponse) -> Order:
    return convert.order(response.order, response.history)


def _created_in_batch(result: orders.BatchCreateOrdersResult) -> Order:
    return convert.order(result.order)


def _created(request_ids: Sequence[str], response: orders.BatchCreateOrdersResponse) -> list[Order | ShopError]:
    return [
        error_of(result.error, request_id) if result.HasField("error") else convert.order(result.order)
        for request_id, result in zip(request_ids, response.results, strict=True)
    ]


def _orders(response: orders.ListOrdersResponse) -> Page[Order]:
    return Page(tuple(map(convert.order, response.orders)), response.next_page_token)
