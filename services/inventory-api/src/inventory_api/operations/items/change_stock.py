"""Changes the quantities of many items, for BatchChangeStock."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from inventory_api.domain import events
from inventory_api.domain.commands import ChangeStock, StockChange
from inventory_api.domain.errors import BelowReserved, ChangesRefused
from inventory_api.domain.model import Item, StockKey
from inventory_api.domain.movements import QuantityChange
from inventory_api.domain.stock_changes import decide, shortage_of_changes
from inventory_api.operations.items.create_items import create_missing
from inventory_api.operations.items.read_items import with_due
from inventory_api.operations.items.record_movements import record_movements
from inventory_api.operations.reservations.cover_shortage import DUE_EXPIRED_MAX, cover_shortage
from inventory_api.store import items, tables
from shop_common.db.errors import Collision
from shop_common.db.idempotency import Claim
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError


def change_stock(tx: Connection, request: ChangeStock) -> list[Item | ShopError]:
    """Make the changes of one turn, in order.

    Returns one outcome per change, in order: the item, or the error that refused the change. The errors are
    ItemNotFound, LocationsLimit, VersionMismatch, BelowReserved, QuantityLimit, RequestIdReused, and Contention if more
    than DUE_EXPIRED_MAX due reservations would have to be expired. A repeated change returns the item as it is now. If
    the changes are atomic, raises the error instead: ChangesRefused, RequestIdReused or Contention.

    Emits STOCK_UPDATED and STOCK_MOVED per change that was neither refused nor repeated, and STOCK_RESERVATION_EXPIRED
    per expired reservation.
    """
    claimed = tables.idempotency_keys.claim(tx, request.parts, request.claims())
    outcomes: list[list[Item] | ShopError] = claimed.settle(
        tx,
        replayed=[_replay(tx, claim) for claim in claimed.replays],
        new=_change(tx, request, claimed.new),
    )
    if not request.is_atomic:
        flat = [outcome if isinstance(outcome, ShopError) else outcome[0] for outcome in outcomes]
        return with_due(tx, flat)
    (of_all,) = outcomes
    if isinstance(of_all, ShopError):
        raise of_all  # the transaction is rolled back
    return with_due(tx, of_all)


def _change(
    tx: Connection, request: ChangeStock, parts: Sequence[tuple[StockChange, ...]]
) -> list[list[Item] | ShopError]:
    """Make the changes of these parts of the request. Returns one outcome per part."""
    if not parts:
        return []
    changes = [change for part in parts for change in part]
    stock, is_contended = _lock(tx, request, changes)
    timestamp = now(tx)
    outcomes: list[list[Item] | ShopError] = []
    made: list[QuantityChange] = []
    for part in parts:
        changed: list[Item] = []
        outcome: list[Item] | ShopError = changed
        for change in part:
            decided = decide(request, change, stock, timestamp)
            if isinstance(decided, ShopError):
                if isinstance(decided, BelowReserved) and is_contended:
                    outcome = Contention(f"more than {DUE_EXPIRED_MAX} reservations are due; try again")
                else:
                    outcome = ChangesRefused(change.number, decided) if request.is_atomic else decided
                break
            stock[decided.item.stock_key] = decided.item
            changed.append(decided.item)
            made.append(decided)
        outcomes.append(outcome)
    if request.is_atomic and isinstance(outcomes[0], ShopError):
        return outcomes
    _save(tx, made)
    return outcomes


def _lock(tx: Connection, request: ChangeStock, changes: Sequence[StockChange]) -> tuple[dict[StockKey, Item], bool]:
    """Create the missing items, lock all items in one statement, and expire due reservations whose units are needed.

    Returns the items by stock key, and whether more reservations are due than one transaction may expire.
    """
    keys = list(dict.fromkeys(request.stock_key(change) for change in changes))
    create_missing(tx, list(dict.fromkeys(request.stock_key(change) for change in changes if change.creates_item)))
    expected = shortage_of_changes(request, changes, _by_key(items.load_at(tx, keys)))
    if not expected:
        stock = _by_key(items.lock_at(tx, keys))
        if shortage_of_changes(request, changes, stock):
            # Expiring a reservation needs the locks of all its items. Locking them now could deadlock, so start again.
            raise Collision("another transaction reserved units of the same items; retry")
        return stock, False
    locked = {item.id: item for item in items.lock_products(tx, {key.product for key in keys})}
    shortage = shortage_of_changes(request, changes, _by_key(locked.values()))
    is_contended = False
    if shortage:
        _, is_contended = cover_shortage(tx, shortage, locked, DUE_EXPIRED_MAX)
    return _by_key(locked.values()), is_contended


def _save(tx: Connection, made: Sequence[QuantityChange]) -> None:
    if not made:
        return
    items.save_counters(tx, {change.item.id: change.item for change in made}.values())
    updated = [events.stock_updated(change.item, change.item.updated_at, change.cause) for change in made]
    tables.outbox.append(tx, [*updated, *record_movements(tx, made, made[0].item.updated_at)])


def _replay(tx: Connection, claim: Claim) -> list[Item]:
    """Return the items that an earlier call has changed, as they are now, one per change of the part."""
    names = iter(claim.resources)
    keys = [
        StockKey(claim.tenant, int(product_id), location) for product_id, location in zip(names, names, strict=True)
    ]
    stock = _by_key(items.load_at(tx, keys))
    return [stock[key] for key in keys]


def _by_key(found: Iterable[Item]) -> dict[StockKey, Item]:
    return {item.stock_key: item for item in found}
