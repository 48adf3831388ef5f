"""Handles order events. A repeated delivery is safe.

Events have cumulative targets and a version, which are compared with what was applied before. For events without
targets, which the previous version emits, the handlers check the state of each reservation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Connection

from inventory_api.domain.commands import OrderRequest
from inventory_api.domain.movements import RESERVED_REASONS
from inventory_api.domain.order_targets import OrderTargets, Place, Totals
from inventory_api.operations.reservations.fulfil import fulfil_orders
from inventory_api.operations.reservations.reach_targets import reach_targets
from inventory_api.operations.reservations.release import release_orders
from inventory_api.store.reservations import by_order
from shop_common.api.valid import LOCATION_PATTERN
from shop_common.db.audit import AuditLog
from shop_common.events.consumer import Event, Handler
from shop_common.identity.caller import ANYONE
from shop_common.telemetry import logs, metrics

TOPIC = "order-events"
GROUP = "inventory-api"

_log = logs.get(__name__)

_short_fulfilments = metrics.counter(
    __name__,
    "shop_short_fulfilments_total",
    "Orders that were shipped with fewer fulfilled units than ordered",
)


def handlers(audit_log: AuditLog | None = None) -> Mapping[str, Handler]:
    """Return the handlers of this service by event type. With `audit_log`, changes are recorded there."""
    return {
        "ORDER_CANCELLED": partial(release, audit_log=audit_log),
        "ORDER_SHIPPED": partial(fulfil, audit_log=audit_log),
        "ORDER_PARTIALLY_SHIPPED": partial(_reach, event_type="ORDER_PARTIALLY_SHIPPED", audit_log=audit_log),
        "ORDER_RETURNED": partial(_reach, event_type="ORDER_RETURNED", audit_log=audit_log),
        "ORDER_CHANGED": partial(_reach, event_type="ORDER_CHANGED", audit_log=audit_log),
        "ORDER_ITEMS_CANCELLED": partial(_reach, event_type="ORDER_ITEMS_CANCELLED", audit_log=audit_log),
    }


def weigh(event: Event) -> int:
    """Return the weight of an event: one plus the number of order lines. Each line may have a reservation."""
    return 1 + len(event.data["items"])


def release(tx: Connection, events: Sequence[Event], *, audit_log: AuditLog | None = None) -> bool:
    """Release reservations of cancelled orders, one turn per call. Returns True if another turn may be needed."""
    with_targets, without = _by_targets(events)
    if without and release_orders(tx, [_order(event) for event in without], audit_log):
        return True
    return _reach(tx, with_targets, event_type="ORDER_CANCELLED", audit_log=audit_log)


def fulfil(tx: Connection, events: Sequence[Event], *, audit_log: AuditLog | None = None) -> bool:
    """Take units of shipped orders out of the stock, one turn per call. Returns True if another turn may be needed."""
    with_targets, without = _by_targets(events)
    if without and _fulfil_whole(tx, without, audit_log):
        return True
    return _reach(tx, with_targets, event_type="ORDER_SHIPPED", audit_log=audit_log)


def _by_targets(events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """Return the events with targets and those without. A process of the previous version emits the latter."""
    with_targets = [event for event in events if "targets" in event.data]
    return with_targets, [event for event in events if "targets" not in event.data]


def _reach(tx: Connection, events: Sequence[Event], *, event_type: str, audit_log: AuditLog | None) -> bool:
    """Restock, ship and release units of orders, one turn per call. Returns True if another turn may be needed."""
    orders = [_targets(event) for event in events]
    reached = reach_targets(tx, orders, event_type, audit_log)
    # A return may come after the reservations were purged. If the order was shipped by a process without targets, its
    # units then seem to be missing, although they were fulfilled.
    for order, missing in reached.missing.items() if event_type != "ORDER_RETURNED" else ():
        _report_missing(order.order_id, missing)
    for order, errors in reached.not_restocked.items():
        # The goods are at the location, but the stock does not have their units. An operator must add them.
        _log.error(
            "returned units were not added to the stock",
            order_id=order.order_id,
            errors=[error.message for error in errors],
        )
    return reached.has_more


def _fulfil_whole(tx: Connection, events: Sequence[Event], audit_log: AuditLog | None) -> bool:
    orders = [_order(event) for event in events]
    if fulfil_orders(tx, orders, audit_log):
        return True
    # These units include the ones that earlier turns fulfilled.
    fulfilled = by_order.fulfilled_units(tx, (order.order_key for order in orders))
    for event, order in zip(events, orders, strict=True):
        _report_missing(order.order_id, _missing(event.data, fulfilled[order.order_key]))
    return False


def _report_missing(order_id: str, missing: Mapping[int, int]) -> None:
    if missing:
        # The goods were shipped, but the stock still has their units. An operator must correct the quantity.
        _short_fulfilments().inc()
        _log.error("an order was shipped with less stock than its lines", order_id=order_id, missing=dict(missing))


def _targets(event: Event) -> OrderTargets:
    order, version = _order(event), event.data["version"]
    targets = {
        each["product_id"]: Totals(each["kept"], each["shipped"], _restocked(each.get("returned", ())))
        for each in event.data["targets"]
    }
    ordered = _ordered(event.data)
    numbers = [version, *targets]
    for target in targets.values():
        numbers += [target.kept, target.shipped, *(units for _, units in target.restocked)]
    if not all(isinstance(number, int) for number in numbers) or not all(
        0 <= sum(units for _, units in target.restocked) <= target.shipped <= target.kept <= ordered.get(product, 0)
        for product, target in targets.items()
    ):
        raise ValueError("the targets of the order are not possible")
    return OrderTargets(
        order.order_id,
        caller=order.caller,
        request_id=order.request_id,
        traceparent=order.traceparent,
        version=version,
        ordered=ordered,
        targets=targets,
    )


def _restocked(returned: Iterable[Mapping[str, Any]]) -> tuple[tuple[Place, int], ...]:
    """Return the units to add to the stock of each place. Discarded units have no effect on the stock."""
    restocked: dict[Place, int] = {}
    for each in returned:
        if each["treatment"] == "DISCARD":
            continue
        place, units = Place(each["location"], each.get("withholding_reason", "")), each["quantity"]
        if not _is_possible(each["treatment"], place) or units < 1:
            raise ValueError("the returned units of the order are not possible")
        restocked[place] = units
    return tuple(restocked.items())


def _is_possible(treatment: str, place: Place) -> bool:
    if not LOCATION_PATTERN.match(place.location):
        return False
    if treatment == "WITHHOLD":
        reason = place.withholding_reason
        return LOCATION_PATTERN.match(reason) is not None and reason not in RESERVED_REASONS
    return treatment == "RESTOCK" and not place.withholding_reason


def _order(event: Event) -> OrderRequest:
    # The events concern reservations of order-api, which have no owner. ANYONE has none either. The events that follow
    # from this event have its actor.
    caller = replace(ANYONE, tenant=event.tenant, name=event.actor or ANYONE.name)
    return OrderRequest(str(event.data["id"]), caller=caller, request_id=event.event_id, traceparent=event.traceparent)


def _missing(order: Mapping[str, Any], fulfilled: Mapping[int, int]) -> dict[int, int]:
    return {
        product: units - fulfilled.get(product, 0)
        for product, units in _ordered(order).items()
        if units > fulfilled.get(product, 0)
    }


def _ordered(order: Mapping[str, Any]) -> dict[int, int]:
    ordered: dict[int, int] = {}
    for line in order["items"]:
        ordered[line["product_id"]] = ordered.get(line["product_id"], 0) + line["quantity"]
    return ordered
