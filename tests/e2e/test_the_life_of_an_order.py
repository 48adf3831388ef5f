"""What happens to an order and to its stock, from the first call to the last event."""

import pytest

from shop_common.errors import Refused
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders
from tests.e2e.shop import CANCELLED, CONFIRMED, DELIVERED, PENDING, PROCESSING, SHIPPED, Shop


def test_an_expired_hold_frees_its_stock_before_the_reaper_comes(shop: Shop) -> None:
    product = shop.stocked_product(units=1)
    with shop.stack.reaper.frozen():
        order = shop.place_order((product, 1), hold_seconds=1)
        shop.eventually(lambda: shop.available(product) == 1)

        shop.reserve(product, 1)

        shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    events = shop.stock_events(product, "STOCK_RESERVATION_EXPIRED")
    assert [event_type for event_type, _ in events].count("STOCK_RESERVATION_EXPIRED") == 1
    assert shop.order_events(order.id, "ORDER_CANCELLED") == ["ORDER_CREATED", "ORDER_CANCELLED"]
    shop.assert_counted(product, put_in=1)


def test_a_hold_that_nobody_confirms_expires_and_cancels_its_order(shop: Shop) -> None:
    product = shop.stocked_product(units=1)

    order = shop.place_order((product, 1), hold_seconds=1)

    shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    (expired,) = shop.reservations(product)
    assert expired.state == inventory.RESERVATION_STATE_EXPIRED
    events = shop.stock_events(product, "STOCK_RESERVATION_EXPIRED")
    assert [event_type for event_type, _ in events] == ["STOCK_UPDATED", "STOCK_RESERVED", "STOCK_RESERVATION_EXPIRED"]
    shop.assert_counted(product, put_in=1)


@pytest.mark.parametrize(
    "steps", [(), (CONFIRMED,), (CONFIRMED, PROCESSING)], ids=["pending", "confirmed", "processing"]
)
def test_cancelling_gives_all_stock_back_at_any_stage_before_shipping(
    shop: Shop, steps: tuple["orders.OrderStatus.ValueType", ...]
) -> None:
    one, two = shop.stocked_product(units=3), shop.stocked_product(NORTH=2, SOUTH=2)
    order = shop.place_order((one, 3), (two, 3))

    shop.bring_to(order.id, *steps, CANCELLED)

    shop.eventually(lambda: shop.available(one) == 3 and shop.available(two) == 4)
    assert shop.order(order.id).status == CANCELLED
    shop.assert_counted(one, put_in=3)
    shop.assert_counted(two, put_in=4)


def test_shipping_takes_the_stock_out(shop: Shop) -> None:
    product = shop.stocked_product(NORTH=2, SOUTH=2)
    order = shop.place_order((product, 3))

    shop.bring_to(order.id, CONFIRMED, PROCESSING, SHIPPED)

    shop.eventually(lambda: shop.on_hand(product) == 1)
    assert shop.available(product) == 1
    shop.stock_events(product, "STOCK_FULFILLED")
    shop.assert_counted(product, put_in=4)
    assert shop.bring_to(order.id, DELIVERED).status == DELIVERED


def test_events_of_an_order_arrive_in_the_order_in_which_things_happened(shop: Shop) -> None:
    product = shop.stocked_product(units=50)
    placed = [shop.place_order((product, 1)).id for _ in range(20)]
    for step in (CONFIRMED, PROCESSING, SHIPPED, DELIVERED):
        for order_id in placed:
            shop.bring_to(order_id, step)

    for order_id in placed:
        assert shop.order_events(order_id, "ORDER_DELIVERED") == [
            "ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_PROCESSING", "ORDER_SHIPPED", "ORDER_DELIVERED",
        ]  # fmt: skip


def test_a_step_that_is_not_legal_is_refused_and_names_those_that_are(shop: Shop) -> None:
    order = shop.place_order((shop.stocked_product(units=1), 1))

    with pytest.raises(Refused) as refusal:
        shop.bring_to(order.id, SHIPPED)

    assert refusal.value.reason == "ILLEGAL_TRANSITION"
    assert "CONFIRMED" in refusal.value.metadata()["legal"]
    assert shop.order(order.id).status == PENDING


def test_releasing_the_stock_of_a_confirmed_order_cancels_it(shop: Shop) -> None:
    product = shop.stocked_product(units=1)
    order = shop.place_order((product, 1))
    shop.bring_to(order.id, CONFIRMED)

    (reservation,) = shop.reservations(product)
    released = shop.api.call(
        shop.api.inventory.ReleaseStock, inventory.ReleaseStockRequest(reservation_id=reservation.id)
    )

    assert released.released_quantity == 1
    shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    shop.assert_counted(product, put_in=1)


def test_confirming_after_the_hold_has_run_out_cancels_the_order_and_says_why(shop: Shop) -> None:
    product = shop.stocked_product(units=1)
    # Nobody may cancel the order before we try: neither the reaper nor the event of the expiry.
    with shop.stack.reaper.frozen():
        order = shop.place_order((product, 1), hold_seconds=1)
        shop.eventually(lambda: shop.available(product) == 1)

        with pytest.raises(Refused) as refusal:
            shop.bring_to(order.id, CONFIRMED)

        assert refusal.value.reason == "RESERVATION_EXPIRED"
        assert shop.order(order.id).status == CANCELLED
    shop.assert_counted(product, put_in=1)
