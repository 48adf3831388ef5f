"""The most important guarantee: each unit is sold once, and every unit is accounted for."""

import pytest

from shop_common.errors import Refused, ShopError
from shop_protos.order.v1 import order_pb2 as orders
from tests.e2e.shop_driver import (
    CANCELLED,
    CONFIRMED,
    PENDING,
    PROCESSING,
    SHIPPED,
    ShopDriver,
    call_concurrently,
    reason_counts,
    succeeded,
)


def test_one_of_100_concurrent_reservations_gets_the_last_unit(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)

    outcomes = call_concurrently(100, lambda _: shop.reserve(product, 1))

    assert len(succeeded(outcomes)) == 1
    assert reason_counts(outcomes) == {"INSUFFICIENT_STOCK": 99}
    assert shop.available(product) == 0
    shop.assert_consistent(product, stocked=1)


def test_one_of_100_concurrent_orders_gets_the_last_unit(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)

    outcomes = call_concurrently(100, lambda number: shop.create_order((product, 1), user_id=number + 1))

    assert len(succeeded(outcomes)) == 1
    assert reason_counts(outcomes) == {"INSUFFICIENT_STOCK": 99}
    shop.assert_consistent(product, stocked=1)


def test_of_50_concurrent_orders_of_one_buyer_two_are_within_the_limit(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=100)

    outcomes = call_concurrently(50, lambda _: shop.create_order((product, 1), user_id=product, buyer_limit=2))

    first, second = succeeded(outcomes)
    assert reason_counts(outcomes) == {"BUYER_LIMIT_EXCEEDED": 48}
    shop.eventually(lambda: shop.available(product) == 98)
    # A cancelled order makes room for the next one.
    shop.change_status(first.id, CANCELLED)
    third = shop.create_order((product, 1), user_id=product, buyer_limit=2)
    # Units that have shipped still count for the limit.
    shop.change_status(second.id, CONFIRMED, PROCESSING, SHIPPED)
    with pytest.raises(Refused) as refusal:
        shop.create_order((product, 1), user_id=product, buyer_limit=2)
    assert refusal.value.metadata() == {"product_id": str(product), "limit": "2", "bought": "2", "requested": "1"}
    assert shop.order(third.id).status == PENDING
    shop.eventually(lambda: shop.on_hand(product) == 99 and shop.available(product) == 98)
    shop.assert_consistent(product, stocked=100)


def test_an_order_refused_for_one_line_reserves_nothing_for_the_others(shop: ShopDriver) -> None:
    plenty, scarce = shop.stocked_product(units=10), shop.stocked_product(units=1)

    with pytest.raises(Refused) as refusal:
        shop.create_order((plenty, 5), (scarce, 2))

    assert refusal.value.metadata() == {"product_id": str(scarce), "requested": "2", "available": "1"}
    assert shop.available(plenty) == 10


def test_two_lines_of_one_product_are_summed(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=10)

    with pytest.raises(ShopError) as refusal:
        shop.create_order((product, 6), (product, 5))
    assert refusal.value.metadata()["requested"] == "11"

    order = shop.create_order((product, 6), (product, 4))
    assert [item.quantity for item in order.items] == [6, 4]
    assert [reservation.quantity for reservation in shop.reservations(product)] == [10]


def test_the_allocations_of_a_reservation_add_up_to_its_quantity(shop: ShopDriver) -> None:
    product = shop.stocked_product(NORTH=4, SOUTH=3, WEST=2)

    reservation = shop.reserve(product, 8)

    assert {part.location: part.quantity for part in reservation.allocations} == {"NORTH": 4, "SOUTH": 3, "WEST": 1}
    shop.assert_consistent(product, stocked=9)


def test_concurrent_orders_of_two_products_in_either_order_sell_exactly_the_stock(shop: ShopDriver) -> None:
    one, two = shop.stocked_product(units=30), shop.stocked_product(NORTH=20, SOUTH=10)

    outcomes = call_concurrently(
        60,
        lambda number: shop.create_order((one, 1), (two, 1)) if number % 2 else shop.create_order((two, 1), (one, 1)),
    )

    assert len(succeeded(outcomes)) == 30
    assert shop.available(one) == shop.available(two) == 0
    shop.assert_consistent(one, stocked=30)
    shop.assert_consistent(two, stocked=30)


def test_a_change_and_another_buyer_want_the_last_unit_at_the_same_moment(shop: ShopDriver) -> None:
    for _ in range(100):
        product = shop.stocked_product(units=3)
        order = shop.create_order((product, 2))
        order = shop.change_status(order.id, CONFIRMED)
        (kept,) = shop.reservations(product)

        def want(number: int, product: int = product, order: orders.Order = order) -> orders.Order:
            if number:
                return shop.create_order((product, 1))
            return shop.change_order(order, {order.items[0].id: 3})

        outcomes = call_concurrently(2, want)

        assert len(succeeded(outcomes)) == 1
        assert reason_counts(outcomes) == {"INSUFFICIENT_STOCK": 1}
        has_won = not isinstance(outcomes[0], ShopError)
        present = shop.order(order.id)
        assert (present.items[0].quantity, present.status) == (3 if has_won else 2, CONFIRMED)
        # The order kept its units all the time.
        assert kept in shop.reservations(product)
        assert shop.available(product) == 0
        shop.assert_consistent(product, stocked=3)
