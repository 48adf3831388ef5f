"""From which locations a line is taken. Pure: numbers in, numbers out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inventory_api.domain.model import LOCATIONS_MAX, Allocation, InsufficientStock, Item, Line, LocationsLimit
from shop_common.errors import Refused


@dataclass(slots=True)
class Shelf:
    """What is free of one item, while a batch is decided."""

    item_id: int
    location: str
    free: int


class Shelves:
    """The free stock of some products. `take` draws on it; `put_back` undoes."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._of_product: dict[int, list[Shelf]] = {}
        self._by_item: dict[int, Shelf] = {}
        for item in items:
            shelf = Shelf(item.id, item.location, item.quantity - item.reserved_quantity)
            self._of_product.setdefault(item.product_id, []).append(shelf)
            self._by_item[item.id] = shelf

    def take(self, lines: Sequence[Line]) -> dict[int, tuple[Allocation, ...]]:
        """Draw all lines or none; returns the allocations of each product.

        Lines of one product at one location are summed before they are checked. Raises InsufficientStock for
        the first product, in the order of the lines, of which there is too little, or LocationsLimit when it is in too
        small parts.
        """
        taken: dict[int, tuple[Allocation, ...]] = {}
        try:
            for product_id, wanted in _by_product(lines).items():
                taken[product_id] = self._take_product(product_id, wanted)
        except Refused:
            self.put_back(allocation for drawn in taken.values() for allocation in drawn)
            raise
        return taken

    def put_back(self, allocations: Iterable[Allocation]) -> None:
        """Undo: what was drawn, or what a hold past its time gives up, is free."""
        for allocation in allocations:
            self._by_item[allocation.item_id].free += allocation.quantity

    def _take_product(self, product_id: int, wanted: dict[str | None, int]) -> tuple[Allocation, ...]:
        shelves = self._of_product.get(product_id, ())
        drawn: dict[int, int] = {}
        # Lines that name a location come first: they have no choice.
        for location, quantity in sorted(wanted.items(), key=lambda want: want[0] is None):
            candidates = shelves if location is None else [s for s in shelves if s.location == location]
            parts = allocate(quantity, candidates)
            if parts is None:
                available = sum(shelf.free for shelf in candidates)
                self._undo(drawn)
                raise InsufficientStock(product_id, quantity, available, location)
            for shelf, part in parts:
                shelf.free -= part
                drawn[shelf.item_id] = drawn.get(shelf.item_id, 0) + part
        if len(drawn) > LOCATIONS_MAX:
            self._undo(drawn)
            raise LocationsLimit(
                product_id, f"product {product_id}: a reservation draws on at most {LOCATIONS_MAX} locations"
            )
        return tuple(
            Allocation(item_id, self._by_item[item_id].location, quantity) for item_id, quantity in drawn.items()
        )

    def _undo(self, drawn: dict[int, int]) -> None:
        for item_id, quantity in drawn.items():
            self._by_item[item_id].free += quantity


def allocate(quantity: int, shelves: Sequence[Shelf]) -> list[tuple[Shelf, int]] | None:
    """So many units from the fewest shelves, or None when there are not so many.

    One shelf that has them all, if any: the one with the least left over, so that large stocks stay whole. Else
    the largest first. Ties go to the smaller item id.
    """
    if len(shelves) == 1:  # by far the most common
        return [(shelves[0], quantity)] if shelves[0].free >= quantity else None
    whole = [shelf for shelf in shelves if shelf.free >= quantity]
    if whole:
        return [(min(whole, key=lambda shelf: (shelf.free, shelf.item_id)), quantity)]
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


def _by_product(lines: Sequence[Line]) -> dict[int, dict[str | None, int]]:
    wanted: dict[int, dict[str | None, int]] = {}
    for line in lines:
        of_product = wanted.setdefault(line.product_id, {})
        of_product[line.location] = of_product.get(line.location, 0) + line.quantity
    return wanted
