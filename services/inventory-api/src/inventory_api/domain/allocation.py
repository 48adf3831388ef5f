"""Decides from which locations the units of an order line are taken. Needs no database."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from inventory_api.domain.errors import InsufficientStock, LocationsLimit
from inventory_api.domain.model import (
    LOCATIONS_MAX,
    Allocation,
    AllocationPolicy,
    Item,
    Line,
    ProductKey,
    Strategy,
)
from shop_common.errors import Refused

Source = str | AllocationPolicy | None
"""Where a line may take its units: at one location, where the policy allows it, or anywhere."""

Parts = list[tuple["Shelf", int]]
"""The shelves of an allocation, and the units to take from each."""


@dataclass(slots=True)
class Shelf:
    """The free units of one item, while a batch is decided."""

    item_id: int
    location: str
    free: int
    priority: int = 0


class Shelves:
    """The free units of some products. `take` takes units for an order, and `put_back` makes them free again."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._by_product: dict[ProductKey, list[Shelf]] = {}
        self._by_item: dict[int, Shelf] = {}
        for item in items:
            shelf = Shelf(item.id, item.location, item.free_quantity, item.priority)
            self._by_product.setdefault(item.product, []).append(shelf)  # failpoint: shelf-of-tenant
            self._by_item[item.id] = shelf

    def take(self, tenant: str, lines: Sequence[Line]) -> dict[int, tuple[Allocation, ...]]:
        """Take the units of all lines from the tenant's stock, or of none. Returns the allocations by product id.

        Lines of the same product that may take their units from the same locations are added up first. Raises
        InsufficientStock for the first product, in the order of the lines, that has too few free units, and
        LocationsLimit if a reservation would need more than LOCATIONS_MAX locations.
        """
        taken: dict[int, tuple[Allocation, ...]] = {}
        try:
            for product_id, quantities in _quantities_by_product(lines).items():
                taken[product_id] = self._take_product(ProductKey(tenant, product_id), quantities)
        except Refused:
            self._put_back_all(taken)
            raise
        return taken

    def take_free(self, tenant: str, lines: Sequence[Line]) -> dict[int, tuple[Allocation, ...]]:
        """Take as many units of each line as are free. Returns the allocations by product id.

        Products of which nothing is free are left out. Raises InsufficientStock for the first product if nothing is
        free of any product, and LocationsLimit as `take` does.
        """
        taken: dict[int, tuple[Allocation, ...]] = {}
        refusal: InsufficientStock | None = None
        try:
            for product_id, quantities in _quantities_by_product(lines).items():
                try:
                    taken[product_id] = self._take_product(ProductKey(tenant, product_id), quantities, in_part=True)
                except InsufficientStock as error:
                    refusal = refusal or error
            if refusal is not None and not taken:
                raise refusal
        except Refused:
            self._put_back_all(taken)
            raise
        return taken

    def _put_back_all(self, taken: Mapping[int, tuple[Allocation, ...]]) -> None:
        self.put_back(allocation for allocations in taken.values() for allocation in allocations)

    def put_back(self, allocations: Iterable[Allocation]) -> None:
        """Make the units of these allocations free again."""
        for allocation in allocations:
            self._by_item[allocation.item_id].free += allocation.quantity

    def _take_product(
        self, product: ProductKey, quantities: dict[Source, int], *, in_part: bool = False
    ) -> tuple[Allocation, ...]:
        shelves = self._by_product.get(product, ())  # failpoint: shelves-of-tenant
        taken: dict[int, int] = {}
        refusal: InsufficientStock | None = None
        # Lines with less choice come first, because they cannot take their units from another location.
        for source, quantity in sorted(quantities.items(), key=_choice):
            candidates = shelves if source is None else [each for each in shelves if _may_take(source, each)]
            parts = _parts(source, quantity, candidates)
            if parts is None:
                available = units_within(source, candidates)
                location = source if isinstance(source, str) else None
                refusal = refusal or InsufficientStock(product.product_id, quantity, available, location)
                if not in_part:
                    break
                parts = (_parts(source, available, candidates) if available else None) or []
            for shelf, part in parts:
                shelf.free -= part
                taken[shelf.item_id] = taken.get(shelf.item_id, 0) + part
        if refusal is not None and not (in_part and taken):
            self._undo(taken)
            raise refusal
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


