"""Reserves stock for orders, for ReserveStock and BatchReserveStock."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection
from uuid_utils import uuid7

from inventory_api.domain import events
from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock, ReservationNotFound
from inventory_api.domain.model import Item, Line, OrderKey, OrderSize, ProductKey, Reservation, ReservationKey, State
from inventory_api.domain.reserving import UNDECIDED, Decision, decide
from inventory_api.domain.shortage import shortage_of_orders
from inventory_api.operations.reservations.cover_shortage import DUE_EXPIRED_MAX, cover_shortage
from inventory_api.store import items, tables
from inventory_api.store.reservations import by_order, rows
from shop_common.db.database import count_after_commit
from shop_common.db.idempotency import Claim, fingerprint
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError
from shop_common.telemetry import metrics

METHOD = "ReserveStock"

_refusals = metrics.counter(
    __name__, "shop_stock_refusals_total", "Orders for which no stock was reserved, by reason", "reason"
)
_rescued = metrics.counter(
    __name__, "shop_holds_rescued_total", "Due reservations that a request expired because it needed their units"
)

Reservations = list[Reservation]


def reserve(
    tx: Connection, orders: Sequence[OrderLines], *, default_ttl_seconds: float
) -> list[Reservations | ShopError]:
    """Reserve stock for each order, all of its lines or none, with one reservation per product.

    For an order with `allow_partial`, reserve what is available. Products of which nothing is available then have no
    reservation.

    Decides the orders one after another. They do not affect each other except by the stock that they take. Returns one
    outcome per order, in order: its reservations, or the error that refused the order. The errors are
    InsufficientStock, ReservationsLimit, LocationsLimit, RequestIdReused, and Contention if more than DUE_EXPIRED_MAX
    due reservations would have to be expired.

    If the orders need more allocations than one transaction may make, only the first orders are decided, at least one.
    The returned list then has outcomes for these orders only.

    May be repeated with the same request_id: it then returns the reservations of the first call as they are now, or
    ReservationNotFound if they were purged. The caller must pass each request_id at most once. Emits STOCK_RESERVED per
    reservation, and STOCK_RESERVATION_EXPIRED per due reservation that had to be expired.
    """
    planned = [_Planned(order, _reservation_ids(order)) for order in orders]
    claimed = tables.idempotency_keys.claim(tx, planned, [each.claim() for each in planned])
    outcomes = claimed.settle(
        tx, replayed=_replay(tx, claimed.replays), new=_reserve(tx, claimed.new, default_ttl_seconds)
    )
    return outcomes[: outcomes.index(UNDECIDED)] if UNDECIDED in outcomes else outcomes


@dataclass(frozen=True, slots=True)
class _Planned:
    """An order and the ids of its reservations by product id. The ids are made first, because the claim stores them."""

    order: OrderLines
    ids: Mapping[int, str]

    def claim(self) -> Claim | None:
        order = self.order
        if order.request_id is None:
            return None
        lines = [_content(line) for line in order.lines]
        partial = ("allow_partial",) if order.allow_partial else ()
        content = fingerprint(order.order_id, lines, order.ttl_seconds, *partial)
        return Claim(METHOD, order.owner, order.request_id, content, tuple(self.ids.values()), order.tenant)

    def claim_of(self, product_ids: Collection[int]) -> Claim | None:
        """Return the claim with the ids of the reservations of these products only."""
        claim = self.claim()
        return None if claim is None else replace(claim, resources=tuple(self.ids[each] for each in product_ids))


def _content(line: Line) -> tuple[object, ...]:
    """Return the content of a line for the fingerprint. Optional parts of later releases count only if they are set."""
    content = (line.product_id, line.quantity, line.location)
    policy = line.policy
    if policy is None:
        return content
    return (*content, str(policy.strategy), policy.locations, policy.excluded_locations, policy.max_locations)


def _reserve(tx: Connection, planned: Sequence[_Planned], default_ttl_seconds: float) -> list[Reservations | ShopError]:
    """Decide the new orders, and insert the reservations of those that are not refused."""
    if not planned:
        return []
    orders = [each.order for each in planned]
    products = {ProductKey(order.tenant, line.product_id) for order in orders for line in order.lines}
    stock = {item.id: item for item in items.lock_products(tx, products)}
    timestamp, sizes = by_order.sizes(tx, (order.order_key for order in orders))
    decisions, expired_count = decide_with_due(tx, orders, stock, sizes)
    if expired_count:
        # Expiring took time. A reservation must not have an earlier timestamp than the expiry that freed its units.
        timestamp = now(tx)
    outcomes: list[Reservations | ShopError] = []
    created: Reservations = []
    messages = []
    narrowed: list[Claim] = []
    for each, decision in zip(planned, decisions, strict=True):
        order = each.order
        if isinstance(decision, ShopError):
            outcomes.append(decision)
            continue
        expires_at = timestamp + timedelta(seconds=order.ttl_seconds or default_ttl_seconds)
        reservations = [
            Reservation(
                tenant=order.tenant,
                owner=order.owner,
                id=each.ids[product_id],
                product_id=product_id,
                quantity=sum(allocation.quantity for allocation in allocations),
                order_id=order.order_id,
                state=State.HELD,
                created_at=timestamp,
                expires_at=expires_at,
                allocations=allocations,
            )
            for product_id, allocations in decision.items()
        ]
        outcomes.append(reservations)
        created += reservations
        if len(decision) < len(each.ids) and (claim := each.claim_of(decision)):
            narrowed.append(claim)
        messages += [events.stock_reserved(reservation, timestamp, order.cause) for reservation in reservations]
    insert_reserved(tx, created, stock, timestamp)
    tables.idempotency_keys.replace_resources(tx, narrowed)
    tables.outbox.append(tx, messages)
    refusals = [each for each in outcomes if isinstance(each, ShopError) and each is not UNDECIDED]
    count_after_commit(tx, _refusals, Counter((each.reason,) for each in refusals))
    return outcomes


def decide_with_due(
    tx: Connection, orders: Sequence[OrderLines], stock: dict[int, Item], sizes: Mapping[OrderKey, OrderSize]
) -> tuple[list[Decision], int]:
    """Decide the orders one after another. If stock is missing, expire due reservations and decide all orders again.

    Returns the decisions and the number of expired reservations. Updates `stock`. Every round except the last expires
    at least one reservation. Usually the first round covers the whole shortage. More rounds are needed if the freed
    units are at locations where an order cannot use them.
    """
    expired_count = 0
    while True:
        decisions = decide(orders, stock, sizes)
        shortage = shortage_of_orders(orders, decisions, stock)
        if not shortage:
            return decisions, expired_count
        expired, has_more = cover_shortage(tx, shortage, stock, DUE_EXPIRED_MAX - expired_count)
        count_after_commit(tx, _rescued, {(): len(expired)})
        if not expired:
            return _contended(decisions) if has_more else _in_part(orders, decisions, stock, sizes), expired_count
        expired_count += len(expired)


def _in_part(
    orders: Sequence[OrderLines],
    decisions: list[Decision],
    stock: Mapping[int, Item],
    sizes: Mapping[OrderKey, OrderSize],
) -> list[Decision]:
    """Decide the orders again, in part where an order allows it. No due reservation is left that could cover more."""
    lacks_stock = any(
        order.allow_partial and isinstance(decision, InsufficientStock)
        for order, decision in zip(orders, decisions, strict=True)
    )
    return decide(orders, stock, sizes, in_part=True) if lacks_stock else decisions


def _contended(decisions: Sequence[Decision]) -> list[Decision]:
    """Refuse orders that lack stock with Contention: a retry may get the units of due reservations that remain."""
    message = f"more than {DUE_EXPIRED_MAX} reservations are due; try again"
    return [Contention(message) if isinstance(each, InsufficientStock) else each for each in decisions]


def insert_reserved(tx: Connection, created: Reservations, stock: Mapping[int, Item], now: datetime) -> None:
    """Insert new reservations, and add their units to the reserved quantities of their items. `stock` has the items."""
    if not created:
        return
    taken: dict[int, int] = {}
    for reservation in created:
        for part in reservation.allocations:
            taken[part.item_id] = taken.get(part.item_id, 0) + part.quantity
    items.save_counters(
        tx,
        [
            replace(stock[item_id], reserved_quantity=stock[item_id].reserved_quantity + quantity, updated_at=now)
            for item_id, quantity in taken.items()
        ],
    )
    rows.insert(tx, created)


def _replay(tx: Connection, claims: Sequence[Claim]) -> list[Reservations | ShopError]:
    """Return one outcome per claim: its reservations as they are now, or ReservationNotFound if one was purged."""
    if not claims:
        return []
    timestamp = now(tx)
    stored = rows.load(tx, (ReservationKey(claim.tenant, each) for claim in claims for each in claim.resources))
    reservations = {reservation.id: reservation.as_of(timestamp) for reservation in stored}
    outcomes: list[Reservations | ShopError] = []
    for claim in claims:
        purged = [each for each in claim.resources if each not in reservations]
        if purged:
            outcomes.append(ReservationNotFound(reservation_id=purged[0]))
        else:
            outcomes.append([reservations[each] for each in claim.resources])
    return outcomes


def _reservation_ids(order: OrderLines) -> dict[int, str]:
    return {product_id: str(uuid7()) for product_id in dict.fromkeys(line.product_id for line in order.lines)}
