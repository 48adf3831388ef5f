"""Changes the quantities of many items, for BatchChangeStock."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from inventory_api.domain import events
from inventory_api.domain.commands import ChangeStock, StockChange
from inventory_api.domain.errors import BelowReserved, ChangesRefused, InsufficientStock
from inventory_api.domain.model import Item, StockKey
from inventory_api.domain.movements import MovementKind, QuantityChange
from inventory_api.domain.stock_changes import ChangedStock, decide, may_release, missing_units, shortage_of_changes
from inventory_api.operations.items.create_items import create_missing
from inventory_api.operations.items.record_movements import record_movements
from inventory_api.operations.items.release_shortfall import RELEASED_MAX, release_shortfall
from inventory_api.operations.reservations.cover_shortage import DUE_EXPIRED_MAX, cover_shortage
from inventory_api.store import items, tables, withholdings
from inventory_api.store.reservations import due
from shop_common.db.errors import Collision
from shop_common.db.idempotency import Claim
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError

_Part = list[ChangedStock] | ShopError
"""The outcome of changes that are made or refused together."""


def change_stock(tx: Connection, request: ChangeStock) -> list[ChangedStock | ShopError]:
    """Make the changes of one turn, in order.

    Returns one outcome per change, in order: the changed items, or the error that refused the change. The errors are
    ItemNotFound, LocationsLimit, VersionMismatch, BelowReserved, InsufficientStock, InsufficientWithheld,
    WithholdingsLimit, QuantityLimit, RequestIdReused, and Contention if more than DUE_EXPIRED_MAX due reservations
    would have to be expired, or if a change would need more than RELEASED_MAX released reservations together with the
    earlier ones. A repeated change returns the items as they are now. If the changes are atomic, raises the error
    instead: ChangesRefused, RequestIdReused or Contention.

    Emits STOCK_UPDATED and STOCK_MOVED per item and change that was neither refused nor repeated,
    STOCK_RESERVATION_EXPIRED per expired reservation, and STOCK_RELEASED per reservation that a change with
    `release_shortfall` released.
    """
    claimed = tables.idempotency_keys.claim(tx, request.parts, request.claims())
    outcomes: list[_Part] = claimed.settle(
        tx,
        replayed=_replay(tx, claimed.replays),
        new=_change(tx, request, claimed.new),
    )
    if not request.is_atomic:
        return _with_due(tx, [outcome if isinstance(outcome, ShopError) else outcome[0] for outcome in outcomes])
    (of_all,) = outcomes
    if isinstance(of_all, ShopError):
        raise of_all  # the transaction is rolled back
    return _with_due(tx, of_all)


def _change(tx: Connection, request: ChangeStock, parts: Sequence[tuple[StockChange, ...]]) -> list[_Part]:
    """Make the changes of these parts of the request. Returns one outcome per part."""
    if not parts:
        return []
    locked = _lock(tx, request, [change for part in parts for change in part])
    _read_withholdings(tx, request, parts, locked)
    timestamp = now(tx)
    made: list[QuantityChange] = []
    releases = _Releases(request, locked)
    outcomes: list[_Part] = []
    for part in parts:
        changed: list[ChangedStock] = []
        outcome: _Part = changed
        for change in part:
            decided = decide(request, change, locked.stock, timestamp)
            if isinstance(decided, BelowReserved) and change.release_shortfall:
                decided = releases.make_room(tx, change, decided) or decide(request, change, locked.stock, timestamp)
            if isinstance(decided, ShopError):
                outcome = _refusal(request, change, decided, locked.is_contended)
                break
            locked.stock.update((each.item.stock_key, each.item) for each in decided)
            changed.append(ChangedStock(*(each.item for each in decided)))
            made += decided
        outcomes.append(outcome)
    if request.is_atomic and isinstance(outcomes[0], ShopError):
        return outcomes  # nothing is saved
    _save(tx, made, locked.stock)
    # An item that was created for a move must not remain if the move was refused.
    items.delete(tx, [locked.stock[key].id for key in locked.created if not locked.stock[key].version])
    return outcomes


def _read_withholdings(
    tx: Connection, request: ChangeStock, parts: Sequence[tuple[StockChange, ...]], locked: "_Locked"
) -> None:
    """Set the withholdings of the locked items whose units are withheld or given back."""
    keys = {
        request.stock_key(change) for part in parts for change in part if change.kind is MovementKind.WITHHELD
    } & locked.stock.keys()
    if keys:
        changing = [locked.stock[key] for key in keys]
        locked.stock.update((item.stock_key, item) for item in withholdings.with_withholdings(tx, changing))


def _refusal(request: ChangeStock, change: StockChange, error: ShopError, is_contended: bool) -> ShopError:
    if is_contended and isinstance(error, BelowReserved | InsufficientStock):
        return Contention(f"more than {DUE_EXPIRED_MAX} reservations are due; try again")
    return ChangesRefused(change.number, error) if request.is_atomic else error


@dataclass(frozen=True, slots=True)
class _Locked:
    """The locked items by stock key, the keys of new items, and whether too many reservations are due.

    `has_whole_products` is true if all items of the products are locked, so that their reservations may change.
    """

    stock: dict[StockKey, Item]
    created: Collection[StockKey]
    is_contended: bool = False
    has_whole_products: bool = False


class _Releases:
    """Releases reservations for the changes of one transaction."""

    def __init__(self, request: ChangeStock, locked: _Locked) -> None:
        self._request = request
        self._locked = locked
        self._remaining = RELEASED_MAX

    def make_room(self, tx: Connection, change: StockChange, refusal: BelowReserved) -> ShopError | None:
        """Release reservations so that the change can be made, and update the locked items.

        Returns None if the change can be made. Otherwise releases nothing, and returns the error to refuse it with.
        """
        item = self._locked.stock[self._request.stock_key(change)]
        missing = missing_units(change, item)
        if missing > item.reserved_quantity or self._locked.is_contended or not self._locked.has_whole_products:
            return refusal
        released = release_shortfall(tx, item, missing, self._locked.stock, self._request.cause, self._remaining)
        self._remaining -= released.count
        if released.count:
            return None
        if released.is_limited and self._remaining < RELEASED_MAX and not self._request.is_atomic:
            return Contention("earlier changes have released too many reservations; try again")
        return refusal


def _lock(tx: Connection, request: ChangeStock, changes: Sequence[StockChange]) -> _Locked:
    """Create the missing items, lock all items in one statement, and expire due reservations whose units are needed.

    No deadlock is possible: items are created before any of them is locked, and locked in the order of their ids.
    """
    sources = dict.fromkeys(request.stock_key(change) for change in changes)
    creating = dict.fromkeys(request.stock_key(change) for change in changes if change.creates_item)
    targets = dict.fromkeys(key for change in changes if (key := request.target_key(change)) is not None)
    keys = list(sources | targets)
    created = create_missing(tx, list(creating | targets))
    loaded = _by_key(items.load_at(tx, keys))
    if not shortage_of_changes(request, changes, loaded) and not may_release(request, changes, loaded):
        stock = _by_key(items.lock_at(tx, keys))
        if may_release(request, changes, stock) or _may_be_covered(
            tx, shortage_of_changes(request, changes, stock), stock
        ):
            # Ending a reservation needs the locks of all its items. Locking them now could deadlock, so start again.
            raise Collision("another transaction reserved units of the same items; retry")
        return _Locked(stock, [key for key in created if key in stock])
    locked = {item.id: item for item in items.lock_products(tx, {key.product for key in keys})}
    is_contended = False
    if shortage := shortage_of_changes(request, changes, _by_key(locked.values())):
        _, is_contended = cover_shortage(tx, shortage, locked, DUE_EXPIRED_MAX)
    stock = _by_key(locked.values())
    return _Locked(stock, [key for key in created if key in stock], is_contended, has_whole_products=True)


def _may_be_covered(tx: Connection, shortage: Mapping[StockKey, int], stock: Mapping[StockKey, Item]) -> bool:
    """Return whether due reservations have units of an item that lacks units. Otherwise no unit can become free."""
    if not shortage:
        return False
    due_units = due.units_by_item(tx, {key.product for key in shortage})
    return any(due_units.get(stock[key].id) for key in shortage)


def _save(tx: Connection, made: Sequence[QuantityChange], stock: Mapping[StockKey, Item]) -> None:
    if not made:
        return
    # A later change may have released units of an item that it does not change. Only `stock` has those items as they
    # are now, and the events of the changes follow those of all releases.
    changed = {change.item.id: stock[change.item.stock_key] for change in made}
    items.save_counters(tx, changed.values())
    withholdings.save(tx, [changed[item_id] for item_id in {change.item.id for change in made if change.withheld}])
    updated = [
        events.stock_updated(
            replace(change.item, reserved_quantity=changed[change.item.id].reserved_quantity),
            change.item.updated_at,
            change.cause,
        )
        for change in made
    ]
    tables.outbox.append(tx, [*updated, *record_movements(tx, made, made[0].item.updated_at)])


def _replay(tx: Connection, claims: Sequence[Claim]) -> list[_Part]:
    """Return the items that earlier calls have changed, as they are now: one part per claim, one result per change."""
    if not claims:
        return []
    changed = [_changed_keys(claim) for claim in claims]
    stock = _by_key(items.load_at(tx, {key for keys in changed for pair in keys for key in pair}))
    return [[ChangedStock(stock[source], stock.get(target)) for source, target in keys] for keys in changed]


def _changed_keys(claim: Claim) -> list[tuple[StockKey, StockKey]]:
    """Return, for each change of the claim, the key of its item and the key of the item to which a move moved units."""
    names = iter(claim.resources)
    return [
        (StockKey(claim.tenant, int(product_id), location), StockKey(claim.tenant, int(product_id), to_location))
        for product_id, location, to_location in zip(names, names, names, strict=True)
    ]


def _with_due(tx: Connection, outcomes: Sequence[ChangedStock | ShopError]) -> list[ChangedStock | ShopError]:
    """Return the outcomes, with `due` set in each item, and without its withholdings."""
    units = due.units_by_item(tx, {each.item.product for each in outcomes if isinstance(each, ChangedStock)})

    def shown(item: Item) -> Item:
        return replace(item, due=units.get(item.id, 0), withholdings=())

    return [
        each
        if isinstance(each, ShopError)
        else ChangedStock(shown(each.item), None if each.target is None else shown(each.target))
        for each in outcomes
    ]


def _by_key(found: Iterable[Item]) -> dict[StockKey, Item]:
    return {item.stock_key: item for item in found}
