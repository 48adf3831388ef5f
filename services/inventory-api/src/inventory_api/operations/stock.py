"""Items and their availability: add, set, read, list, check.

Each operation takes a list and returns a list, one outcome per request, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, Connection, Text, select, tuple_

from inventory_api.domain import events
from inventory_api.domain.commands import AddStock, SetQuantity
from inventory_api.domain.errors import BelowReserved, ItemNotFound, LocationsLimit, QuantityLimit, VersionMismatch
from inventory_api.domain.model import ITEM_QUANTITY_MAX, LOCATIONS_MAX, Item
from inventory_api.operations import due
from inventory_api.store import items, tables
from shop_common.api.paging import Page, PageRequest, page_of
from shop_common.api.valid import INT64_MAX
from shop_common.db.sql import Statement, among, inserting, now
from shop_common.errors import Contention, ShopError

_items = tables.inventory_items

_Place = tuple[int, str]


@dataclass(frozen=True, slots=True)
class StockQuestion:
    """How many units are free, at a location or over all."""

    product_id: int
    location: str | None


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """Which items to list; None is any."""

    product_id: int | None = None
    location: str | None = None


def add(tx: Connection, requests: Sequence[AddStock]) -> list[Item | ShopError]:
    """Add units to the item of each product and location, made when absent.

    Refuses with QuantityLimit what an item can't hold, and with LocationsLimit a new item of a product that has as many
    as it may. Emits STOCK_UPDATED per request.
    """
    claimed = tables.idempotency_keys.claim(tx, requests, [request.claim() for request in requests])
    places = [(int(claim.resources[0]), claim.resources[1]) for claim in claimed.replays]
    return claimed.settle(tx, replayed=_find_places(tx, places), new=_add(tx, claimed.new))


def _add(tx: Connection, requests: Sequence[AddStock]) -> list[Item | ShopError]:
    places = list(dict.fromkeys((request.product_id, request.location) for request in requests))
    stock = {(item.product_id, item.location): item for item in _lock_places(tx, places)}
    if absent := [place for place in places if place not in stock]:
        made = _make(tx, _within_limit(tx, absent))
        stock |= {(item.product_id, item.location): item for item in made}
    moment = now(tx)
    outcomes: list[Item | ShopError] = []
    messages = []
    for request in requests:
        item = stock.get((request.product_id, request.location))
        if item is None:
            said = f"product {request.product_id} is at {LOCATIONS_MAX} locations, which is the most"
            outcomes.append(LocationsLimit(request.product_id, said))
            continue
        if item.quantity + request.quantity > ITEM_QUANTITY_MAX:
            outcomes.append(QuantityLimit(item.product_id, item.location, item.quantity))
            continue
        item = replace(item, quantity=item.quantity + request.quantity, version=item.version + 1, updated_at=moment)
        stock[request.product_id, request.location] = item
        messages.append(events.stock_updated(item, moment, request.traceparent))
        outcomes.append(item)
    if stock:
        items.save_counters(tx, stock.values())
    tables.outbox.append(tx, messages)
    return _with_due(tx, outcomes)


def _within_limit(tx: Connection, absent: Sequence[_Place]) -> list[_Place]:
    """Those of the places, in their sequence, that each product has room for.

    Two processes that make items of one product at the same moment don't see each other's: so one may have a few more.
    """
    locations = items.count_locations(tx, {product_id for product_id, _ in absent})
    chosen = []
    for product_id, location in absent:
        if locations.get(product_id, 0) < LOCATIONS_MAX:
            locations[product_id] = locations.get(product_id, 0) + 1
            chosen.append((product_id, location))
    return chosen


def _make(tx: Connection, places: Sequence[_Place]) -> list[Item]:
    """Items of nothing at these places, locked; another process may have made them meanwhile."""
    if not places:
        return []
    moment = now(tx)
    _insert_empty(
        tx,
        [
            {
                "product_id": product_id,
                "location": location,
                "quantity": 0,
                "reserved_quantity": 0,
                "version": 0,
                "created_at": moment,
                "updated_at": moment,
            }
            # Sorted, so that two processes that make the same items wait for each other and do not deadlock.
            for product_id, location in sorted(places)
        ],
    )
    return _lock_places(tx, places)


def set_quantity(tx: Connection, requests: Sequence[SetQuantity]) -> list[Item | ShopError]:
    """Set items to new absolute quantities.

    Refuses with ItemNotFound, VersionMismatch, or BelowReserved when more is reserved than the new quantity, after
    holds past their time have been expired. Emits STOCK_UPDATED per change; no quantity, no change, no event.
    """
    claimed = tables.idempotency_keys.claim(tx, requests, [request.claim() for request in requests])
    item_ids = [int(claim.resources[0]) for claim in claimed.replays]
    return claimed.settle(tx, replayed=get(tx, item_ids), new=_set_quantity(tx, claimed.new))


def _set_quantity(tx: Connection, requests: Sequence[SetQuantity]) -> list[Item | ShopError]:
    # All items of the products, since a hold that has to be expired may draw on several of them.
    products = {row.product_id for row in _find(tx, [{"id": request.item_id} for request in requests])}
    stock = {item.id: item for item in items.lock_products(tx, products)}
    is_contended = _free_up(tx, requests, stock)
    moment = now(tx)
    changed: dict[int, Item] = {}
    outcomes: list[Item | ShopError] = []
    messages = []
    for request in requests:
        item = stock.get(request.item_id)
        if item is None:
            outcomes.append(ItemNotFound(request.item_id))
        elif request.version is not None and request.version != item.version:
            outcomes.append(VersionMismatch(item.id, request.version, item.version))
        elif request.quantity is None:
            outcomes.append(item)
        elif request.quantity < item.reserved_quantity and is_contended:
            outcomes.append(Contention(f"more than {due.DUE_EXPIRED_MAX} holds are past their time; try again"))
        elif request.quantity < item.reserved_quantity:
            outcomes.append(BelowReserved(item.id, request.quantity, item.reserved_quantity))
        else:
            item = replace(item, quantity=request.quantity, version=item.version + 1, updated_at=moment)
            stock[item.id] = changed[item.id] = item
            messages.append(events.stock_updated(item, moment, request.traceparent))
            outcomes.append(item)
    if changed:
        items.save_counters(tx, changed.values())
        tables.outbox.append(tx, messages)
    return _with_due(tx, outcomes)


def _free_up(tx: Connection, requests: Sequence[SetQuantity], stock: dict[int, Item]) -> bool:
    """Expire holds past their time as far as they are in the way; returns whether there were too many of them."""
    need: dict[due.Place, int] = {}
    for request in requests:
        item = stock.get(request.item_id)
        if item is not None and request.quantity is not None and _is_below_reserved(request, item):
            place = (item.product_id, item.location)
            need[place] = max(need.get(place, 0), item.reserved_quantity - request.quantity)
    if not need:
        return False
    _, more = due.expire_to_cover(tx, need, stock, due.DUE_EXPIRED_MAX)
    return more


def _is_below_reserved(request: SetQuantity, item: Item) -> bool:
    asked_for_this = request.version is None or request.version == item.version
    return asked_for_this and request.quantity is not None and request.quantity < item.reserved_quantity


def get(tx: Connection, ids: Sequence[int]) -> list[Item | ShopError]:
    """One outcome per id, in order: the item or ItemNotFound."""
    found = {row.id: items.from_row(row) for row in _find(tx, [{"id": each} for each in set(ids)])}
    return _with_due(tx, [found.get(each) or ItemNotFound(each) for each in ids])


def list_page(tx: Connection, asked: PageRequest[ItemFilter]) -> Page[Item]:
    """A page of items by id."""
    wanted = asked.wanted
    query = select(*items.COLUMNS).order_by(_items.c.id).limit(asked.size + 1)
    if wanted.product_id is not None:
        query = query.where(_items.c.product_id == wanted.product_id)
    if wanted.location is not None:
        query = query.where(_items.c.location == wanted.location)
    if asked.after is not None:
        query = query.where(_items.c.id > asked.after[0])
    page = page_of(tx.execute(query).all(), asked.size, lambda row: (row.id,))
    past = items.due_of_products(tx, [row.product_id for row in page.rows])
    return Page([items.from_row(row, past.get(row.id, 0)) for row in page.rows], page.next_position)


def check(tx: Connection, questions: Sequence[StockQuestion]) -> list[int]:
    """Free units for each question, in order; holds past their time are free. An unknown product has none.

    At most INT64_MAX, which the sum over very many locations could pass.
    """
    products = {question.product_id for question in questions}
    rows = _of_products(tx, [{"product_id": product_id} for product_id in products])
    past = items.due_of_products(tx, products)
    free: dict[tuple[int, str | None], int] = {}
    for item in (items.from_row(row, past.get(row.id, 0)) for row in rows):
        free[item.product_id, item.location] = item.available_quantity
        free[item.product_id, None] = free.get((item.product_id, None), 0) + item.available_quantity
    return [min(free.get((question.product_id, question.location), 0), INT64_MAX) for question in questions]


def _with_due(tx: Connection, outcomes: Sequence[Item | ShopError]) -> list[Item | ShopError]:
    """The items with what is held past its time, which counts as available."""
    past = items.due_of_products(tx, [item.product_id for item in outcomes if isinstance(item, Item)])
    return [
        replace(item, due=past[item.id]) if isinstance(item, Item) and item.id in past else item for item in outcomes
    ]


def _find_places(tx: Connection, places: Sequence[_Place]) -> list[Item | ShopError]:
    """The items at these places; they were made by earlier calls, and items are never deleted."""
    stock = {(item.product_id, item.location): item for item in _lock_places(tx, places)}
    return _with_due(tx, [stock[place] for place in places])


def _lock_places(tx: Connection, places: Sequence[_Place]) -> list[Item]:
    rows = [{"product_id": product_id, "location": location} for product_id, location in places]
    return [items.from_row(row) for row in _lock_by_place(tx, rows)]


_insert_empty = inserting(
    _items,
    "product_id",
    "location",
    "quantity",
    "reserved_quantity",
    "version",
    "created_at",
    "updated_at",
    or_ignore=True,
)
_lock_by_place = Statement(
    lambda given: (
        select(*items.COLUMNS)
        .where(
            among(_items.c.product_id, given.c.product_id),
            tuple_(_items.c.product_id, _items.c.location).in_(select(given.c.product_id, given.c.location)),
        )
        .order_by(_items.c.id)
        .with_for_update(of=_items)
    ),
    product_id=BigInteger(),
    location=Text(),
)
_find = Statement(
    lambda given: select(*items.COLUMNS).where(among(_items.c.id, given.c.id)).order_by(_items.c.id),
    id=BigInteger(),
)
_of_products = Statement(
    lambda given: select(*items.COLUMNS).where(among(_items.c.product_id, given.c.product_id)),
    product_id=BigInteger(),
)
