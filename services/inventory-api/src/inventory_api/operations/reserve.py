"""Holding stock for orders: the operation behind ReserveStock and BatchReserveStock."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection
from uuid_utils import uuid7

from inventory_api.domain import events
from inventory_api.domain.allocation import Shelves
from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock, ReservationNotFound
from inventory_api.domain.model import ORDER_ALLOCATIONS_MAX, Allocation, Item, Reservation, State
from inventory_api.operations import due
from inventory_api.operations.due import Place
from inventory_api.store import by_order, items, reservations, tables
from inventory_api.store.by_order import Size
from shop_common.db.database import count_after_commit
from shop_common.db.idempotency import Claim, fingerprint
from shop_common.db.sql import inserting, now
from shop_common.errors import Contention, Refused, ShopError
from shop_common.telemetry import metrics

METHOD = "ReserveStock"
DUE_EXPIRED_MAX = due.DUE_EXPIRED_MAX
BATCH_ALLOCATIONS_MAX = ORDER_ALLOCATIONS_MAX
"""Made in one transaction: of one order that is not more than an order may have."""

_refusals = metrics.counter(
    __name__, "shop_stock_refusals_total", "Orders whose stock was not held, by the reason", "reason"
)
_rescued = metrics.counter(
    __name__, "shop_holds_rescued_total", "Holds past their time that a request in need has expired itself"
)

Reservations = list[Reservation]
_Decision = dict[int, tuple[Allocation, ...]] | Refused | Contention


class _Later(Contention):
    """Not decided: what was decided before it is enough for one transaction."""


_LATER = _Later("the batch has too many allocations; try again")


def reserve(
    tx: Connection, orders: Sequence[OrderLines], *, default_ttl_seconds: float
) -> list[Reservations | ShopError]:
    """Hold stock for each order, all of its lines or none, one reservation a product.

    Orders are decided in the sequence given and do not affect each other beyond the stock that they take. Returns
    one outcome per order, in order: its reservations, or what refused it (InsufficientStock; ReservationsLimit;
    LocationsLimit; RequestIdReused; Contention when more than DUE_EXPIRED_MAX holds would have to be expired first). A
    request_id that came before answers with what the first call made, as it is now; one batch holds a request_id once.

    Decides as many of the orders as one transaction should, from the first on, and at least one.

    Emits STOCK_RESERVED per reservation, and STOCK_RESERVATION_EXPIRED for holds that it had to expire.
    """
    planned = [_Planned(order, _reservation_ids(order)) for order in orders]
    claimed = tables.idempotency_keys.claim(tx, planned, [each.claim() for each in planned])
    outcomes = claimed.settle(
        tx, replayed=_replay(tx, claimed.replays), new=_hold(tx, claimed.new, default_ttl_seconds)
    )
    return outcomes[: outcomes.index(_LATER)] if _LATER in outcomes else outcomes


@dataclass(frozen=True, slots=True)
class _Planned:
    """An order and the ids of its reservations by product, drawn before the claim, which names them."""

    order: OrderLines
    ids: Mapping[int, str]

    def claim(self) -> Claim | None:
        order = self.order
        if order.request_id is None:
            return None
        lines = [(line.product_id, line.quantity, line.location) for line in order.lines]
        content = fingerprint(order.order_id, lines, order.ttl_seconds)
        return Claim(METHOD, "", order.request_id, content, tuple(self.ids.values()))


def _hold(tx: Connection, planned: Sequence[_Planned], default_ttl_seconds: float) -> list[Reservations | ShopError]:
    """Decide and write orders that have no earlier outcome."""
    if not planned:
        return []
    orders = [each.order for each in planned]
    products = {line.product_id for order in orders for line in order.lines}
    stock = {item.id: item for item in items.lock_products(tx, products)}
    moment, sizes = by_order.sizes(tx, (order.order_id for order in orders))
    decisions, expired = _decide_with_due(tx, orders, stock, sizes)
    if expired:
        moment = now(tx)
    outcomes: list[Reservations | ShopError] = []
    held: Reservations = []
    messages = []
    for each, decision in zip(planned, decisions, strict=True):
        order = each.order
        if isinstance(decision, ShopError):
            outcomes.append(decision)
            continue
        expires_at = moment + timedelta(seconds=order.ttl_seconds or default_ttl_seconds)
        made = [
            Reservation(
                id=each.ids[product_id],
                product_id=product_id,
                quantity=sum(part.quantity for part in parts),
                order_id=order.order_id,
                state=State.HELD,
                created_at=moment,
                expires_at=expires_at,
                allocations=parts,
            )
            for product_id, parts in decision.items()
        ]
        outcomes.append(made)
        held += made
        messages += [events.stock_reserved(reservation, moment, order.traceparent) for reservation in made]
    _save(tx, held, stock, moment)
    tables.outbox.append(tx, messages)
    refusals = [each for each in outcomes if isinstance(each, ShopError) and each is not _LATER]
    count_after_commit(tx, _refusals, Counter((each.reason,) for each in refusals))
    return outcomes


def _decide_with_due(
    tx: Connection, orders: Sequence[OrderLines], stock: dict[int, Item], sizes: Mapping[str, Size]
) -> tuple[list[_Decision], int]:
    """What each order gets, in the sequence given, where a hold past its time is free stock, reaper or not.

    Expires what is needed of such holds, the oldest first, and brings `stock` up to date; returns how many, too. Each
    round expires at least one; the first covers what is short in sum, later ones what that left in the wrong place.
    """
    total = 0
    while True:
        decisions = _decide(orders, stock, sizes)
        need = _need(orders, decisions, stock)
        if not need:
            return decisions, total
        expired, more = due.expire_to_cover(tx, need, stock, DUE_EXPIRED_MAX - total)
        count_after_commit(tx, _rescued, {(): len(expired)})
        if not expired:
            return _try_again(decisions) if more else decisions, total
        total += len(expired)


def _decide(orders: Sequence[OrderLines], stock: Mapping[int, Item], sizes: Mapping[str, Size]) -> list[_Decision]:
    shelves = Shelves(stock.values())
    grown = dict(sizes)
    drawn = 0
    decisions: list[_Decision] = []
    for order in orders:
        try:
            taken = shelves.take(order.lines)
        except Refused as refusal:
            decisions.append(refusal)
            continue
        parts = [part for of_product in taken.values() for part in of_product]
        size = grown[order.order_id].plus(len(taken), len(parts))
        if too_large := size.refusal(order.order_id):
            shelves.put_back(parts)
            decisions.append(too_large)
        elif drawn and drawn + len(parts) > BATCH_ALLOCATIONS_MAX:
            return [*decisions, *[_LATER] * (len(orders) - len(decisions))]
        else:
            grown[order.order_id] = size
            drawn += len(parts)
            decisions.append(taken)
    return decisions


def _need(orders: Sequence[OrderLines], decisions: Sequence[_Decision], stock: Mapping[int, Item]) -> dict[Place, int]:
    """What is wanted beyond what is free, at each place, of the products that refused orders ask for.

    By all orders and not only the refused ones: when the batch is decided anew, an earlier order that gets its
    stock now may leave too little for a later one that had it before. Empty when no order is refused.
    """
    refused = [
        (order, decision)
        for order, decision in zip(orders, decisions, strict=True)
        if isinstance(decision, InsufficientStock)
    ]
    if not refused:
        return {}
    products = {line.product_id for order, _ in refused for line in order.lines}
    need: dict[Place, int] = {}
    for order in orders:
        for line in order.lines:
            if line.product_id in products:
                place = (line.product_id, line.location)
                need[place] = need.get(place, 0) + line.quantity
    for item in stock.values():
        free = item.quantity - item.reserved_quantity
        # What lines that name the place leave there is for those that name none.
        for place in ((item.product_id, item.location), (item.product_id, None)):
            taken = min(free, need.get(place, 0))
            if taken:
                need[place] -= taken
                free -= taken
    for _, refusal in refused:
        place = (refusal.product_id, refusal.location)
        need[place] = max(need.get(place, 0), refusal.requested - refusal.available)
    return {place: units for place, units in need.items() if units}


def _try_again(decisions: Sequence[_Decision]) -> list[_Decision]:
    said = f"more than {DUE_EXPIRED_MAX} holds are past their time; try again"
    return [Contention(said) if isinstance(each, InsufficientStock) else each for each in decisions]


def _save(tx: Connection, held: Reservations, stock: dict[int, Item], moment: datetime) -> None:
    if not held:
        return
    drawn: dict[int, int] = {}
    for reservation in held:
        for part in reservation.allocations:
            drawn[part.item_id] = drawn.get(part.item_id, 0) + part.quantity
    items.save_counters(
        tx,
        [
            replace(stock[item_id], reserved_quantity=stock[item_id].reserved_quantity + quantity, updated_at=moment)
            for item_id, quantity in drawn.items()
        ],
    )
    _insert_reservations(tx, [_row(reservation) for reservation in held])
    _insert_allocations(
        tx,
        [
            {"reservation_id": reservation.id, "item_id": part.item_id, "quantity": part.quantity}
            for reservation in held
            for part in reservation.allocations
        ],
    )


def _row(reservation: Reservation) -> dict[str, object]:
    return {
        "id": reservation.id,
        "product_id": reservation.product_id,
        "quantity": reservation.quantity,
        "order_id": reservation.order_id,
        "state": reservation.state,
        "created_at": reservation.created_at,
        "expires_at": reservation.expires_at,
        "sole_item_id": reservation.allocations[0].item_id if len(reservation.allocations) == 1 else 0,
    }


def _replay(tx: Connection, claims: Sequence[Claim]) -> list[Reservations | ShopError]:
    """What earlier calls made, as it is now; ReservationNotFound when some of it was purged since."""
    if not claims:
        return []
    moment = now(tx)
    stored = reservations.load(tx, (each for claim in claims for each in claim.resources))
    found = {reservation.id: reservation.as_of(moment) for reservation in stored}
    outcomes: list[Reservations | ShopError] = []
    for claim in claims:
        purged = [each for each in claim.resources if each not in found]
        outcomes.append(
            ReservationNotFound(reservation_id=purged[0]) if purged else [found[each] for each in claim.resources]
        )
    return outcomes


def _reservation_ids(order: OrderLines) -> dict[int, str]:
    return {product_id: str(uuid7()) for product_id in dict.fromkeys(line.product_id for line in order.lines)}


_insert_reservations = inserting(
    tables.stock_reservations,
    "id",
    "product_id",
    "quantity",
    "order_id",
    "state",
    "created_at",
    "expires_at",
    "sole_item_id",
)
_insert_allocations = inserting(tables.reservation_allocations, "reservation_id", "item_id", "quantity")
