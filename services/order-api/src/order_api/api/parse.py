"""Converts protobuf requests to commands. Every field of every request is checked here and nowhere else."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from order_api.domain import commands
from order_api.domain.commands import (
    CancelAbandoned,
    CancelItems,
    ChangeLines,
    ChangeStatus,
    EraseUser,
    ExtendOrder,
    NewOrder,
    OrderFilter,
    PurgeKeys,
    Reconcile,
    Reinstate,
    ReturnItems,
    ShipItems,
)
from order_api.domain.model import (
    CHARGES_MAX,
    LABELS_MAX,
    LINE_QUANTITY_MAX,
    LINES_MAX,
    NO_DETAILS,
    Charge,
    ChargeKind,
    NewDetails,
    NewItem,
    OrderKey,
    ReturnedUnits,
    Status,
    Treatment,
)
from shop_common.api import money, paging
from shop_common.api.labels import checked as checked_labels
from shop_common.api.paging import PageRequest
from shop_common.api.valid import INT64_MAX, Fields
from shop_common.errors import InvalidInput, PermissionDenied, ShopError
from shop_common.identity.caller import Caller
from shop_protos.order.v1 import maintenance_pb2
from shop_protos.order.v1 import order_pb2 as pb

BATCH_ORDERS_MAX = 500
BATCH_LINES_MAX = 5_000
CARRIER_LENGTH_MAX = 64
TRACKING_LENGTH_MAX = 128
CHARGE_LABEL_LENGTH_MAX = 64
REFERENCE_LENGTH_MAX = 128
LABEL_VALUE_LENGTH_MAX = 256
TTL_SECONDS_MIN = 1
TTL_SECONDS_MAX = 7 * 24 * 3600
GRACE_SECONDS_MIN = 60
GRACE_SECONDS_MAX = 7 * 24 * 3600
MAINTENANCE_COUNT_MAX = 10_000
MAINTENANCE_COUNT_DEFAULT = 1_000
HISTORY_SECONDS_MIN = 24 * 3600
HISTORY_SECONDS_MAX = 10 * 366 * 24 * 3600

STATUS_NUMBERS: dict[Status, pb.OrderStatus.ValueType] = {
    Status.PENDING: pb.ORDER_STATUS_PENDING,
    Status.CONFIRMED: pb.ORDER_STATUS_CONFIRMED,
    Status.PROCESSING: pb.ORDER_STATUS_PROCESSING,
    Status.SHIPPED: pb.ORDER_STATUS_SHIPPED,
    Status.DELIVERED: pb.ORDER_STATUS_DELIVERED,
    Status.CANCELLED: pb.ORDER_STATUS_CANCELLED,
}
_STATUSES: dict[int, Status] = {number: status for status, number in STATUS_NUMBERS.items()}

CHARGE_NUMBERS: dict[ChargeKind, pb.ChargeKind.ValueType] = {
    ChargeKind.SHIPPING: pb.CHARGE_KIND_SHIPPING,
    ChargeKind.DISCOUNT: pb.CHARGE_KIND_DISCOUNT,
    ChargeKind.TAX: pb.CHARGE_KIND_TAX,
    ChargeKind.FEE: pb.CHARGE_KIND_FEE,
}
_CHARGE_KINDS: dict[int, ChargeKind] = {number: kind for kind, number in CHARGE_NUMBERS.items()}


TREATMENT_NUMBERS: dict[Treatment, pb.ReturnTreatment.ValueType] = {
    Treatment.RESTOCK: pb.RETURN_TREATMENT_RESTOCK,
    Treatment.DISCARD: pb.RETURN_TREATMENT_DISCARD,
    Treatment.WITHHOLD: pb.RETURN_TREATMENT_WITHHOLD,
}
_TREATMENTS: dict[int, Treatment] = {number: treatment for treatment, number in TREATMENT_NUMBERS.items()}

# BatchChangeStock of inventory-api refuses these reasons, so it could not give back units that are withheld for them.
_RESERVED_REASONS = ("OPENING", "UPGRADE")


def new_order(request: pb.CreateOrderRequest, caller: Caller, traceparent: str | None) -> NewOrder:
    with Fields() as check:
        user_id = check.identity("user_id", request.user_id)
        request_id = check.request_id(request.request_id)
        ttl_seconds = None
        if request.HasField("ttl"):
            ttl_seconds = check.duration("ttl", request.ttl, TTL_SECONDS_MIN, TTL_SECONDS_MAX)
        items, currency = _items(check, request)
        details = _details(check, request, currency)
        order = commands.new_order(
            user_id,
            items,
            currency,
            ttl_seconds=ttl_seconds,
            details=details,
            caller=caller,
            request_id=request_id,
            traceparent=check.traceparent(request.traceparent) or traceparent,
        )
        if money.total([(item.price, item.quantity) for item in items]) > money.UNITS_MAX:
            check.violate("items", f"must add up to at most {money.UNITS_MAX} units of their currency")
        elif details.charges and order.total_amount < 0:
            check.violate("charges", "must not have discounts above the sum of the lines and the other charges")
        elif order.total_amount > money.UNITS_MAX:
            check.violate("charges", f"must not make the total more than {money.UNITS_MAX} units of its currency")
    return order


def batch(request: pb.BatchCreateOrdersRequest, caller: Caller, traceparent: str | None) -> list[NewOrder | ShopError]:
    """Return one outcome per order, in order: a command, or the error that refuses this order.

    The error is InvalidInput, or PermissionDenied if the caller may not act for the user of the order. Raises
    InvalidInput if the number of orders or lines is invalid, which refuses the whole call.
    """
    with Fields() as check:
        is_within_limit = check.size("orders", request.orders, 1, BATCH_ORDERS_MAX)
        if is_within_limit and sum(len(order.items) for order in request.orders) > BATCH_LINES_MAX:
            check.violate("orders", f"must have at most {BATCH_LINES_MAX} items in total")
    orders: list[NewOrder | ShopError] = []
    for order in request.orders:
        try:
            if order.user_id:  # as for CreateOrder, a missing user is an invalid field
                caller.require_user(order.user_id)
            orders.append(new_order(order, caller, traceparent))
        except (InvalidInput, PermissionDenied) as error:
            orders.append(error)
    return orders


def _items(check: Fields, request: pb.CreateOrderRequest) -> tuple[tuple[NewItem, ...], str]:
    """Return the lines and the currency of their prices, which must be the same for all lines."""
    if not check.size("items", request.items, 1, LINES_MAX):
        return (), ""
    currency = request.items[0].price.currency_code
    return _lines(check, "items", request.items, currency), currency


def _lines(check: Fields, field: str, requested: Sequence[pb.CreateOrderItem], currency: str) -> tuple[NewItem, ...]:
    items = []
    for index, item in enumerate(requested):
        at = check.at(f"{field}[{index}]")
        product_id = at.identity("product_id", item.product_id)
        quantity = at.between("quantity", item.quantity, 1, LINE_QUANTITY_MAX)
        price = money.checked(at, "price", item.price)
        if money.is_currency(currency) and item.price.currency_code != currency:
            at.violate("price.currency_code", f"must be the same for all items of an order: {currency}")
        location = at.location("location", item.location) if item.location else ""
        buyer_limit = at.between("buyer_limit", item.buyer_limit, 0, LINE_QUANTITY_MAX) if item.buyer_limit else 0
        items.append(NewItem(product_id, quantity, price, location, buyer_limit))
    return tuple(items)


def _details(check: Fields, request: pb.CreateOrderRequest, currency: str) -> NewDetails:
    """Return the optional parts of the order. `currency` is that of the lines."""
    if not (request.charges or request.external_reference or request.labels):
        return NO_DETAILS  # most orders: share one value, and check nothing
    return NewDetails(
        _charges(check, request.charges, currency),
        check.text("external_reference", request.external_reference, REFERENCE_LENGTH_MAX),
        checked_labels(check, request.labels, LABELS_MAX, LABEL_VALUE_LENGTH_MAX),
    )


def _charges(check: Fields, requested: Sequence[pb.Charge], currency: str) -> tuple[Charge, ...]:
    if not check.size("charges", requested, 0, CHARGES_MAX):
        return ()
    charges = []
    for index, charge in enumerate(requested):
        at = check.at(f"charges[{index}]")
        kind = at.member("kind", charge.kind, _CHARGE_KINDS)
        label = at.text("label", charge.label, CHARGE_LABEL_LENGTH_MAX)
        amount = money.checked(at, "amount", charge.amount)
        if charge.amount.currency_code != currency and money.is_currency(charge.amount.currency_code):
            at.violate("amount.currency_code", "must be the same as that of the items")
        if kind is not None:
            charges.append(Charge(kind, label, amount))
    return tuple(charges)


def order_key(request: pb.GetOrderRequest, caller: Caller) -> OrderKey:
    with Fields() as check:
        return OrderKey(caller.tenant, check.uuid("id", request.id))


def change_status(request: pb.UpdateOrderStatusRequest, caller: Caller, traceparent: str | None) -> ChangeStatus:
    with Fields() as check:
        order_id = check.uuid("id", request.id)
        status = check.member("status", request.status, _STATUSES)
        reason = check.text("reason", request.reason)
        request_id = check.request_id(request.request_id)
    assert status is not None, "an unknown status raises at the end of the block"
    return ChangeStatus(order_id, status, reason, caller=caller, request_id=request_id, traceparent=traceparent)


def extend(request: pb.ExtendOrderRequest, caller: Caller, traceparent: str | None) -> ExtendOrder:
    with Fields() as check:
        return ExtendOrder(
            check.uuid("id", request.id),
            check.duration("ttl", request.ttl, TTL_SECONDS_MIN, TTL_SECONDS_MAX),
            caller=caller,
            traceparent=traceparent,
        )


def reinstate(request: pb.ReinstateOrderRequest, caller: Caller, traceparent: str | None) -> Reinstate:
    with Fields() as check:
        return Reinstate(
            check.uuid("id", request.id),
            Status.CONFIRMED,
            check.text("reason", request.reason),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def ship_items(request: pb.CreateShipmentRequest, caller: Caller, traceparent: str | None) -> ShipItems:
    with Fields() as check:
        return ShipItems(
            check.uuid("id", request.id),
            _units(check, request.items, 0),
            check.text("carrier", request.carrier, CARRIER_LENGTH_MAX),
            check.text("tracking_number", request.tracking_number, TRACKING_LENGTH_MAX),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def cancel_items(request: pb.CancelOrderItemsRequest, caller: Caller, traceparent: str | None) -> CancelItems:
    with Fields() as check:
        return CancelItems(
            check.uuid("id", request.id),
            _units(check, request.items, 1),
            check.text("reason", request.reason),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def _units(check: Fields, items: Sequence[pb.ItemUnits], count_min: int) -> tuple[tuple[int, int], ...]:
    """Return pairs of the id of a line and its units. No line may occur twice."""
    if not check.size("items", items, count_min, LINES_MAX):
        return ()
    units: dict[int, int] = {}
    for index, item in enumerate(items):
        at = check.at(f"items[{index}]")
        item_id = at.identity("item_id", item.item_id)
        if item_id in units:
            at.violate("item_id", "must not occur twice")
        units[item_id] = at.between("quantity", item.quantity, 1, LINE_QUANTITY_MAX)
    return tuple(units.items())


def change_lines(request: pb.ChangeOrderRequest, caller: Caller, traceparent: str | None) -> ChangeLines:
    with Fields() as check:
        has_charges = request.HasField("charges")
        if not (request.items or request.new_items or has_charges):
            check.violate("items", "or one of new_items and charges must be present")
        new_items, charges = request.new_items, request.charges.charges
        amounts = [*(item.price for item in new_items[:1]), *(charge.amount for charge in charges[:1])]
        currency = amounts[0].currency_code if amounts else None
        quantities: dict[int, int] = {}
        for index, item in enumerate(request.items if check.size("items", request.items, 0, LINES_MAX) else ()):
            at = check.at(f"items[{index}]")
            item_id = at.identity("item_id", item.item_id)
            if item_id in quantities:
                at.violate("item_id", "must not occur twice")
            quantities[item_id] = at.between("quantity", item.quantity, 0, LINE_QUANTITY_MAX)
        is_within_limit = check.size("new_items", new_items, 0, LINES_MAX)
        return ChangeLines(
            check.uuid("id", request.id),
            version=check.between("version", request.version, 1, INT64_MAX),
            quantities=tuple(quantities.items()),
            new_items=_lines(check, "new_items", new_items, currency or "") if is_within_limit else (),
            charges=_charges(check.at("charges"), charges, currency or "") if has_charges else None,
            currency=currency,
            reason=check.text("reason", request.reason),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def return_items(request: pb.CreateReturnRequest, caller: Caller, traceparent: str | None) -> ReturnItems:
    with Fields() as check:
        return ReturnItems(
            check.uuid("id", request.id),
            _returned(check, request.items),
            check.text("reason", request.reason),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def _returned(check: Fields, items: Sequence[pb.ReturnedUnits]) -> tuple[ReturnedUnits, ...]:
    if not check.size("items", items, 1, LINES_MAX):
        return ()
    returned: list[ReturnedUnits] = []
    seen: set[tuple[int, Treatment, str, str]] = set()
    for index, item in enumerate(items):
        at = check.at(f"items[{index}]")
        item_id = at.identity("item_id", item.item_id)
        quantity = at.between("quantity", item.quantity, 1, LINE_QUANTITY_MAX)
        treatment = at.member("treatment", item.treatment, _TREATMENTS)
        if treatment in (Treatment.RESTOCK, Treatment.WITHHOLD):
            at.location("location", item.location)
        elif item.location:
            at.violate("location", "must be empty unless the units are restocked or withheld")
        if treatment is Treatment.WITHHOLD:
            at.location("withholding_reason", item.withholding_reason)
            if item.withholding_reason in _RESERVED_REASONS:
                at.violate("withholding_reason", f"must not be {' or '.join(_RESERVED_REASONS)}")
        elif item.withholding_reason:
            at.violate("withholding_reason", "must be empty unless the units are withheld")
        if treatment is None:
            continue
        key = (item_id, treatment, item.location, item.withholding_reason)
        if key in seen:
            at.violate("item_id", "must not occur twice with the same treatment, location and withholding_reason")
        seen.add(key)
        returned.append(ReturnedUnits(item_id, quantity, treatment, item.location, item.withholding_reason))
    return tuple(returned)


def erase_user(request: pb.EraseUserRequest, caller: Caller, traceparent: str | None) -> EraseUser:
    with Fields() as check:
        return EraseUser(check.identity("user_id", request.user_id), caller=caller, traceparent=traceparent)


def orders_page(request: pb.ListOrdersRequest, caller: Caller) -> PageRequest[OrderFilter]:
    """Return the requested page of the tenant's orders.

    If the request names no user, a caller that may only access its own orders gets its own. Raises PermissionDenied if
    such a caller is not a user.
    """
    owner = caller.owner
    with Fields() as check:
        wanted = OrderFilter(
            tenant=caller.tenant,
            user_id=check.identity("user_id", request.user_id) if request.HasField("user_id") else owner,
            statuses=_statuses(check, request),
            created_after=_timestamp(check, request, "created_after"),
            created_before=_timestamp(check, request, "created_before"),
            product_id=check.identity("product_id", request.product_id) if request.HasField("product_id") else None,
            external_reference=check.text("external_reference", request.external_reference, REFERENCE_LENGTH_MAX),
            label=_label(check.at("label"), request.label) if request.HasField("label") else None,
            updated_after=_timestamp(check, request, "updated_after"),
            updated_before=_timestamp(check, request, "updated_before"),
        )
        for name, other in wanted.conflicts():
            check.violate(name, f"must not be combined with {other}")
        return paging.page_request(
            check,
            "orders",
            wanted,
            page_size=request.page_size,
            page_token=request.page_token,
            # The position of order_lists.list_page.
            position=(datetime, UUID) if wanted.product_id is None else (int,),
        )


def _statuses(check: Fields, request: pb.ListOrdersRequest) -> tuple[Status, ...] | None:
    """Return the statuses that match both fields, or None if neither is set."""
    single: set[Status | None] = {check.member("status", request.status, _STATUSES)} if request.status else set(Status)
    several: set[Status | None] = set(Status)
    if request.statuses and check.size("statuses", request.statuses, 0, len(Status)):
        several = {check.member(f"statuses[{index}]", each, _STATUSES) for index, each in enumerate(request.statuses)}
    if not request.status and not request.statuses:
        return None
    return tuple(status for status in Status if status in single & several)


def _label(check: Fields, label: pb.Label) -> tuple[str, str]:
    return check.identifier("name", label.name), check.text("value", label.value, LABEL_VALUE_LENGTH_MAX)


def _timestamp(check: Fields, request: pb.ListOrdersRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type]  # the stubs want a literal
        return None
    moment: Timestamp = getattr(request, field)
    return check.instant(field, moment)


def abandoned(request: maintenance_pb2.CancelAbandonedOrdersRequest, caller: Caller) -> CancelAbandoned:
    with Fields() as check:
        grace_seconds = check.duration("grace", request.grace, GRACE_SECONDS_MIN, GRACE_SECONDS_MAX)
        return CancelAbandoned(grace_seconds, _max_count(check, request.max_count), caller=caller)


def reconcile(request: maintenance_pb2.ReconcileOrdersRequest, caller: Caller) -> Reconcile:
    with Fields() as check:
        grace_seconds = check.duration("grace", request.grace, GRACE_SECONDS_MIN, GRACE_SECONDS_MAX)
        # inventory-api made the token, and checks it.
        return Reconcile(grace_seconds, check.page_size(request.page_size), request.page_token, caller=caller)


def purge(request: maintenance_pb2.PurgeHistoryRequest, caller: Caller) -> PurgeKeys:
    with Fields() as check:
        older_than_seconds = check.duration("older_than", request.older_than, HISTORY_SECONDS_MIN, HISTORY_SECONDS_MAX)
        return PurgeKeys(older_than_seconds, _max_count(check, request.max_count), caller=caller)


def _max_count(check: Fields, value: int) -> int:
    return check.between("max_count", value or MAINTENANCE_COUNT_DEFAULT, 1, MAINTENANCE_COUNT_MAX)
