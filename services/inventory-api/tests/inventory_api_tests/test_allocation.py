"""The allocation of order lines to locations, for any stock and any request."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inventory_api.domain.allocation import Shelf, Shelves, allocate, allocate_by, units_within
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import AllocationPolicy, Item, Line, Strategy
from shop_common.identity.tenant import DEFAULT

NOW = datetime(2024, 1, 15, tzinfo=UTC)
LOCATIONS = "ABCD"

few = st.integers(0, 12)
stocks = st.lists(few, max_size=7)
lines = st.lists(
    st.builds(
        Line,
        product_id=st.integers(1, 3),
        quantity=st.integers(1, 8),
        location=st.one_of(st.none(), st.sampled_from(LOCATIONS)),
    ),
    min_size=1,
    max_size=6,
)
shelved = st.dictionaries(st.tuples(st.integers(1, 3), st.sampled_from(LOCATIONS)), few, max_size=12)


def shelves_of(free: Sequence[int]) -> list[Shelf]:
    return [Shelf(number, f"L{number}", units) for number, units in enumerate(free)]


def stock_of(free: dict[tuple[int, str], int]) -> list[Item]:
    return [
        Item(DEFAULT, number, product, location, units + 3, 3, 1, NOW, NOW)
        for number, ((product, location), units) in enumerate(free.items(), start=1)
    ]


def fewest(free: Sequence[int], quantity: int) -> int:
    """The smallest number of locations that cover the quantity, found by trying all combinations."""
    return next(
        size for size in range(1, len(free) + 1) if any(sum(chosen) >= quantity for chosen in combinations(free, size))
    )


@settings(deadline=None)  # a busy machine must not fail the test
@given(free=stocks, quantity=st.integers(1, 60))
def test_a_line_is_refused_only_if_too_few_units_are_free(free: list[int], quantity: int) -> None:
    assert (allocate(quantity, shelves_of(free)) is None) == (sum(free) < quantity)


@settings(deadline=None)  # a busy machine must not fail the test
@given(free=stocks, quantity=st.integers(1, 60))
@example(free=[5, 5, 5], quantity=10)
def test_allocations_add_up_to_the_request_and_take_only_free_units(free: list[int], quantity: int) -> None:
    parts = allocate(quantity, shelves_of(free)) or []

    assert sum(units for _, units in parts) in ((quantity,) if parts else (0,))
    assert all(0 < units <= shelf.free for shelf, units in parts)
    assert len({shelf.item_id for shelf, _ in parts}) == len(parts)


@settings(deadline=None)  # a busy machine must not fail the test
@given(free=stocks, quantity=st.integers(1, 60))
def test_a_line_is_split_over_the_fewest_locations(free: list[int], quantity: int) -> None:
    parts = allocate(quantity, shelves_of(free))

    if parts is not None:
        assert len(parts) == fewest(free, quantity)


@settings(deadline=None)  # a busy machine must not fail the test
@given(free=stocks, quantity=st.integers(1, 12))
@example(free=[9, 7, 7, 8], quantity=7)
def test_a_line_takes_the_sufficient_location_with_the_fewest_units(free: list[int], quantity: int) -> None:
    covering = [units for units in free if units >= quantity]
    parts = allocate(quantity, shelves_of(free))

    if covering:
        assert parts is not None
        ((shelf, units),) = parts
        assert (units, shelf.free) == (quantity, min(covering))
        assert shelf.item_id == free.index(min(covering))


@settings(deadline=None)  # a busy machine must not fail the test
@given(free=shelved, order_lines=lines)
def test_an_order_takes_each_product_in_full_or_nothing_at_all(
    free: dict[tuple[int, str], int], order_lines: list[Line]
) -> None:
    stock = stock_of(free)
    shelves = Shelves(stock)
    try:
        taken = shelves.take(DEFAULT, order_lines)
    except InsufficientStock:
        assert not fits(free, order_lines)
        taken = {}
    else:
        assert fits(free, order_lines)
        assert list(taken) == list(dict.fromkeys(line.product_id for line in order_lines))
        for product, parts in taken.items():
            assert sum(part.quantity for part in parts) == sum(
                line.quantity for line in order_lines if line.product_id == product
            )
            for location in LOCATIONS:
                named = sum(
                    line.quantity for line in order_lines if (line.product_id, line.location) == (product, location)
                )
                drawn = sum(part.quantity for part in parts if part.location == location)
                assert named <= drawn <= free.get((product, location), 0)

    drawn_from = {part.item_id: part.quantity for parts in taken.values() for part in parts}
    left = {item.id: item.quantity - item.reserved_quantity - drawn_from.get(item.id, 0) for item in stock}
    assert {each: shelf.free for each, shelf in shelves._by_item.items()} == left
    for parts in taken.values():
        shelves.put_back(parts)
    assert [shelf.free for shelf in shelves._by_item.values()] == list(free.values())


def fits(free: dict[tuple[int, str], int], order_lines: list[Line]) -> bool:
    """True if each named location, and each product over all locations, has enough units."""
    stock_keys = {(line.product_id, line.location) for line in order_lines}
    return all(
        sum(line.quantity for line in order_lines if (line.product_id, line.location) == stock_key)
        <= sum(
            units
            for (product, location), units in free.items()
            if stock_key[1] in (None, location) and product == stock_key[0]
        )
        for stock_key in stock_keys
    ) and all(
        sum(line.quantity for line in order_lines if line.product_id == product)
        <= sum(units for key, units in free.items() if key[0] == product)
        for product in {product for product, location in stock_keys if location is None}
    )


def test_the_error_names_the_first_line_that_lacks_stock() -> None:
    shelves = Shelves(stock_of({(1, "A"): 5, (2, "A"): 1, (3, "A"): 0}))

    with pytest.raises(InsufficientStock) as refused:
        shelves.take(DEFAULT, [Line(1, 5), Line(3, 1), Line(2, 9)])

    assert (refused.value.product_id, refused.value.requested, refused.value.available) == (3, 1, 0)


# --- policies ---

policies = st.builds(
    AllocationPolicy,
    strategy=st.sampled_from(Strategy),
    locations=st.permutations(LOCATIONS).map(tuple),
    max_locations=st.one_of(st.none(), st.integers(1, 4)),
)
prioritized = st.lists(st.tuples(few, st.integers(0, 2)), max_size=len(LOCATIONS))


def group_of(policy: AllocationPolicy, shelf: Shelf) -> int:
    """The number of the shelf's group: groups with a smaller number give their units first."""
    match policy.strategy:
        case Strategy.FEWEST:
            return 0
        case Strategy.PRIORITY:
            return -shelf.priority
        case Strategy.AS_GIVEN:
            return policy.locations.index(shelf.location)


