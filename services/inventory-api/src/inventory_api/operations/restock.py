"""Adds the returned units of orders to the stock, for the events of orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from inventory_api.domain import order_targets
from inventory_api.domain.model import OrderKey, StockKey
from inventory_api.domain.movements import MovementKind
from inventory_api.domain.order_targets import OrderTargets, Totals
from inventory_api.operations.items.add_stock import Addition, add_units
from inventory_api.store.order_effects import OrderEffects
from shop_common.db.audit import AuditLog, event_entry
from shop_common.errors import ShopError

TURN_ITEMS = 500
"""The most items to which one turn adds units."""


@dataclass(frozen=True, slots=True)
class Restocked:
    """The effects that a turn has reached, by order, and the errors of units that could not be added."""

    reached: dict[OrderKey, OrderEffects]
    errors: dict[OrderKey, list[ShopError]]


def restock(
    tx: Connection,
    orders: Sequence[OrderTargets],
    effects: Mapping[OrderKey, OrderEffects],
    totals: Mapping[OrderKey, Mapping[int, Totals]],
    event_type: str,
    audit_log: AuditLog | None = None,
) -> Restocked:
    """Add returned units of orders to the stock, to as many items as one turn may change.

    `effects` are the locked effects of the orders, and `totals` the totals that follow from them, of each product. The
    caller saves the result. It is empty if no units are left to add. Units whose item or product has reached its limit
    count as restocked too, because a repeat would fail in the same way. Units with a reason of a withholding are
    withheld.

    Emits STOCK_UPDATED and STOCK_MOVED per product and place. With `audit_log`, writes a row there per order.
    """
    missing = [
        (order, product, place, units)
        for order in orders
        for (product, place), units in order_targets.to_restock(order, totals[order.order_key]).items()
    ][:TURN_ITEMS]
    if not missing:
        return Restocked({}, {})
    outcomes = add_units(
        tx,
        [
            Addition(
                StockKey(order.tenant, product, place.location),
                units,
                MovementKind.RETURNED,
                order.cause._replace(order_version=order.version),
                order.order_id,
                place.withholding_reason,
            )
            for order, product, place, units in missing
        ],
    )
    reached: dict[OrderKey, OrderEffects] = {}
    errors: dict[OrderKey, list[ShopError]] = {}
    changed: dict[OrderKey, list[str]] = {}
    for (order, product, place, units), outcome in zip(missing, outcomes, strict=True):
        key = order.order_key
        before = reached.get(key, effects[key])
        of_product = before.totals.get(product, totals[key][product]).plus_restocked(place, units)
        reached[key] = replace(before, totals={**before.totals, product: of_product})
        if isinstance(outcome, ShopError):
            errors.setdefault(key, []).append(outcome)
        else:
            changed.setdefault(key, []).append(str(outcome.id))
    if audit_log is not None:
        event_ids = {order.order_key: order.request_id or "" for order in orders}
        audit_log.append(
            tx, [event_entry(event_type, key.tenant, event_ids[key], items) for key, items in changed.items()]
        )
    return Restocked(reached, errors)
