"""Decides from which locations the units of an order line are taken. Needs no database."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inventory_api.domain.errors import InsufficientStock, LocationsLimit
from inventory_api.domain.model import LOCATIONS_MAX, Allocation, Item, Line, ProductKey
from shop_common.errors import Refused


@dataclass(slots=True)
class Shelf:
    """The free units of one item, while a batch is decided."""

    item_id: int
    location: str
    free: int


class Shelves:
    """The free units of some products. `take` takes units for an order, and `put_back` makes them free again."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._by_product: dict[ProductKey, list[Shelf]] = {}
        self._by_item: dict[int, Shelf] = {}
        for item in items:
            shelf = Shelf(item.id, item.location, item.free_quantity)
            self._by_product.setdefault(item.product, []).append(shelf)
            self._by_item[item.id] = shelf

    def take(self, tenant: str, lines: Sequence[Line]) -> dict[int, tuple[Allocation, ...]]:
        """Take the units of all lines from the tenant's stock, or of none. Returns the allocations by product id.

        Lines of the same product and location are added up first. Raises InsufficientStock for the first product,
        in the order of the lines, that has too few free units, and LocationsLimit if a reservation would need more
        than LOCATIONS_MAX locations.
        """
        taken: dict[int, tuple[Allocation, ...]] = {}
        try:
            for product_id, quantities in _quantities_by_product(lines).items():
                taken[product_id] = self._take_product(ProductKey(tenant, product_id), quantities)
        except Refused:
            self.put_back(allocation for allocations in taken.values() for allocation in allocations)
            raise
        return taken

    def put_back(self, allocations: Iterable[Allocation]) -> None:
        """Make the units of these allocations free again."""
        for allocation in allocations:
            self._by_item[allocation.item_id].free += allocation.quantity

    def _take_product(self, product: ProductKey, quantities: dict[str | None, int]) -> tuple[Allocation, ...]:
        shelves = self._by_product.get(product, ())
        taken: dict[int, int] = {}
        # Lines that name a location come first, because they cannot take their units from another location.
        for location, quantity in sorted(quantities.items(), key=lambda entry: entry[0] is None):
            candidates = shelves if location is None else [s for s in shelves if s.location == location]
            parts = allocate(quantity, candidates)
            if parts is None:
                available = sum(shelf.free for shelf in candidates)
                self._undo(taken)
                raise InsufficientStock(product.product_id, quantity, available, location)
            for shelf, part in parts:
                shelf.free -= part
                taken[shelf.item_id] = taken.get(shelf.item_id, 0) + part
        if len(taken) > LOCATIONS_MAX:
            self._undo(taken)
            raise LocationsLimit(
                product.product_id,
                f"product {product.product_id}: a reservation takes units from at most {LOCATIONS_MAX} locations",
            )
        return tuple(
            Allocation(item_id, self._by_item[item_id].location, quantity) for item_id, quantity in taken.items()
        )

    def _undo(self, taken: dict[int, int]) -> None:
        for item_id, quantity in taken.items():
            self._by_item[item_id].free += quantity


def allocate(quantity: int, shelves: Sequence[Shelf]) -> list[tuple[Shelf, int]] | None:
    """Choose the fewest shelves that together have `quantity` free units, and how many units to take from each.

    Returns None if all shelves together have too few. If single shelves have enough, the one of them with the fewest
    free units is chosen, so that the others stay full. Otherwise the shelves with the most free units come first. If
    two shelves have the same number of free units, the smaller item id comes first.
    """
    if len(shelves) == 1:  # by far the most common case
        return [(shelves[0], quantity)] if shelves[0].free >= quantity else None
    sufficient = [shelf for shelf in shelves if shelf.free >= quantity]
    if sufficient:
        return [(min(sufficient, key=lambda shelf: (shelf.free, shelf.item_id)), quantity)]
    parts: list[tuple[Shelf, int]] = []
    for shelf in sorted(shelves, key=lambda shelf: (-shelf.free, shelf.item_id)):
        part = min(shelf.free, quantity)
        if part <= 0:
            break
        parts.append((shelf, part))
        quantity -= part
        if not quantity:
            return parts
    return None


def _quantities_by_product(lines: Sequence[Line]) -> dict[int, dict[str | None, int]]:
    quantities: dict[int, dict[str | None, int]] = {}
    for line in lines:
        by_location = quantities.setdefault(line.product_id, {})
        by_location[line.location] = by_location.get(line.location, 0) + line.quantity
    return quantities
