"""Decides the changes of BatchChangeStock. Needs no database."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from inventory_api.domain.commands import ChangeStock, StockChange
from inventory_api.domain.errors import BelowReserved, ItemNotFound, LocationsLimit, QuantityLimit, VersionMismatch
from inventory_api.domain.model import ITEM_QUANTITY_MAX, LOCATIONS_MAX, Item, StockKey
from inventory_api.domain.movements import MovementKind, QuantityChange
from shop_common.errors import ShopError


def decide(
    request: ChangeStock, change: StockChange, stock: Mapping[StockKey, Item], now: datetime
) -> QuantityChange | ShopError:
    """Return the change of the item, or the error that refuses it.

    `stock` has the locked items as the changes before this one leave them. An item is missing from `stock` if it does
    not exist and was not created.
    """
    item = stock.get(request.stock_key(change))
    if item is None:
        if not change.creates_item:
            return ItemNotFound(product_id=change.product_id, location=change.location)
        message = f"product {change.product_id} is already at {LOCATIONS_MAX} locations, the maximum"
        return LocationsLimit(change.product_id, message)
    if change.version is not None and change.version != item.version:
        return VersionMismatch(item.id, change.version, item.version)
    quantity = _after(change, item.quantity)
    if quantity < item.reserved_quantity:
        return BelowReserved(item.id, quantity, item.reserved_quantity)
    if quantity > ITEM_QUANTITY_MAX:
        return QuantityLimit(item.product_id, item.location, item.quantity)
    return QuantityChange(
        replace(item, quantity=quantity, version=item.version + 1, updated_at=now),
        change.kind,
        quantity - item.quantity,
        request.cause,
        reason=change.reason,
        reference=change.reference,
        occurred_at=change.occurred_at,
    )


def shortage_of_changes(
    request: ChangeStock, changes: Iterable[StockChange], stock: Mapping[StockKey, Item]
) -> dict[StockKey, int]:
    """Return how many reserved units would have to become free so that no change is refused with BelowReserved."""
    quantities: dict[StockKey, int] = {}
    shortage: dict[StockKey, int] = {}
    for change in changes:
        key = request.stock_key(change)
        item = stock.get(key)
        if item is None or change.version not in (None, item.version):
            continue
        quantity = quantities[key] = _after(change, quantities.get(key, item.quantity))
        if quantity < item.reserved_quantity:
            shortage[key] = max(shortage.get(key, 0), item.reserved_quantity - quantity)
    return shortage


def _after(change: StockChange, quantity: int) -> int:
    """Return the quantity of an item after the change, from its quantity before the change."""
    return change.quantity if change.kind is MovementKind.COUNTED else quantity + change.quantity