def allocate(quantity: int, shelves: Sequence[Shelf]) -> Parts | None:
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
    parts: Parts = []
    for shelf in _fullest_first(shelves):
        part = min(shelf.free, quantity)
        if part <= 0:
            break
        parts.append((shelf, part))
        quantity -= part
        if not quantity:
            return parts
    return None


def allocate_by(policy: AllocationPolicy, quantity: int, shelves: Sequence[Shelf]) -> Parts | None:
    """Choose shelves as the policy says, and how many units to take from each. The policy allows all of `shelves`.

    The strategy divides the shelves into groups. The first group gives as many units as it can, then the second group,
    and so on. Within the last group that is needed, `allocate` chooses. If `max_locations` forces a choice, an earlier
    group gives fewer units only if the whole quantity could not be taken otherwise. Returns None if the quantity cannot
    be taken from so few shelves.
    """
    slots = policy.max_locations or LOCATIONS_MAX
    groups = _groups(policy, shelves)
    taken: Parts = []
    for index, group in enumerate(groups):
        fewest = allocate(quantity, group)
        if fewest is not None and len(fewest) <= slots:
            return taken + fewest
        later = _fullest_first([shelf for each in groups[index + 1 :] for shelf in each])
        for count in range(min(slots, len(group)), -1, -1):
            units = sum(shelf.free for shelf in group[:count])
            if units < quantity <= units + sum(shelf.free for shelf in later[: slots - count]):
                break
        else:
            return None
        taken += [(shelf, shelf.free) for shelf in group[:count]]
        quantity -= units
        slots -= count
    return None


def units_within(source: Source, shelves: Sequence[Shelf]) -> int:
    """Return the most units that can be taken from these shelves, all of which are allowed."""
    if isinstance(source, AllocationPolicy) and source.max_locations is not None:
        return sum(shelf.free for shelf in _fullest_first(shelves)[: source.max_locations])
    return sum(shelf.free for shelf in shelves)


def _parts(source: Source, quantity: int, candidates: Sequence[Shelf]) -> Parts | None:
    if isinstance(source, AllocationPolicy):
        return allocate_by(source, quantity, candidates)
    return allocate(quantity, candidates)


def _may_take(source: str | AllocationPolicy, shelf: Shelf) -> bool:
    return shelf.location == source if isinstance(source, str) else source.allows(shelf.location)


def _choice(entry: tuple[Source, int]) -> int:
    source, _ = entry
    return 2 if source is None else 0 if isinstance(source, str) else 1


def _groups(policy: AllocationPolicy, shelves: Sequence[Shelf]) -> list[list[Shelf]]:
    """Divide the shelves that have free units into the groups of the strategy. Within a group, the fullest is first."""
    stocked = _fullest_first([shelf for shelf in shelves if shelf.free > 0])
    match policy.strategy:
        case Strategy.FEWEST:
            return [stocked] if stocked else []
        case Strategy.PRIORITY:
            stocked.sort(key=lambda shelf: -shelf.priority)
            return [list(group) for _, group in groupby(stocked, key=lambda shelf: shelf.priority)]
        case Strategy.AS_GIVEN:
            position = {location: index for index, location in enumerate(policy.locations)}
            return [[shelf] for shelf in sorted(stocked, key=lambda shelf: position[shelf.location])]


def _fullest_first(shelves: Sequence[Shelf]) -> list[Shelf]:
    return sorted(shelves, key=lambda shelf: (-shelf.free, shelf.item_id))


def _quantities_by_product(lines: Sequence[Line]) -> dict[int, dict[Source, int]]:
    quantities: dict[int, dict[Source, int]] = {}
    for line in lines:
        by_source = quantities.setdefault(line.product_id, {})
        source = line.location if line.policy is None else line.policy
        by_source[source] = by_source.get(source, 0) + line.quantity
    return quantities
