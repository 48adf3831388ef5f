"""Converts protobuf requests to commands. Every field of every request is validated here and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import ParamSpec, TypeVar
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from inventory_api.domain.commands import (
    AddRequest,
    AddStock,
    AvailabilityQuestion,
    ChangeStock,
    ExpireRequest,
    ExtendRequest,
    ItemFilter,
    LocationFilter,
    MovementFilter,
    OrderLines,
    OrderRequest,
    PastItemQuestion,
    PurgeRequest,
    ReleaseRequest,
    ReservationFilter,
    RetakeRequest,
    SetQuantity,
    SettledOrder,
    SettleRequest,
    StockChange,
    StockQuestion,
    UpdateLocation,
    VerifyRequest,
)
from inventory_api.domain.model import (
    DEFAULT_LOCATION,
    HELD_SECONDS_MAX,
    ITEM_QUANTITY_MAX,
    LOCATIONS_MAX,
    AllocationPolicy,
    ItemKey,
    Line,
    ReservationKey,
    State,
    StockKey,
    Strategy,
)
from inventory_api.domain.movements import RESERVED_REASONS, MovementKind
from shop_common.api import paging
from shop_common.api.labels import checked as checked_labels
from shop_common.api.paging import PageRequest
from shop_common.api.valid import INT64_MAX, Fields
from shop_common.errors import InvalidInput, ShopError
from shop_common.events.outbox import ACTOR_CHARACTERS_MAX
from shop_common.identity import tenant
from shop_common.identity.authenticator import delegated
from shop_common.identity.caller import Caller
from shop_common.identity.errors import DelegationInvalid
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1 import maintenance_pb2

_Message = TypeVar("_Message")
_Command = TypeVar("_Command")
_Arguments = ParamSpec("_Arguments")

LINE_QUANTITY_MAX = 1_000_000_000
LINES_MAX = 200
BATCH_ORDERS_MAX = 500
BATCH_LINES_MAX = 5_000
BATCH_REQUESTS_MAX = 500
SETTLED_ORDERS_MAX = 500
CHANGES_MAX = 5_000
ATOMIC_CHANGES_MAX = 400
REASON_LENGTH_MAX = 64
REFERENCE_LENGTH_MAX = 64
TTL_SECONDS_MIN = 1
TTL_SECONDS_MAX = HELD_SECONDS_MAX
AVAILABILITY_PRODUCTS_MAX = 1_000
PRIORITY_MAX = 1_000_000
REGION_LENGTH_MAX = 64
LABELS_MAX = 16
LABEL_VALUE_LENGTH_MAX = 256
MAINTENANCE_COUNT_MAX = 10_000
MAINTENANCE_COUNT_DEFAULT = 1_000
HISTORY_SECONDS_MIN = 24 * 3600
HISTORY_SECONDS_MAX = 10 * 366 * 24 * 3600

_CANCELLED = maintenance_pb2.FINAL_ORDER_STATUS_CANCELLED
_SHIPPED = maintenance_pb2.FINAL_ORDER_STATUS_SHIPPED

STATE_NUMBERS: dict[State, pb.ReservationState.ValueType] = {
    State.HELD: pb.RESERVATION_STATE_HELD,
    State.CONFIRMED: pb.RESERVATION_STATE_CONFIRMED,
    State.RELEASED: pb.RESERVATION_STATE_RELEASED,
    State.EXPIRED: pb.RESERVATION_STATE_EXPIRED,
    State.FULFILLED: pb.RESERVATION_STATE_FULFILLED,
    State.REPLACED: pb.RESERVATION_STATE_REPLACED,
}
_STRATEGIES_BY_NUMBER: dict[int, Strategy] = {
    pb.ALLOCATION_STRATEGY_FEWEST: Strategy.FEWEST,
    pb.ALLOCATION_STRATEGY_PRIORITY: Strategy.PRIORITY,
    pb.ALLOCATION_STRATEGY_AS_GIVEN: Strategy.AS_GIVEN,
}
MOVEMENT_KIND_NUMBERS: dict[MovementKind, pb.MovementKind.ValueType] = {
    MovementKind.RECEIVED: pb.MOVEMENT_KIND_RECEIVED,
    MovementKind.ADJUSTED: pb.MOVEMENT_KIND_ADJUSTED,
    MovementKind.COUNTED: pb.MOVEMENT_KIND_COUNTED,
    MovementKind.MOVED: pb.MOVEMENT_KIND_MOVED,
    MovementKind.FULFILLED: pb.MOVEMENT_KIND_FULFILLED,
    MovementKind.RETURNED: pb.MOVEMENT_KIND_RETURNED,
    MovementKind.WITHHELD: pb.MOVEMENT_KIND_WITHHELD,
}
_MOVEMENT_KINDS_BY_NUMBER: dict[int, MovementKind] = {number: kind for kind, number in MOVEMENT_KIND_NUMBERS.items()}
_STATES_BY_NUMBER: dict[int, State] = {number: state for state, number in STATE_NUMBERS.items()}


def add_stock(request: pb.CreateInventoryItemRequest, caller: Caller, traceparent: str | None) -> AddStock:
    with Fields() as check:
        return AddStock(
            product_id=check.identity("product_id", request.product_id),
            location=_location(check, request.location) or DEFAULT_LOCATION,
            quantity=check.between("quantity", request.quantity, 0, ITEM_QUANTITY_MAX),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def item_key(request: pb.GetInventoryItemRequest, caller: Caller) -> ItemKey:
    with Fields() as check:
        return ItemKey(caller.tenant, check.identity("id", request.id))


def past_item(request: pb.GetInventoryItemRequest, caller: Caller) -> PastItemQuestion:
    with Fields() as check:
        key = ItemKey(caller.tenant, check.identity("id", request.id))
        return PastItemQuestion(key, check.instant("as_of", request.as_of))


def set_quantity(request: pb.UpdateInventoryItemRequest, caller: Caller, traceparent: str | None) -> SetQuantity:
    quantity = request.quantity if request.HasField("quantity") else None
    version = request.version if request.HasField("version") else None
    with Fields() as check:
        return SetQuantity(
            item_id=check.identity("id", request.id),
            quantity=None if quantity is None else check.between("quantity", quantity, 0, ITEM_QUANTITY_MAX),
            version=None if version is None else check.between("version", version, 1, INT64_MAX),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def change_stock(
    request: pb.BatchChangeStockRequest, caller: Caller, traceparent: str | None
) -> tuple[ChangeStock, list[StockChange | InvalidInput]]:
    """Return the command with the valid changes, and one outcome per change: the change, or its InvalidInput.

    Raises InvalidInput if the number of changes or the request_id is invalid, or if a change is invalid and the changes
    are atomic. This refuses the whole call.
    """
    changes: list[StockChange | InvalidInput] = []
    with Fields() as check:
        most = ATOMIC_CHANGES_MAX if request.atomic else CHANGES_MAX
        if check.size("changes", request.changes, 1, most):
            for number, change in enumerate(request.changes):
                if request.atomic:
                    changes.append(_stock_change(check.at(f"changes[{number}]"), number, change))
                else:
                    changes.append(_outcome(_independent_change, number, change))
        command = ChangeStock(
            changes=tuple(change for change in changes if not isinstance(change, InvalidInput)),
            is_atomic=request.atomic,
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )
    return command, changes


def _independent_change(number: int, change: pb.StockChange) -> StockChange:
    with Fields() as check:
        return _stock_change(check, number, change)


def _stock_change(check: Fields, number: int, change: pb.StockChange) -> StockChange:
    kind, quantity, to_location = MovementKind.COUNTED, 0, None
    reason = check.text("reason", change.reason, REASON_LENGTH_MAX)
    reason_field = "reason"
    match change.WhichOneof("change"):
        case "received":
            kind, quantity = MovementKind.RECEIVED, check.between("received", change.received, 1, ITEM_QUANTITY_MAX)
        case "adjusted":
            kind, quantity = MovementKind.ADJUSTED, _difference(check, "adjusted", change.adjusted)
        case "counted":
            quantity = check.between("counted", change.counted, 0, ITEM_QUANTITY_MAX)
        case "move":
            at = check.at("move")
            kind, quantity = MovementKind.MOVED, at.between("quantity", change.move.quantity, 1, ITEM_QUANTITY_MAX)
            to_location = at.location("to_location", change.move.to_location)
        case "withheld":
            at = check.at("withheld")
            kind, quantity = MovementKind.WITHHELD, _difference(at, "quantity", change.withheld.quantity)
            if change.reason:
                check.violate("reason", "must be empty, because `withheld` has a reason of its own")
            reason, reason_field = at.location("reason", change.withheld.reason), "withheld.reason"
        case _:
            check.violate("change", "must be one of received, adjusted, counted, move and withheld")
    location = _location(check, change.location) or DEFAULT_LOCATION
    if to_location == location:
        check.violate("move.to_location", "must be another location")
    if change.release_shortfall and kind not in (MovementKind.COUNTED, MovementKind.ADJUSTED):
        check.violate("release_shortfall", "must be false, because the change is neither `counted` nor `adjusted`")
    if reason in RESERVED_REASONS:
        check.violate(reason_field, f"must not be {' or '.join(RESERVED_REASONS)}, which only the server uses")
    return StockChange(
        number=number,
        product_id=check.identity("product_id", change.product_id),
        location=location,
        kind=kind,
        quantity=quantity,
        to_location=to_location,
        version=check.between("version", change.version, 1, INT64_MAX) if change.HasField("version") else None,
        reason=reason,
        reference=check.text("reference", change.reference, REFERENCE_LENGTH_MAX),
        occurred_at=check.instant("occurred_at", change.occurred_at) if change.HasField("occurred_at") else None,
        release_shortfall=change.release_shortfall,
    )


def _difference(check: Fields, field: str, units: int) -> int:
    if not units or abs(units) > ITEM_QUANTITY_MAX:
        check.violate(field, f"must be between -{ITEM_QUANTITY_MAX} and {ITEM_QUANTITY_MAX}, and not 0")
    return units


def items_page(request: pb.ListInventoryItemsRequest, caller: Caller) -> PageRequest[ItemFilter]:
    with Fields() as check:
        product_id = request.product_id if request.HasField("product_id") else None
        filter_ = ItemFilter(
            tenant=caller.tenant,
            product_id=None if product_id is None else check.identity("product_id", product_id),
            location=_location(check, request.location),
            as_of=check.instant("as_of", request.as_of) if request.HasField("as_of") else None,
        )
        return paging.page_request(
            check,
            "items",
            filter_,
            page_size=request.page_size,
            page_token=request.page_token,
            position=(int,),
        )


def movements_page(request: pb.ListMovementsRequest, caller: Caller) -> PageRequest[MovementFilter]:
    with Fields() as check:
        filter_ = MovementFilter(
            tenant=caller.tenant,
            product_id=check.identity("product_id", request.product_id) if request.HasField("product_id") else None,
            location=_location(check, request.location),
            order_id=check.identifier("order_id", request.order_id) if request.order_id else None,
            kind=check.member("kind", request.kind, _MOVEMENT_KINDS_BY_NUMBER) if request.kind else None,
            actor=check.text("actor", request.actor, ACTOR_CHARACTERS_MAX) if request.actor else None,
            created_after=(
                check.instant("created_after", request.created_after) if request.HasField("created_after") else None
            ),
            created_before=(
                check.instant("created_before", request.created_before) if request.HasField("created_before") else None
            ),
        )
        return paging.page_request(
            check,
            "movements",
            filter_,
            page_size=request.page_size,
            page_token=request.page_token,
            position=(datetime, int),
        )


def stock_question(request: pb.CheckStockRequest, caller: Caller) -> StockQuestion:
    with Fields() as check:
        check.between("required_quantity", request.required_quantity, 1, LINE_QUANTITY_MAX)
        product_id = check.identity("product_id", request.product_id)
        return StockQuestion(StockKey(caller.tenant, product_id, _location(check, request.location)))


def availability(request: pb.BatchGetAvailabilityRequest, caller: Caller) -> AvailabilityQuestion:
    with Fields() as check:
        product_ids = request.product_ids
        seen: set[int] = set()
        for index, product_id in enumerate(
            product_ids if check.size("product_ids", product_ids, 1, AVAILABILITY_PRODUCTS_MAX) else ()
        ):
            if product_id < 1:
                check.identity(f"product_ids[{index}]", product_id)
            if product_id in seen:
                check.violate(f"product_ids[{index}]", "must not repeat an earlier product")
            seen.add(product_id)
        return AvailabilityQuestion(caller.tenant, tuple(product_ids), request.by_location)


def update_location(request: pb.UpdateLocationRequest, caller: Caller, traceparent: str | None) -> UpdateLocation:
    with Fields() as check:
        location = check.location("location", request.location)
        active = request.active if request.HasField("active") else None
        priority = request.priority if request.HasField("priority") else None
        region = request.region if request.HasField("region") else None
        labels = request.labels.labels if request.HasField("labels") else None
        if active is None and priority is None and region is None and labels is None:
            check.violate("active", "or one of priority, region and labels must be present")
        return UpdateLocation(
            location=location,
            is_active=active,
            priority=None if priority is None else check.between("priority", priority, 0, PRIORITY_MAX),
            region=None if region is None else check.text("region", region, REGION_LENGTH_MAX),
            labels=None
            if labels is None
            else checked_labels(check.at("labels"), labels, LABELS_MAX, LABEL_VALUE_LENGTH_MAX),
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def locations_page(request: pb.ListLocationsRequest, caller: Caller) -> PageRequest[LocationFilter]:
    with Fields() as check:
        return paging.page_request(
            check,
            "locations",
            LocationFilter(tenant=caller.tenant),
            page_size=request.page_size,
            page_token=request.page_token,
            position=(str,),
        )


def reserve_stock(request: pb.ReserveStockRequest, caller: Caller, traceparent: str | None) -> OrderLines:
    with Fields() as check:
        line = _line(check, request)
        return OrderLines(
            order_id=check.identifier("order_id", request.order_id),
            lines=(line,),
            ttl_seconds=_ttl(check, request.ttl) if request.HasField("ttl") else None,
            allow_partial=request.allow_partial,
            caller=caller,
            request_id=check.request_id(request.request_id),
            traceparent=traceparent,
        )


def batch(
    request: pb.BatchReserveStockRequest, caller: Caller, traceparent: str | None
) -> list[OrderLines | ShopError]:
    """Return one outcome per order, in order: a command, or the InvalidInput that refuses this order.

    Raises InvalidInput if the number of orders or lines is invalid, and PermissionMissing if an order names a tenant or
    a user but the caller may not act for others. Both refuse the whole call.
    """
    with Fields() as check:
        is_within_limit = check.size("orders", request.orders, 1, BATCH_ORDERS_MAX)
        if is_within_limit and sum(len(order.lines) for order in request.orders) > BATCH_LINES_MAX:
            check.violate("orders", f"must have at most {BATCH_LINES_MAX} lines in total")
    return [_outcome(_order_lines, order, caller, traceparent) for order in request.orders]


def _order_lines(order: pb.OrderLines, caller: Caller, traceparent: str | None) -> OrderLines:
    with Fields() as check:
        lines: list[Line] = []
        if check.size("lines", order.lines, 1, LINES_MAX):
            lines = [_line(check.at(f"lines[{index}]"), line) for index, line in enumerate(order.lines)]
        return OrderLines(
            order_id=check.identifier("order_id", order.order_id),
            lines=tuple(lines),
            ttl_seconds=_ttl(check, order.ttl) if order.HasField("ttl") else None,
            allow_partial=order.allow_partial,
            caller=_acting(check, order, caller),
            request_id=check.request_id(order.request_id),
            traceparent=check.traceparent(order.traceparent) or traceparent,
        )


def _line(check: Fields, line: pb.Line | pb.ReserveStockRequest) -> Line:
    plain = _line_at_location(check, line)
    if line.HasField("policy"):
        policy = _policy(check.at("policy"), plain.location, line.policy)
        return Line(plain.product_id, plain.quantity, policy=policy)
    return plain


def _line_at_location(check: Fields, line: pb.Line | pb.ReserveStockRequest | maintenance_pb2.AddedLine) -> Line:
    return Line(
        check.identity("product_id", line.product_id),
        check.between("quantity", line.quantity, 1, LINE_QUANTITY_MAX),
        _location(check, line.location),
    )


def _policy(check: Fields, location: str | None, policy: pb.AllocationPolicy) -> AllocationPolicy:
    """Return the policy. If the line has a location, the policy allows this location only, or none."""
    strategy = check.member("strategy", policy.strategy or pb.ALLOCATION_STRATEGY_FEWEST, _STRATEGIES_BY_NUMBER)
    if strategy is Strategy.AS_GIVEN and not policy.locations:
        check.violate("locations", "must not be empty if the strategy is AS_GIVEN")
    parsed = AllocationPolicy(
        strategy=strategy or Strategy.FEWEST,
        locations=_distinct_locations(check, "locations", policy.locations),
        excluded_locations=_distinct_locations(check, "excluded_locations", policy.excluded_locations),
        max_locations=check.between("max_locations", policy.max_locations, 0, LOCATIONS_MAX) or None,
    )
    if location is None:
        return parsed
    excluded = () if parsed.allows(location) else (location,)
    return replace(parsed, locations=(location,), excluded_locations=excluded)


def _distinct_locations(check: Fields, field: str, locations: Sequence[str]) -> tuple[str, ...]:
    if check.size(field, locations, 0, LOCATIONS_MAX):
        seen: set[str] = set()
        for index, location in enumerate(locations):
            if check.location(f"{field}[{index}]", location) in seen:
                check.violate(f"{field}[{index}]", "must not repeat an earlier location")
            seen.add(location)
    return tuple(locations)


def _acting(check: Fields, order: pb.OrderLines, caller: Caller) -> Caller:
    """Return the caller, acting for the tenant and the user that the order names, if it names any."""
    if not order.tenant and not order.subject:
        return caller
    # Report malformed names first. For well-formed names, a caller that may not act for others gets PERMISSION_DENIED.
    if order.tenant and not tenant.is_valid(order.tenant):
        check.violate("tenant", f"must be {tenant.FORM}")
        return caller
    try:
        return delegated(caller, order.tenant, order.subject)
    except DelegationInvalid as error:
        check.violate("subject", error.message)
        return caller


def release(request: pb.ReleaseStockRequest, caller: Caller, traceparent: str | None) -> ReleaseRequest:
    with Fields() as check:
        return ReleaseRequest(
            check.uuid("reservation_id", request.reservation_id),
            caller=caller,
            traceparent=check.traceparent(request.traceparent) or traceparent,
        )


def batch_release(
    request: pb.BatchReleaseStockRequest, caller: Caller, traceparent: str | None
) -> list[ReleaseRequest | ShopError]:
    return _parts(release, request.requests, caller, traceparent)


def confirm(request: pb.ConfirmReservationsRequest, caller: Caller, traceparent: str | None) -> OrderRequest:
    with Fields() as check:
        order_id = check.identifier("order_id", request.order_id)
        traceparent = check.traceparent(request.traceparent) or traceparent
        version = _order_version(check, request, caller) if request.HasField("order_version") else None
    if not request.retake:
        return OrderRequest(order_id, caller=caller, traceparent=traceparent)
    return RetakeRequest(order_id, caller=caller, traceparent=traceparent, order_version=version)


def _order_version(check: Fields, request: pb.ConfirmReservationsRequest, caller: Caller) -> int:
    # The reservations of order-api have no owner. Only its orders have versions.
    if caller.reservation_owner:
        check.violate("order_version", "must be set by order-api only")
    return check.between("order_version", request.order_version, 1, INT64_MAX)


def extend(request: pb.ExtendReservationsRequest, caller: Caller, traceparent: str | None) -> ExtendRequest:
    with Fields() as check:
        return ExtendRequest(
            check.identifier("order_id", request.order_id),
            ttl_seconds=_ttl(check, request.ttl),
            caller=caller,
            traceparent=traceparent,
        )


def batch_confirm(
    request: pb.BatchConfirmReservationsRequest, caller: Caller, traceparent: str | None
) -> list[OrderRequest | ShopError]:
    return _parts(confirm, request.requests, caller, traceparent)


def _parts(
    parse: Callable[[_Message, Caller, str | None], _Command],
    requests: Sequence[_Message],
    caller: Caller,
    traceparent: str | None,
) -> list[_Command | ShopError]:
    """Return a command, or the InvalidInput that refuses it, per request. Raises InvalidInput for their number."""
    with Fields() as check:
        check.size("requests", requests, 1, BATCH_REQUESTS_MAX)
    return [_outcome(parse, each, caller, traceparent) for each in requests]


def _outcome(
    parse: Callable[_Arguments, _Command], *arguments: _Arguments.args, **named: _Arguments.kwargs
) -> _Command | InvalidInput:
    """Return the command, or the InvalidInput that refuses this part of a batch."""
    try:
        return parse(*arguments, **named)
    except InvalidInput as error:
        return error


def reservation_key(request: pb.GetReservationRequest, caller: Caller) -> ReservationKey:
    with Fields() as check:
        return ReservationKey(caller.tenant, check.uuid("id", request.id))


def reservations_page(request: pb.ListReservationsRequest, caller: Caller) -> PageRequest[ReservationFilter]:
    with Fields() as check:
        product_id = request.product_id if request.HasField("product_id") else None
        filter_ = ReservationFilter(
            tenant=caller.tenant,
            order_id=check.identifier("order_id", request.order_id) if request.order_id else None,
            product_id=None if product_id is None else check.identity("product_id", product_id),
            state=check.member("state", request.state, _STATES_BY_NUMBER) if request.state else None,
        )
        return paging.page_request(
            check,
            "reservations",
            filter_,
            page_size=request.page_size,
            page_token=request.page_token,
            position=(UUID,),
        )


def expire(request: maintenance_pb2.ExpireReservationsRequest, caller: Caller) -> ExpireRequest:
    with Fields() as check:
        return ExpireRequest(_max_count(check, request.max_count), caller=caller)


def purge(request: maintenance_pb2.PurgeHistoryRequest, caller: Caller) -> PurgeRequest:
    with Fields() as check:
        return PurgeRequest(
            older_than_seconds=check.duration(
                "older_than", request.older_than, HISTORY_SECONDS_MIN, HISTORY_SECONDS_MAX
            ),
            max_count=_max_count(check, request.max_count),
            caller=caller,
        )


def _max_count(check: Fields, value: int) -> int:
    return check.between("max_count", value or MAINTENANCE_COUNT_DEFAULT, 1, MAINTENANCE_COUNT_MAX)


def verify(request: maintenance_pb2.VerifyStockRequest, caller: Caller) -> VerifyRequest:
    with Fields() as check:
        return VerifyRequest(
            after_item_id=check.between("after_item_id", request.after_item_id, 0, INT64_MAX),
            max_count=_max_count(check, request.max_count),
            repair=request.repair,
            caller=caller,
        )


def reserved_orders(request: maintenance_pb2.ListReservedOrdersRequest) -> PageRequest[None]:
    with Fields() as check:
        return paging.page_request(
            check,
            "reserved orders",
            None,
            page_size=request.page_size,
            page_token=request.page_token,
            position=(str, str),
        )


def settle(request: maintenance_pb2.SettleOrdersRequest, caller: Caller, traceparent: str | None) -> SettleRequest:
    orders: dict[int, list[SettledOrder]] = {_CANCELLED: [], _SHIPPED: []}
    seen: set[tuple[str, str]] = set()
    with Fields() as check:
        if not check.size("orders", request.orders, 1, SETTLED_ORDERS_MAX):
            return SettleRequest((), ())
        for number, order in enumerate(request.orders):
            at = check.at(f"orders[{number}]")
            if not tenant.is_valid(order.tenant):
                at.violate("tenant", f"must be {tenant.FORM}")
            of_status = at.member("status", order.status, orders)
            order_id = at.identifier("order_id", order.order_id)
            if (order.tenant, order_id) in seen:
                at.violate("order_id", "must not be of an order that the request already has")
            seen.add((order.tenant, order_id))
            version = at.between("version", order.version, 1, INT64_MAX) if order.HasField("version") else None
            if of_status is not None:
                # order-api has reserved the stock. Its reservations have no owner, and neither has a delegate.
                acting = replace(caller, tenant=order.tenant)
                of_status.append(SettledOrder(order_id, caller=acting, traceparent=traceparent, version=version))
    return SettleRequest(tuple(orders[_CANCELLED]), tuple(orders[_SHIPPED]))


def additions(request: maintenance_pb2.ReserveAdditionsRequest, caller: Caller, traceparent: str | None) -> AddRequest:
    with Fields() as check:
        if not tenant.is_valid(request.tenant):
            check.violate("tenant", f"must be {tenant.FORM}")
        lines: list[Line] = []
        for number, line in enumerate(request.lines if check.size("lines", request.lines, 1, LINES_MAX) else ()):
            lines.append(_line_at_location(check.at(f"lines[{number}]"), line))
        ordered: dict[int, int] = {}
        for number, units in enumerate(request.ordered if check.size("ordered", request.ordered, 1, LINES_MAX) else ()):
            at = check.at(f"ordered[{number}]")
            product_id = at.identity("product_id", units.product_id)
            if product_id in ordered:
                at.violate("product_id", "must not occur twice")
            ordered[product_id] = at.between("quantity", units.quantity, 1, LINES_MAX * LINE_QUANTITY_MAX)
        return AddRequest(
            check.identifier("order_id", request.order_id),
            version=check.between("version", request.version, 1, INT64_MAX),
            change_id=check.uuid("change_id", request.change_id),
            is_confirmed=request.confirmed,
            lines=tuple(lines),
            ordered=ordered,
            # order-api has reserved the stock. Its reservations have no owner, and neither has a delegate.
            caller=replace(caller, tenant=request.tenant),
            traceparent=traceparent,
        )


def _ttl(check: Fields, ttl: Duration) -> float:
    return check.duration("ttl", ttl, TTL_SECONDS_MIN, TTL_SECONDS_MAX)


def _location(check: Fields, location: str) -> str | None:
    """Return the location, or None if the field is empty."""
    return check.location("location", location) if location else None
