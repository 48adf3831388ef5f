"""The allocation of order lines to locations, for any stock and any request."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inventory_api.domain.allocation import Shelf, Shelves, allocate
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import Item, Line
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
