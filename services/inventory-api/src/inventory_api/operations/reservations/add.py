"""Reserves more units for an order that order-api is about to change, for ReserveAdditions.

Nobody knows yet whether the order will be changed. So the reservations are recorded in the effects of the order, with
the version that the change would give it. The first event with this version or a later one decides: see
absorb_additions.py. Events with lower versions leave the reservations alone.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection
from uuid_utils import uuid7

from inventory_api.domain import events
from inventory_api.domain.commands import AddRequest, OrderLines
from inventory_api.domain.errors import ReservationExpired, ReservationNotFound, ReservationReleased
from inventory_api.domain.model import (
    ACTIVE,
    ORDER_RESERVATIONS_MAX,
    OrderSize,
    ProductKey,
    Reservation,
    ReservationKey,
    State,
)
from inventory_api.domain.order_targets import Addition, Totals
from inventory_api.operations.reservations.reserve import decide_with_due, insert_reserved
from inventory_api.operations.reservations.state_changes import change_states
from inventory_api.store import items, order_effects, tables
from inventory_api.store.order_effects import OrderEffects
from inventory_api.store.reservations import by_order, locks, rows
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError


def add(
    tx: Connection, requests: Sequence[AddRequest], *, default_ttl_seconds: float
) -> list[list[Reservation] | ShopError]:
    """Reserve all lines of the request, or none, with one reservation per product.

    Takes one request per transaction: two orders could lock their items in different sequences. Returns its outcome in
    a list: the reservations, or the error that refused the order. The errors are InsufficientStock, LocationsLimit,
    ReservationsLimit, ReservationExpired, ReservationReleased, ReservationNotFound and Contention.

    May be repeated: it then returns the reservations of the first call, if they are still active. Emits STOCK_RESERVED
    per reservation, STOCK_RESERVATION_CONFIRMED per confirmed one, and STOCK_RESERVATION_EXPIRED per due reservation
    that had to be expired.
    """
    (request,) = requests
    return [_add(tx, request, default_ttl_seconds)]


def _add(tx: Connection, request: AddRequest, default_ttl_seconds: float) -> list[Reservation] | ShopError:
    key = request.order_key
    # Lock the effects before items and reservations, as the handlers of events do.
    effects = order_effects.lock(tx, [key], now(tx))[key]
    if effects.applied_version >= request.version:
        return Contention(
            f"version {request.version} of order {key.order_id} or a later one was applied; read it again"
        )
    for addition in effects.additions:
        if addition.version == request.version:
            if addition.change_id != request.change_id:
                return Contention(f"another change of order {key.order_id} has reserved stock; try again")
            return _repeated(tx, request, addition)
    return _reserve(tx, request, effects, default_ttl_seconds)


def _repeated(tx: Connection, request: AddRequest, addition: Addition) -> list[Reservation] | ShopError:
    timestamp = now(tx)
    stored = rows.load(tx, (ReservationKey(request.tenant, each) for each in addition.reservation_ids))
    active = [each for each in stored if each.as_of(timestamp).state in ACTIVE]
    if len(active) == len(addition.reservation_ids):
        return active
    has_released = any(each.state is State.RELEASED for each in stored)
    return ReservationReleased(request.order_id) if has_released else ReservationExpired(request.order_id)


def _reserve(
    tx: Connection, request: AddRequest, effects: OrderEffects, default_ttl_seconds: float
) -> list[Reservation] | ShopError:
    key = request.order_key
    present = by_order.summaries(tx, [key], ACTIVE, ORDER_RESERVATIONS_MAX + 1)
    products = {each.product_id for each in present} | {line.product_id for line in request.lines}
    stock = {item.id: item for item in items.lock_products(tx, {ProductKey(key.tenant, each) for each in products})}
    # Read the reservations again: those of the locked products cannot change any more.
    present = [
        each
        for each in by_order.summaries(tx, [key], ACTIVE, ORDER_RESERVATIONS_MAX + 1)
        if each.product_id in products
    ]
    locked = locks.lock(tx, (ReservationKey(key.tenant, each.id) for each in present))
    stock.update(locked.items)
    active = [each for each in locked.reservations.values() if each.state in ACTIVE]
    expires_at = _expiry(tx, request, active, locked.now)
    if isinstance(expires_at, ShopError):
        return expires_at
    size = OrderSize(len(active), sum(len(each.allocations) for each in active))
    lines = OrderLines(request.order_id, request.lines, caller=request.caller)
    (decision,), _ = decide_with_due(tx, [lines], stock, {key: size})
    if isinstance(decision, ShopError):
        return decision
    timestamp = now(tx)  # due reservations may have expired in between, and freed units have an earlier timestamp
    added = [
        Reservation(
            tenant=key.tenant,
            owner=key.owner,
            id=str(uuid7()),
            product_id=product_id,
            quantity=sum(allocation.quantity for allocation in allocations),
            order_id=key.order_id,
            state=State.HELD,
            created_at=timestamp,
            expires_at=expires_at or timestamp + timedelta(seconds=default_ttl_seconds),
            allocations=allocations,
        )
        for product_id, allocations in decision.items()
    ]
    insert_reserved(tx, added, stock, timestamp)
    addition = Addition(request.version, request.change_id, tuple(each.id for each in added))
    order_effects.save(
        tx,
        {
            key: OrderEffects(
                effects.applied_version, _starting_totals(request, effects), (*effects.additions, addition)
            )
        },
        timestamp,
    )
    cause = request.cause._replace(order_version=request.version)
    tables.outbox.append(tx, [events.stock_reserved(each, timestamp, cause) for each in added])
    if expires_at is not None:
        return added
    locked.reservations.update((each.id, each) for each in added)
    ids = [each.id for each in added]
    change_states(tx, locked, dict.fromkeys(ids, State.CONFIRMED), dict.fromkeys(ids, cause))
    return [locked.reservations[each] for each in ids]


def _expiry(
    tx: Connection, request: AddRequest, active: Sequence[Reservation], now: datetime
) -> datetime | ShopError | None:
    """Return when the added reservations expire, None if they are confirmed, or the error if the stock is lost."""
    if request.is_confirmed or any(each.state is State.CONFIRMED for each in active):
        return None
    expiries = [each.expires_at for each in active if each.expires_at is not None]
    if expiries:
        return min(expiries) if min(expiries) > now else ReservationExpired(request.order_id)
    if by_order.have_any(tx, [request.order_key], (State.EXPIRED,)):
        return ReservationExpired(request.order_id)
    has_released = by_order.have_any(tx, [request.order_key], (State.RELEASED,))
    return ReservationReleased(request.order_id) if has_released else ReservationNotFound(order_id=request.order_id)


def _starting_totals(request: AddRequest, effects: OrderEffects) -> dict[int, Totals]:
    """Return the totals of each product before the change.

    A product without totals still has the units that were ordered: no event has changed it. Store these totals now,
    because the lines of later events also have the units that the change adds.
    """
    ordered = {line.product_id: 0 for line in request.lines} | dict(request.ordered)
    return {product: Totals(units, 0) for product, units in ordered.items()} | dict(effects.totals)
