"""Adds units to items: received ones for CreateInventoryItem, and returned ones for ORDER_RETURNED."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from inventory_api.domain import events
from inventory_api.domain.commands import AddStock
from inventory_api.domain.errors import LocationsLimit, QuantityLimit, WithholdingsLimit
from inventory_api.domain.model import ITEM_QUANTITY_MAX, Item, StockKey
from inventory_api.domain.movements import MovementKind, QuantityChange
from inventory_api.domain.withholding import with_withheld
from inventory_api.operations.items.create_items import create_missing
from inventory_api.operations.items.read_items import with_due
from inventory_api.operations.items.record_movements import record_movements
from inventory_api.store import items, tables, withholdings
from shop_common.api.command import Cause
from shop_common.db.idempotency import Claim
from shop_common.db.sql import now
from shop_common.errors import ShopError


@dataclass(frozen=True, slots=True)
class Addition:
    """Units to add to the item under a stock key. The movement has the kind, the order and the cause.

    With a `withholding_reason`, the units are also withheld, and the movement has this reason.
    """

    key: StockKey
    quantity: int
    kind: MovementKind
    cause: Cause
    order_id: str = ""
    withholding_reason: str = ""


def add_stock(tx: Connection, requests: Sequence[AddStock]) -> list[Item | ShopError]:
    """Add units to the item of each product and location, for CreateInventoryItem.

    Returns one outcome per request, in order: the item, or the error that refused the request. The errors are those of
    `add_units` and RequestIdReused. A repeated request_id returns the item as it is now and adds nothing.

    Emits STOCK_UPDATED and STOCK_MOVED per request that was neither refused nor repeated.
    """
    claimed = tables.idempotency_keys.claim(tx, requests, [request.claim() for request in requests])
    return claimed.settle(tx, replayed=_replay(tx, claimed.replays), new=_receive(tx, claimed.new))


def _receive(tx: Connection, requests: Sequence[AddStock]) -> list[Item | ShopError]:
    if not requests:
        return []
    additions = [
        Addition(request.stock_key, request.quantity, MovementKind.RECEIVED, request.cause) for request in requests
    ]
    return with_due(tx, add_units(tx, additions))


def add_units(tx: Connection, additions: Sequence[Addition]) -> list[Item | ShopError]:
    """Add units to items. Creates items that do not exist.

    Returns one outcome per addition, in order: the item, or the error that refused the addition. The errors are
    QuantityLimit if the item would have too many units, LocationsLimit if the product would have too many locations,
    and WithholdingsLimit if units of the item would be withheld for too many reasons.

    Emits STOCK_UPDATED and STOCK_MOVED per addition that was not refused.
    """
    keys = list(dict.fromkeys(addition.key for addition in additions))
    create_missing(tx, keys)
    stock = {item.stock_key: item for item in items.lock_at(tx, keys)}
    withholding = {addition.key for addition in additions if addition.withholding_reason} & stock.keys()
    stock.update((i.stock_key, i) for i in withholdings.with_withholdings(tx, [stock[key] for key in withholding]))
    timestamp = now(tx)
    outcomes: list[Item | ShopError] = []
    messages = []
    changes = []
    for addition in additions:
        product_id = addition.key.product_id
        item = stock.get(addition.key)
        if item is None:
            outcomes.append(LocationsLimit.of_product(product_id))
            continue
        if item.quantity + addition.quantity > ITEM_QUANTITY_MAX:
            outcomes.append(QuantityLimit(product_id, item.location, item.quantity))
            continue
        item = replace(item, quantity=item.quantity + addition.quantity, version=item.version + 1, updated_at=timestamp)
        withheld = 0
        if addition.withholding_reason:
            withheld = addition.quantity
            withholding_item = with_withheld(item, addition.withholding_reason, withheld)
            if isinstance(withholding_item, WithholdingsLimit):
                outcomes.append(withholding_item)
                continue
            item = withholding_item
        stock[addition.key] = item
        messages.append(events.stock_updated(item, timestamp, addition.cause))
        changes.append(
            QuantityChange(
                item,
                addition.kind,
                addition.quantity,
                addition.cause,
                addition.order_id,
                reason=addition.withholding_reason,
                withheld=withheld,
            )
        )
        outcomes.append(item)
    if stock:
        items.save_counters(tx, stock.values())
        withholdings.save(tx, [stock[key] for key in withholding])
    tables.outbox.append(tx, [*messages, *record_movements(tx, changes, timestamp)])
    return outcomes


def _replay(tx: Connection, claims: Sequence[Claim]) -> list[Item | ShopError]:
    """Return the items to which earlier calls added units, as they are now. Items are never deleted, so they exist."""
    if not claims:
        return []
    keys = [StockKey(claim.tenant, int(claim.resources[0]), claim.resources[1]) for claim in claims]
    stock = {item.stock_key: item for item in items.lock_at(tx, keys)}
    return with_due(tx, [stock[key] for key in keys])
