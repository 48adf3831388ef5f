"""Restocks, ships and releases units until the stock has reached the targets of orders, for the events of orders.

Works in turns: each turn is one transaction, which changes a bounded number of items or reservations and stores the
totals that it has reached. So a turn that is repeated after a crash continues where the last committed turn ended.

A turn that restocks changes no reservation: the items of a transaction must be locked together, before reservations. A
turn that decides about the additions of an order does nothing else, for the same reason.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from inventory_api.domain import order_targets
from inventory_api.domain.model import ACTIVE, ORDER_RESERVATIONS_MAX, OrderKey, ReservationKey, State
from inventory_api.domain.order_targets import Decision, OrderTargets, Totals
from inventory_api.operations.reservations.absorb_additions import absorb_additions, undecided
from inventory_api.operations.reservations.state_changes import change_states, replace_by_parts
from inventory_api.operations.reservations.turns import TURN_ALLOCATIONS, TURN_RESERVATIONS, Turn
from inventory_api.operations.restock import restock
from inventory_api.store import order_effects
from inventory_api.store.order_effects import OrderEffects
from inventory_api.store.reservations import by_order, locks
from inventory_api.store.reservations.by_order import ReservationSummary
from shop_common.api.command import Cause
from shop_common.batching.coalescers import Sizes
from shop_common.batching.turns import slices
from shop_common.db.audit import AuditLog
from shop_common.db.sql import now
from shop_common.errors import ShopError

_SIZES = Sizes[OrderTargets](key=lambda order: order.order_key, read=by_order.count_active)


@dataclass(frozen=True, slots=True)
class Reached:
    """The result of a turn: whether there is more to do, and what could not be done.

    `missing` are the units that orders shipped but that were not reserved, by order and product. Only orders that
    reached their targets in this turn are in it. `not_restocked` are the errors of returned units that the stock cannot
    take.
    """

    has_more: bool
    missing: dict[OrderKey, dict[int, int]]
    not_restocked: dict[OrderKey, list[ShopError]] = field(default_factory=dict)


def reach_targets(
    tx: Connection, orders: Sequence[OrderTargets], event_type: str, audit_log: AuditLog | None = None
) -> Reached:
    """Restock, ship and release units of orders, as many as one turn may change.

    Ignores a version that is not above the applied one. May be repeated. If `has_more`, the caller calls this function
    again in another transaction. Emits STOCK_RESERVATION_CHANGED per reservation that is split, one event per state
    change, and STOCK_UPDATED and STOCK_MOVED per item whose quantity changes.

    With `audit_log`, writes a row there per order whose items or reservations it changed.
    """
    waiting = _above_applied_version(orders, order_effects.applied_versions(tx, (each.order_key for each in orders)))
    if not waiting:
        return Reached(False, {})
    turn = _SIZES.prefix_within(tx, waiting[:TURN_RESERVATIONS], TURN_RESERVATIONS)
    # Lock the effects before the reservations are read: another process may be applying the same versions.
    effects = order_effects.lock(tx, (each.order_key for each in turn), now(tx))
    applying = _above_applied_version(turn, {key: each.applied_version for key, each in effects.items()})
    if not applying:
        return Reached(len(turn) < len(waiting), {})
    return _apply(tx, applying, effects, event_type, audit_log, has_more=len(turn) < len(waiting))


def _above_applied_version(orders: Sequence[OrderTargets], applied: Mapping[OrderKey, int]) -> list[OrderTargets]:
    """Return the newest targets of each order whose version is above the applied one."""
    newest: dict[OrderKey, OrderTargets] = {}
    for order in orders:
        known = newest.get(order.order_key)
        is_newer = known is None or order.version > known.version
        if is_newer and order.version > applied.get(order.order_key, 0):
            newest[order.order_key] = order
    return list(newest.values())


def _apply(
    tx: Connection,
    orders: Sequence[OrderTargets],
    effects: Mapping[OrderKey, OrderEffects],
    event_type: str,
    audit_log: AuditLog | None,
    *,
    has_more: bool,
) -> Reached:
    for order in orders:
        if absorb_additions(tx, order, effects[order.order_key], event_type, audit_log):
            return Reached(True, {})  # the other orders in later turns: the items of a turn are locked together
    keys = [order.order_key for order in orders]
    fulfilled = by_order.fulfilled_units(tx, keys)
    totals = {
        order.order_key: order_targets.starting_totals(
            order, effects[order.order_key].totals, fulfilled[order.order_key]
        )
        for order in orders
    }
    restocked = restock(tx, orders, effects, totals, event_type, audit_log)
    if restocked.reached:
        order_effects.save(tx, restocked.reached, now(tx))
        return Reached(True, {}, restocked.errors)
    chosen = _choose(tx, orders, totals, undecided(effects))
    (turn, *later) = [
        *slices(chosen, lambda each: each.allocations, TURN_ALLOCATIONS, count_max=TURN_RESERVATIONS)
    ] or [()]
    unfinished = {each.order for of_later in later for each in of_later}
    locked = locks.lock(tx, (ReservationKey(each.order.tenant, each.id) for each in turn))
    reached: dict[OrderKey, OrderEffects] = {}
    missing: dict[OrderKey, dict[int, int]] = {}
    causes: dict[str, Cause] = {}
    decisions: list[Decision] = []
    for order in orders:
        key = order.order_key
        reservations = [
            locked.reservations[each.id] for each in turn if each.order == key and each.id in locked.reservations
        ]
        decision = order_targets.decide(order, totals[key], reservations, locked.now)
        decisions.append(decision)
        cause = order.cause._replace(order_version=order.version)
        causes.update((each.id, cause) for each in reservations)
        causes.update((part.id, cause) for split in decision.splits for part in split.parts)
        if key in unfinished:
            reached[key] = replace(effects[key], totals={**effects[key].totals, **decision.applied})
        else:
            # The totals are the targets now, even if some units were not reserved: later turns must not look for them
            # again. This version may lack products that were added for a later version.
            final = {**effects[key].totals, **order_targets.final_totals(order, totals[key])}  # failpoint: totals
            reached[key] = OrderEffects(order.version, final, effects[key].additions)
            missing[key] = {
                product: left.to_ship
                for product, left in order_targets.remaining(order, decision.applied).items()
                if left.to_ship
            }
    changes = {each: state for decision in decisions for each, state in decision.changes.items()}
    replace_by_parts(tx, locked, [split for decision in decisions for split in decision.splits], causes)
    change_states(tx, locked, changes, causes)
    order_effects.save(tx, reached, locked.now)
    event_ids = {order.order_key: order.request_id or "" for order in orders}
    Turn(locked, causes, event_ids, has_more=has_more).record(tx, audit_log, event_type, changes)
    return Reached(has_more or bool(unfinished), missing)


def _choose(
    tx: Connection,
    orders: Sequence[OrderTargets],
    totals: Mapping[OrderKey, Mapping[int, Totals]],
    excluded: Set[str],
) -> list[ReservationSummary]:
    """Return the active reservations with units to ship or to release, confirmed ones first.

    The turn changes each of them, so every turn makes progress. An order that an old version made may have more
    reservations than this function reads. The rest do not change. `excluded` are the ids of reservations that these
    versions do not concern.
    """
    by_key = {order.order_key: order for order in orders}
    still = {key: order_targets.remaining(order, totals[key]) for key, order in by_key.items()}
    found = by_order.summaries(tx, by_key, ACTIVE, 2 * ORDER_RESERVATIONS_MAX)
    chosen = [
        each
        for each in found
        if each.id not in excluded
        and (
            by_key[each.order].is_final
            or (each.product_id in still[each.order] and still[each.order][each.product_id].can_use(each.state))
        )
    ]
    return sorted(chosen, key=lambda each: each.state is State.HELD)
