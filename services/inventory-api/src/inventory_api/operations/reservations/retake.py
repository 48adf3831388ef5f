"""Confirms an order and reserves the units of its expired reservations again, for ConfirmReservations with `retake`.

Product, quantity and allocations of a reservation never change, and an expired one never becomes active again. So a new
reservation with a derived id takes the place of the expired one, which becomes REPLACED. A confirmation ignores
REPLACED reservations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid5

from sqlalchemy import Connection

from inventory_api.domain import events, transitions
from inventory_api.domain.commands import OrderLines, RetakeRequest
from inventory_api.domain.errors import ReservationNotFound, ReservationReleased, ReservationsLimit
from inventory_api.domain.model import (
    ACTIVE,
    ORDER_RESERVATIONS_MAX,
    Allocation,
    AllocationPolicy,
    Item,
    Line,
    OrderSize,
    ProductKey,
    Reservation,
    ReservationKey,
    State,
)
from inventory_api.domain.order_targets import Totals, cut
from inventory_api.operations.reservations.reserve import decide_with_due, insert_reserved
from inventory_api.operations.reservations.state_changes import change_states
from inventory_api.store import items, order_effects, tables
from inventory_api.store.order_effects import OrderEffects
from inventory_api.store.reservations import by_order, changes, locks
from inventory_api.store.reservations.by_order import UNRELEASED_STATES
from inventory_api.store.reservations.locks import Locked
from shop_common.api.command import Cause
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError

_STATES = (*UNRELEASED_STATES, State.EXPIRED)


def retake(
    tx: Connection, requests: Sequence[RetakeRequest], *, default_ttl_seconds: float
) -> list[list[Reservation] | ShopError]:
    """Confirm an order, and reserve the units of its expired reservations again, at the same locations, or do neither.

    Takes one request per transaction: two orders could lock their items in different sequences. Returns its outcome in
    a list: the confirmed and fulfilled reservations, or the error that refused the order. The errors are those of
    `confirm` without ReservationExpired, plus InsufficientStock, LocationsLimit and Contention. Due reservations become
    EXPIRED although the order is refused.

    May be repeated: for a confirmed order it returns the same reservations and changes nothing. Emits one event per
    state change, and STOCK_RESERVED per reservation that is made.
    """
    (request,) = requests
    return [_retake(tx, request, default_ttl_seconds)]


def _retake(tx: Connection, request: RetakeRequest, default_ttl_seconds: float) -> list[Reservation] | ShopError:
    key, version = request.order_key, request.order_version
    effects = None
    if version is not None:
        # Lock the effects before items and reservations, as the handlers of events do.
        effects = order_effects.lock(tx, [key], now(tx))[key]
        if effects.applied_version > version:
            return Contention(f"a change of order {request.order_id} after version {version} was applied; try again")
    products = {ProductKey(key.tenant, each.product_id) for each in _summaries(tx, request)}
    stock = {item.id: item for item in items.lock_products(tx, products)}
    # Read the reservations again: those of the locked products cannot change any more.
    present = [each for each in _summaries(tx, request) if ProductKey(key.tenant, each.product_id) in products]
    if not present:
        return _nothing_left(tx, request)
    if len(present) > ORDER_RESERVATIONS_MAX:
        return ReservationsLimit(request.order_id, len(present), sum(each.allocations for each in present))
    locked = locks.lock(tx, (ReservationKey(key.tenant, each.id) for each in present))
    cause = request.cause._replace(order_version=version)
    due = transitions.expire(locked.reservations.values(), locked.now)
    change_states(tx, locked, due, dict.fromkeys(due, cause))
    stock.update(locked.items)
    expired = [each for each in locked.reservations.values() if each.state is State.EXPIRED]
    if expired:
        allocations = _allocate(tx, request, locked, expired, stock)
        if isinstance(allocations, ShopError):
            return allocations
        _replace(tx, locked, expired, allocations, stock, cause, default_ttl_seconds)
    held = {each.id: State.CONFIRMED for each in locked.reservations.values() if each.state is State.HELD}
    change_states(tx, locked, held, dict.fromkeys(held, cause))
    unreleased = [each for each in locked.reservations.values() if each.state in UNRELEASED_STATES]
    if effects is not None and version is not None:
        # The totals have the units of all reservations, also of those that were added for changes.
        later = tuple(each for each in effects.additions if each.version > version)
        applied = OrderEffects(version, {**effects.totals, **_totals(unreleased, effects.totals)}, later)
        order_effects.save(tx, {key: applied}, locked.now)
    return sorted(unreleased, key=lambda each: each.id)


def _summaries(tx: Connection, request: RetakeRequest) -> list[by_order.ReservationSummary]:
    return by_order.summaries(tx, [request.order_key], _STATES, ORDER_RESERVATIONS_MAX + 1)


def _nothing_left(tx: Connection, request: RetakeRequest) -> ShopError:
    has_released = by_order.have_any(tx, [request.order_key], (State.RELEASED,))
    return ReservationReleased(request.order_id) if has_released else ReservationNotFound(order_id=request.order_id)


def _allocate(
    tx: Connection, request: RetakeRequest, locked: Locked, expired: Sequence[Reservation], stock: dict[int, Item]
) -> Mapping[int, Sequence[Allocation]] | ShopError:
    """Return the allocations of each product, or the refusal. Expires due reservations of other orders if necessary.

    The units come from the locations of the expired reservations. Other locations may be excluded by the location or
    the policy of the lines, which are not stored.
    """
    lines = tuple(
        Line(
            each.product_id,
            each.quantity,
            policy=AllocationPolicy(locations=tuple(part.location for part in each.allocations)),
        )
        for each in expired
    )
    active = [each for each in locked.reservations.values() if each.state in ACTIVE]
    size = OrderSize(len(active), sum(len(each.allocations) for each in active))
    order = OrderLines(request.order_id, lines, caller=request.caller)
    (decision,), _ = decide_with_due(tx, [order], stock, {request.order_key: size})
    return decision


def _replace(
    tx: Connection,
    locked: Locked,
    expired: Sequence[Reservation],
    allocations: Mapping[int, Sequence[Allocation]],
    stock: Mapping[int, Item],
    cause: Cause,
    ttl_seconds: float,
) -> None:
    """Insert a held reservation for each expired one, end the expired one as REPLACED, and update `locked`.

    The held reservations are confirmed later in the same transaction.
    """
    timestamp = now(tx)  # due reservations may have expired in between, and freed units have an earlier timestamp
    successors: dict[str, Reservation] = {}
    for product_id, parts in allocations.items():
        of_product = [each for each in expired if each.product_id == product_id]
        for each, part in zip(of_product, cut(parts, [each.quantity for each in of_product]), strict=True):
            successors[each.id] = replace(
                each,
                id=str(uuid5(UUID(each.id), "retaken")),
                state=State.HELD,
                created_at=timestamp,
                expires_at=timestamp + timedelta(seconds=ttl_seconds),
                allocations=part,
            )
    replaced = [replace(each, state=State.REPLACED) for each in expired]
    insert_reserved(tx, list(successors.values()), stock, timestamp)
    changes.save_states(tx, replaced, timestamp)
    messages = []
    for each in expired:
        successor = successors[each.id]
        messages.append(events.stock_reservation_changed(each, (successor,), timestamp, cause))
        messages.append(events.stock_reserved(successor, timestamp, cause))
    tables.outbox.append(tx, messages)
    locked.reservations.update((each.id, each) for each in [*replaced, *successors.values()])


def _totals(reservations: Sequence[Reservation], applied: Mapping[int, Totals]) -> dict[int, Totals]:
    """Return the totals that the order has reached. The units that an earlier version cancelled are kept again.

    Restocked units stay in the totals, or the next event of the order would restock them again.
    """
    totals: dict[int, Totals] = {}
    for each in reservations:
        restocked = applied[each.product_id].restocked if each.product_id in applied else ()
        before = totals.get(each.product_id, Totals(0, 0, restocked))
        shipped = each.quantity if each.state is State.FULFILLED else 0
        totals[each.product_id] = before._replace(kept=before.kept + each.quantity, shipped=before.shipped + shipped)
    return totals
