"""Reads items with their due units, for GetInventoryItem and ListInventoryItems."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from inventory_api.domain.commands import ItemFilter, PastItemQuestion
from inventory_api.domain.errors import ItemNotFound
from inventory_api.domain.model import Item, ItemKey, PastItem
from inventory_api.store import items, movements, withholdings
from inventory_api.store.reservations import due
from shop_common.api.paging import Page, PageRequest, page_of
from shop_common.db.sql import now
from shop_common.errors import ShopError


def get_items(tx: Connection, keys: Sequence[ItemKey]) -> list[Item | ShopError]:
    """Return one outcome per key, in order: the item or ItemNotFound."""
    stored = items.load(tx, keys)
    found = {item.id: item for item in withholdings.with_withholdings(tx, list(stored.values()))}
    return with_due(tx, [found[key.id] if key in stored else ItemNotFound(key.id) for key in keys])


def list_items(tx: Connection, request: PageRequest[ItemFilter]) -> Page[Item]:
    """Return a page of a tenant's items, sorted by id."""
    page = _stored_page(tx, request)
    due_units = due.units_by_item(tx, [item.product for item in page.rows])
    found = withholdings.with_withholdings(tx, page.rows)
    return Page([replace(item, due=due_units.get(item.id, 0)) for item in found], page.next_position)


def get_past_item(tx: Connection, question: PastItemQuestion) -> PastItem:
    """Return the item as of the time. Raises ItemNotFound, also if the item had no movement until then."""
    item = items.load(tx, [question.key]).get(question.key)
    past = None if item is None else movements.quantities_at(tx, [item.id], question.as_of).get(item.id)
    if item is None or past is None:
        raise ItemNotFound(question.key.id)
    return PastItem(item, *past)


def list_past_items(tx: Connection, request: PageRequest[ItemFilter]) -> Page[PastItem]:
    """Return a page of a tenant's items as of the time of the filter, or as of now, sorted by id.

    Items without a movement until then are left out, so a page may have fewer items than requested, or none, even if it
    is not the last one.
    """
    page = _stored_page(tx, request)
    as_of = request.filter.as_of or now(tx)
    quantities = movements.quantities_at(tx, [item.id for item in page.rows], as_of)
    rows = [PastItem(item, *quantities[item.id]) for item in page.rows if item.id in quantities]
    return Page(rows, page.next_position)


def _stored_page(tx: Connection, request: PageRequest[ItemFilter]) -> Page[Item]:
    """Return a page of a tenant's items, sorted by id, without their due units."""
    stored = items.load_page(
        tx,
        request.filter.tenant,
        product_id=request.filter.product_id,
        location=request.filter.location,
        after_id=int(request.after[0]) if request.after else None,
        limit=request.size + 1,
    )
    return page_of(stored, request.size, lambda item: (item.id,))


def with_due(tx: Connection, outcomes: Sequence[Item | ShopError]) -> list[Item | ShopError]:
    """Return the outcomes, with `due` set in each item: its units of due reservations, which count as available."""
    due_units = due.units_by_item(tx, [item.product for item in outcomes if isinstance(item, Item)])
    return [
        replace(item, due=due_units[item.id]) if isinstance(item, Item) and item.id in due_units else item
        for item in outcomes
    ]
