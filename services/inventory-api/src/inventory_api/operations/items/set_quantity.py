"""Sets the quantity of items, for UpdateInventoryItem."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from inventory_api.domain import events
from inventory_api.domain.commands import SetQuantity
from inventory_api.domain.errors import BelowReserved, ItemNotFound, VersionMismatch
from inventory_api.domain.model import Item, ItemKey, StockKey
from inventory_api.domain.movements import MovementKind, QuantityChange
from inventory_api.operations.items.read_items import with_due
from inventory_api.operations.items.record_movements import record_movements
from inventory_api.operations.reservations.cover_shortage import DUE_EXPIRED_MAX, cover_shortage
from inventory_api.store import items, tables
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError


def set_quantity(tx: Connection, requests: Sequence[SetQuantity]) -> list[Item | ShopError]:
    """Set the quantity of each item.

    Returns one outcome per request, in order: the item, or the error that refused the request. The errors are
    ItemNotFound, VersionMismatch, RequestIdReused, BelowReserved and Contention. BelowReserved means that the reserved
    and withheld units exceed the quantity even after due reservations were expired. Contention means that more than
    DUE_EXPIRED_MAX due reservations would have to be expired. A repeated request_id returns the item as it is now.

    Emits STOCK_UPDATED and STOCK_MOVED per change, and STOCK_RESERVATION_EXPIRED per expired reservation. A request
    without a quantity changes nothing and emits nothing.
    """
    claimed = tables.idempotency_keys.claim(tx, requests, [request.claim() for request in requests])
    replayed = [ItemKey(claim.tenant, int(claim.resources[0])) for claim in claimed.replays]
    stored = items.load(tx, replayed)
    return claimed.settle(
        tx, replayed=with_due(tx, [stored[key] for key in replayed]), new=_set_quantity(tx, claimed.new)
    )


def _set_quantity(tx: Connection, requests: Sequence[SetQuantity]) -> list[Item | ShopError]:
    if not requests:
        return []
    # Lock all items of the products: a reservation that has to be expired may have allocations from several items.
    products = {item.product for item in items.load(tx, (request.item_key for request in requests)).values()}
    stock = {item.id: item for item in items.lock_products(tx, products)}
    is_contended = _expire_due(tx, requests, stock)
    timestamp = now(tx)
    changed: dict[int, Item] = {}
    outcomes: list[Item | ShopError] = []
    messages = []
    quantity_changes = []
    for request in requests:
        item = _requested(request, stock)
        if item is None:
            outcomes.append(ItemNotFound(request.item_id))
        elif request.version is not None and request.version != item.version:
            outcomes.append(VersionMismatch(item.id, request.version, item.version))
        elif request.quantity is None:
            outcomes.append(item)
        elif request.quantity < item.bound_quantity and is_contended:
            outcomes.append(Contention(f"more than {DUE_EXPIRED_MAX} reservations are due; try again"))
        elif request.quantity < item.bound_quantity:
            outcomes.append(BelowReserved(item, request.quantity))
        else:
            difference = request.quantity - item.quantity
            item = replace(item, quantity=request.quantity, version=item.version + 1, updated_at=timestamp)
            stock[item.id] = changed[item.id] = item
            messages.append(events.stock_updated(item, timestamp, request.cause))
            quantity_changes.append(QuantityChange(item, MovementKind.COUNTED, difference, request.cause))
            outcomes.append(item)
    if changed:
        items.save_counters(tx, changed.values())
        tables.outbox.append(tx, [*messages, *record_movements(tx, quantity_changes, timestamp)])
    return with_due(tx, outcomes)


def _requested(request: SetQuantity, stock: Mapping[int, Item]) -> Item | None:
    """Return the item, or None if the tenant of the request has no such item. `stock` has items of several tenants."""
    item = stock.get(request.item_id)
    return item if item is not None and item.tenant == request.tenant else None


def _expire_due(tx: Connection, requests: Sequence[SetQuantity], stock: dict[int, Item]) -> bool:
    """Expire due reservations of items whose new quantity is below the reserved and withheld units.

    Returns True if more reservations are due than one transaction may expire.
    """
    shortage: dict[StockKey, int] = {}
    for request in requests:
        item = _requested(request, stock)
        if item is None or request.quantity is None or request.version not in (None, item.version):
            continue
        # At most the reserved units can become free.
        missing = min(item.bound_quantity - request.quantity, item.reserved_quantity)
        if missing > 0:
            shortage[item.stock_key] = max(shortage.get(item.stock_key, 0), missing)
    if not shortage:
        return False
    _, has_more = cover_shortage(tx, shortage, stock, DUE_EXPIRED_MAX)
    return has_more
