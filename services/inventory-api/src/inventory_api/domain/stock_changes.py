"""Decides the changes of BatchChangeStock. Needs no database."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from inventory_api.domain.commands import ChangeStock, StockChange
from inventory_api.domain.errors import (
    BelowReserved,
    InsufficientStock,
    InsufficientWithheld,
    ItemNotFound,
    LocationsLimit,
    QuantityLimit,
    VersionMismatch,
    WithholdingsLimit,
)
from inventory_api.domain.model import ITEM_QUANTITY_MAX, Item, StockKey, units_available
from inventory_api.domain.movements import MovementKind, QuantityChange
from inventory_api.domain.withholding import with_withheld
from shop_common.errors import ShopError


@dataclass(frozen=True, slots=True)
class ChangedStock:
    """The result of a change: the item, and for a move also the item to which the units moved."""

    item: Item
    target: Item | None = None


def decide(
    request: ChangeStock, change: StockChange, stock: Mapping[StockKey, Item], now: datetime
) -> list[QuantityChange] | ShopError:
    """Return the change of the item, for a move also that of its target, or the error that refuses the change.

    `stock` has the locked items after the earlier changes, with their withholdings if this change is WITHHELD. An item
    is missing from `stock` if it does not exist and was not created.
    """
    item = stock.get(request.stock_key(change))
    if item is None:
        if not change.creates_item:
            return ItemNotFound(product_id=change.product_id, location=change.location)
        return LocationsLimit.of_product(change.product_id)
    if change.version is not None and change.version != item.version:
        return VersionMismatch(item.id, change.version, item.version)
    if change.kind is MovementKind.WITHHELD:
        return _withhold(request, change, item, now)
    return _change_quantity(request, change, item, stock, now)


def _change_quantity(
    request: ChangeStock, change: StockChange, item: Item, stock: Mapping[StockKey, Item], now: datetime
) -> list[QuantityChange] | ShopError:
    quantity = _after(change, item.quantity)
    if quantity < item.bound_quantity:
        if change.kind is not MovementKind.MOVED:
            return BelowReserved(item, quantity)
        return InsufficientStock(item.product_id, change.quantity, _takeable(item), item.location)
    after = [(item, quantity)]
    target_key = request.target_key(change)
    if target_key is not None:
        target = stock.get(target_key)
        if target is None:
            return LocationsLimit.of_product(change.product_id)
        after.append((target, target.quantity + change.quantity))
    for each, changed_quantity in after:
        if changed_quantity > ITEM_QUANTITY_MAX:
            return QuantityLimit(each.product_id, each.location, each.quantity)
    return [
        QuantityChange(
            replace(each, quantity=changed_quantity, version=each.version + 1, updated_at=now),
            change.kind,
            changed_quantity - each.quantity,
            request.cause,
            reason=change.reason,
            reference=change.reference,
            occurred_at=change.occurred_at,
        )
        for each, changed_quantity in after
    ]


def missing_units(change: StockChange, item: Item) -> int:
    """Return how many reserved units would have to become free so that the item can have the new quantity."""
    return item.bound_quantity - _after(change, item.quantity)


def may_release(request: ChangeStock, changes: Iterable[StockChange], stock: Mapping[StockKey, Item]) -> bool:
    """Return whether a change with `release_shortfall` takes units from an item that has reserved ones.

    Earlier changes do not count, because they may be refused.
    """
    return any(
        item.reserved_quantity and _after(change, item.quantity) < item.quantity
        for change in changes
        if change.release_shortfall and (item := stock.get(request.stock_key(change))) is not None
    )


def _withhold(request: ChangeStock, change: StockChange, item: Item, now: datetime) -> list[QuantityChange] | ShopError:
    withheld = dict(item.withholdings).get(change.reason, 0)
    if change.quantity > _takeable(item):
        return InsufficientStock(item.product_id, change.quantity, _takeable(item), item.location)
    if withheld + change.quantity < 0:
        return InsufficientWithheld(item, change.reason, -change.quantity, withheld)
    changed = with_withheld(item, change.reason, change.quantity)
    if isinstance(changed, WithholdingsLimit):
        return changed
    return [
        QuantityChange(
            replace(changed, version=item.version + 1, updated_at=now),
            change.kind,
            0,
            request.cause,
            reason=change.reason,
            reference=change.reference,
            occurred_at=change.occurred_at,
            withheld=change.quantity,
        )
    ]


def _takeable(item: Item) -> int:
    """Return the units that can be moved or withheld, also at an inactive location."""
    return units_available(item.quantity, item.withheld_quantity, item.reserved_quantity, is_active=True)


def shortage_of_changes(
    request: ChangeStock, changes: Iterable[StockChange], stock: Mapping[StockKey, Item]
) -> dict[StockKey, int]:
    """Return how many reserved units would have to become free so that no change lacks units."""
    quantities: dict[StockKey, int] = {}
    withheld: dict[StockKey, int] = {}
    shortage: dict[StockKey, int] = {}
    for change in changes:
        key = request.stock_key(change)
        item = stock.get(key)
        if item is None or change.version not in (None, item.version):
            continue
        quantity = quantities[key] = _after(change, quantities.get(key, item.quantity))
        units = withheld.get(key, item.withheld_quantity)
        if change.kind is MovementKind.WITHHELD:
            # Units to give back do not count, because giving them back may be refused.
            units = withheld[key] = units + max(0, change.quantity)
        target_key = request.target_key(change)
        if target_key is not None and target_key in stock:
            quantities[target_key] = quantities.get(target_key, stock[target_key].quantity) + change.quantity
        # At most the reserved units can become free. If the changes need more, some of them are refused in any case.
        missing = min(item.reserved_quantity + units - quantity, item.reserved_quantity)
        if missing > 0:
            shortage[key] = max(shortage.get(key, 0), missing)
    return shortage


def _after(change: StockChange, quantity: int) -> int:
    """Return the quantity of an item after the change, from its quantity before the change."""
    if change.kind is MovementKind.WITHHELD:
        return quantity
    if change.kind is MovementKind.COUNTED:
        return change.quantity
    return quantity - change.quantity if change.kind is MovementKind.MOVED else quantity + change.quantity