def units_by_group(
    policy: AllocationPolicy, shelves: Sequence[Shelf], chosen: Sequence[Shelf], quantity: int
) -> list[int]:
    """How many units each group gives, first group first, if the quantity is taken from the chosen shelves."""
    units = []
    for group in sorted({group_of(policy, shelf) for shelf in shelves}):
        part = min(quantity, sum(shelf.free for shelf in chosen if group_of(policy, shelf) == group))
        units.append(part)
        quantity -= part
    return units


@settings(deadline=None)  # a busy machine must not fail the test
@given(free=prioritized, policy=policies, quantity=st.integers(1, 40))
@example(free=[(1, 2), (1, 2), (1, 2), (9, 0)], policy=AllocationPolicy(Strategy.PRIORITY, max_locations=2), quantity=3)
def test_a_policy_chooses_as_a_search_of_all_combinations_does(
    free: list[tuple[int, int]], policy: AllocationPolicy, quantity: int
) -> None:
    shelves = [
        Shelf(number, location, units, priority)
        for number, (location, (units, priority)) in enumerate(zip(LOCATIONS, free, strict=False))
    ]
    most = policy.max_locations or len(shelves)
    possible = [
        chosen
        for size in range(1, most + 1)
        for chosen in combinations(shelves, size)
        if sum(shelf.free for shelf in chosen) >= quantity
    ]

    parts = allocate_by(policy, quantity, shelves)

    assert units_within(policy, shelves) == max(
        (sum(shelf.free for shelf in chosen) for size in range(most + 1) for chosen in combinations(shelves, size)),
        default=0,
    )
    if not possible:
        assert parts is None
        return
    assert parts is not None
    assert sum(units for _, units in parts) == quantity
    assert all(0 < units <= shelf.free for shelf, units in parts)
    taken = [shelf for shelf, _ in parts]
    best = max(units_by_group(policy, shelves, chosen, quantity) for chosen in possible)
    assert units_by_group(policy, shelves, taken, quantity) == best
    assert [
        sum(units for shelf, units in parts if group_of(policy, shelf) == group)
        for group in sorted({group_of(policy, shelf) for shelf in shelves})
    ] == best
    assert len(taken) == min(
        len(chosen) for chosen in possible if units_by_group(policy, shelves, chosen, quantity) == best
    )


@settings(deadline=None)  # a busy machine must not fail the test
@given(free=stocks, quantity=st.integers(1, 60))
def test_without_limits_and_priorities_the_policies_choose_like_no_policy(free: list[int], quantity: int) -> None:
    for strategy in (Strategy.FEWEST, Strategy.PRIORITY):
        shelves = shelves_of(free)
        assert allocate_by(AllocationPolicy(strategy), quantity, shelves) == allocate(quantity, shelves)


def test_lines_with_policies_take_their_units_after_lines_with_locations() -> None:
    shelves = Shelves(stock_of({(1, "A"): 5, (1, "B"): 5}))
    only_a = AllocationPolicy(locations=("A",))

    taken = shelves.take(DEFAULT, [Line(1, 4), Line(1, 2, policy=only_a), Line(1, 3, "A")])

    assert {part.location: part.quantity for part in taken[1]} == {"A": 5, "B": 4}


def test_a_refusal_states_the_most_units_that_the_policy_allows() -> None:
    shelves = Shelves(stock_of({(1, "A"): 5, (1, "B"): 4, (1, "C"): 3}))

    with pytest.raises(InsufficientStock) as refused:
        shelves.take(DEFAULT, [Line(1, 9, policy=AllocationPolicy(excluded_locations=("A",), max_locations=1))])

    assert (refused.value.available, refused.value.location) == (4, None)
