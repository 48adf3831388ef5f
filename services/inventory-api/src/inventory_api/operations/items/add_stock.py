"""Adds units to items, for CreateInventoryItem."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from inventory_api.domain import events
from inventory_api.domain.commands import AddStock
from inventory_api.domain.errors import LocationsLimit, QuantityLimit
from inventory_api.domain.model import ITEM_QUANTITY_MAX, LOCATIONS_MAX, Item
from inventory_api.operations.items.read_items import with_due
from inventory_api.store import items, tables
from shop_common.db.idempotency import Claim
from shop_common.db.sql import now
from shop_common.errors import ShopError

_Place = tuple[int, str]
"""A product id and a location. They identify an item."""


def add_stock(tx: Connection, requests: Sequence[AddStock]) -> list[Item | ShopError]:
    """Add units to the item of each product and location. Creates the item if it does not exist.

    Returns one outcome per request, in order: the item, or the error that refused the request. The errors are
    QuantityLimit if the item would have too many units, LocationsLimit if the product would have too many locations,
    and RequestIdReused. A repeated request_id returns the item as it is now and adds nothing.

    Emits STOCK_UPDATED per request that was neither refused nor repeated.
    """
    claimed = tables.idempotency_keys.claim(tx, requests, [request.claim() for request in requests])
    return claimed.settle(tx, replayed=_replay(tx, claimed.replays), new=_add(tx, claimed.new))


def _add(tx: Connection, requests: Sequence[AddStock]) -> list[Item | ShopError]:
    if not requests:
        return []
    places = list(dict.fromkeys((request.product_id, request.location) for request in requests))
    stock = {(item.product_id, item.location): item for item in items.lock_at(tx, places)}
    if absent := [place for place in places if place not in stock]:
        created = _create(tx, _within_limit(tx, absent))
        stock |= {(item.product_id, item.location): item for item in created}
    timestamp = now(tx)
    outcomes: list[Item | ShopError] = []
    messages = []
    for request in requests:
        item = stock.get((request.product_id, request.location))
        if item is None:
            message = f"product {request.product_id} is already at {LOCATIONS_MAX} locations, the maximum"
            outcomes.append(LocationsLimit(request.product_id, message))
            continue
        if item.quantity + request.quantity > ITEM_QUANTITY_MAX:
            outcomes.append(QuantityLimit(item.product_id, item.location, item.quantity))
            continue
        item = replace(item, quantity=item.quantity + request.quantity, version=item.version + 1, updated_at=timestamp)
        stock[request.product_id, request.location] = item
        messages.append(events.stock_updated(item, timestamp, request.traceparent))
        outcomes.append(item)
    if stock:
        items.save_counters(tx, stock.values())
    tables.outbox.append(tx, messages)
    return with_due(tx, outcomes)


def _within_limit(tx: Connection, absent: Sequence[_Place]) -> list[_Place]:
    """Return the places, in order, whose product may still get another location.

    The limit is not exact: two transactions that add locations to one product at the same time do not see each
    other's items. So the product may get a few more locations than LOCATIONS_MAX.
    """
    locations = items.count_locations(tx, {product_id for product_id, _ in absent})
    allowed = []
    for product_id, location in absent:
        if locations.get(product_id, 0) < LOCATIONS_MAX:
            locations[product_id] = locations.get(product_id, 0) + 1
            allowed.append((product_id, location))
    return allowed


def _create(tx: Connection, places: Sequence[_Place]) -> list[Item]:
    """Create empty items, lock them and return them.

    Another transaction may have created some of these items after this transaction read. They keep their units.
    """
    if not places:
        return []
    items.insert_empty(tx, places, now(tx))
    return items.lock_at(tx, places)


def _replay(tx: Connection, claims: Sequence[Claim]) -> list[Item | ShopError]:
    """Return the items to which earlier calls added units, as they are now. Items are never deleted, so they exist."""
    if not claims:
        return []
    places = [(int(claim.resources[0]), claim.resources[1]) for claim in claims]
    stock = {(item.product_id, item.location): item for item in items.lock_at(tx, places)}
    return with_due(tx, [stock[place] for place in places])
