"""Keeps or releases the reservations that were added for changes of orders, when an event shows the outcome.

The first event with the version of the change or a later one shows whether order-api stored the change: if so, the
targets of the event have the added units. Added units that the targets do not have are released. The other added units
count as kept from then on.
"""

from collections.abc import Mapping

from sqlalchemy import Connection

from inventory_api.domain import order_targets
from inventory_api.domain.model import ACTIVE, OrderKey, ReservationKey
from inventory_api.domain.order_targets import OrderTargets
from inventory_api.operations.reservations.state_changes import change_states, replace_by_parts
from inventory_api.operations.reservations.turns import Turn
from inventory_api.store import order_effects
from inventory_api.store.order_effects import OrderEffects
from inventory_api.store.reservations import by_order, locks
from shop_common.db.audit import AuditLog


def absorb_additions(
    tx: Connection,
    order: OrderTargets,
    effects: OrderEffects,
    event_type: str,
    audit_log: AuditLog | None = None,
) -> bool:
    """Decide about the additions whose outcome this version shows. Returns whether there were any.

    `effects` are the locked effects of the order. Emits STOCK_RESERVATION_CHANGED per reservation that is split, and
    STOCK_RELEASED per released one. With `audit_log`, writes a row there if it released any.
    """
    decided = [each for each in effects.additions if each.version <= order.version]
    if not decided:
        return False
    key = order.order_key
    ids = [each for addition in decided for each in addition.reservation_ids]
    locked = locks.lock(tx, (ReservationKey(key.tenant, each) for each in ids))
    added = [each for each in locked.reservations.values() if each.state in ACTIVE and not each.is_due(locked.now)]
    totals = order_targets.with_fulfilled(effects.totals, by_order.fulfilled_units(tx, [key])[key])
    decision = order_targets.decide_additions(order, totals, added, locked.now)
    cause = order.cause._replace(order_version=order.version)
    causes = dict.fromkeys(
        [*locked.reservations, *(part.id for split in decision.splits for part in split.parts)], cause
    )
    replace_by_parts(tx, locked, decision.splits, causes)
    change_states(tx, locked, decision.changes, causes)
    # From now on, an event with a lower version must not be applied: its targets do not have the added units.
    absorbed = OrderEffects(
        max(effects.applied_version, order.version - 1),
        decision.applied,
        tuple(each for each in effects.additions if each.version > order.version),
    )
    order_effects.save(tx, {key: absorbed}, locked.now)
    Turn(locked, causes, {key: order.request_id or ""}, has_more=True).record(
        tx, audit_log, event_type, decision.changes
    )
    return True


def undecided(orders: Mapping[OrderKey, OrderEffects]) -> set[str]:
    """Return the ids of the added reservations whose outcome no applied event has shown."""
    return {each for effects in orders.values() for addition in effects.additions for each in addition.reservation_ids}
