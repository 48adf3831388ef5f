"""Status changes of an order, and their effects on its stock and events."""

import pytest

from shop_common.errors import Refused
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, DELIVERED, PENDING, PROCESSING, SHIPPED, ShopDriver


def test_the_stock_of_a_due_reservation_is_available_before_the_reaper_runs(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)
    with shop.stack.reaper.frozen():
        order = shop.create_order((product, 1), ttl_seconds=1)
        shop.eventually(lambda: shop.available(product) == 1)

        shop.reserve(product, 1)

        shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    events = shop.stock_events(product, "STOCK_RESERVATION_EXPIRED")
    assert [event_type for event_type, _ in events].count("STOCK_RESERVATION_EXPIRED") == 1
    assert shop.order_events(order.id, "ORDER_CANCELLED") == ["ORDER_CREATED", "ORDER_CANCELLED"]
    shop.assert_consistent(product, stocked=1)


def test_an_unconfirmed_reservation_expires_and_its_order_is_cancelled(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)

    order = shop.create_order((product, 1), ttl_seconds=1)

    shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    (expired,) = shop.reservations(product)
    assert expired.state == inventory.RESERVATION_STATE_EXPIRED
    events = shop.stock_events(product, "STOCK_RESERVATION_EXPIRED")
    assert [event_type for event_type, _ in events] == [
        "STOCK_UPDATED",
        "STOCK_MOVED",
        "STOCK_RESERVED",
        "STOCK_RESERVATION_EXPIRED",
    ]
    shop.assert_consistent(product, stocked=1)


@pytest.mark.parametrize(
    "statuses", [(), (CONFIRMED,), (CONFIRMED, PROCESSING)], ids=["pending", "confirmed", "processing"]
)
def test_cancelling_before_shipping_releases_all_stock(
    shop: ShopDriver, statuses: tuple["orders.OrderStatus.ValueType", ...]
) -> None:
    one, two = shop.stocked_product(units=3), shop.stocked_product(NORTH=2, SOUTH=2)
    order = shop.create_order((one, 3), (two, 3))

    shop.change_status(order.id, *statuses, CANCELLED)

    shop.eventually(lambda: shop.available(one) == 3 and shop.available(two) == 4)
    assert shop.order(order.id).status == CANCELLED
    shop.assert_consistent(one, stocked=3)
    shop.assert_consistent(two, stocked=4)


def test_shipping_reduces_the_quantity(shop: ShopDriver) -> None:
    product = shop.stocked_product(NORTH=2, SOUTH=2)
    order = shop.create_order((product, 3))

    shop.change_status(order.id, CONFIRMED, PROCESSING, SHIPPED)

    shop.eventually(lambda: shop.on_hand(product) == 1)
    assert shop.available(product) == 1
    shop.stock_events(product, "STOCK_FULFILLED")
    shop.assert_consistent(product, stocked=4)
    assert shop.change_status(order.id, DELIVERED).status == DELIVERED


def test_half_of_an_order_is_shipped_and_the_other_half_is_cancelled(shop: ShopDriver) -> None:
    product = shop.stocked_product(NORTH=4, SOUTH=6)
    order = shop.create_order((product, 8))
    shop.change_status(order.id, CONFIRMED, PROCESSING)
    (item,) = order.items

    for _ in range(2):
        shop.ship(order.id, {item.id: 3}, request_id="half")
    shop.eventually(lambda: shop.on_hand(product) == 7)
    assert shop.available(product) == 2
    with pytest.raises(Refused) as refusal:
        shop.change_status(order.id, CANCELLED)
    ended = shop.cancel_items(order.id, {item.id: 5})

    assert refusal.value.metadata()["legal"] == "SHIPPED"
    assert (ended.status, ended.items[0].shipped, ended.items[0].cancelled) == (SHIPPED, 3, 5)
    shop.eventually(lambda: shop.available(product) == 7)
    assert shop.order_events(order.id, "ORDER_SHIPPED")[-2:] == ["ORDER_PARTIALLY_SHIPPED", "ORDER_SHIPPED"]
    shop.assert_consistent(product, stocked=10)


def test_one_returned_unit_is_sold_again_and_a_damaged_one_is_not(shop: ShopDriver) -> None:
    product = shop.stocked_product(NORTH=5)
    order = shop.create_order((product, 4))
    shop.change_status(order.id, CONFIRMED, PROCESSING, SHIPPED, DELIVERED)
    (item,) = order.items
    sound = orders.ReturnedUnits(
        item_id=item.id, quantity=1, treatment=orders.RETURN_TREATMENT_RESTOCK, location="SOUTH"
    )
    damaged = orders.ReturnedUnits(item_id=item.id, quantity=1, treatment=orders.RETURN_TREATMENT_DISCARD)

    back, repeated = (shop.take_back(order.id, sound, damaged, request_id="return") for _ in range(2))

    assert repeated == back
    assert (back.status, back.items[0].shipped, back.items[0].returned) == (DELIVERED, 4, 2)
    shop.eventually(lambda: shop.available(product) == 2)
    assert shop.order_events(order.id, "ORDER_RETURNED").count("ORDER_RETURNED") == 1
    with pytest.raises(Refused) as refusal:
        shop.take_back(
            order.id, orders.ReturnedUnits(item_id=item.id, quantity=3, treatment=orders.RETURN_TREATMENT_DISCARD)
        )
    assert refusal.value.metadata()["returnable"] == "2"
    # 5 units came in, 4 went out, and 1 came back.
    shop.assert_consistent(product, stocked=6)


def test_a_damaged_return_is_in_stock_but_not_for_sale_until_it_is_given_back(shop: ShopDriver) -> None:
    product = shop.stocked_product(NORTH=5)
    order = shop.create_order((product, 4))
    shop.change_status(order.id, CONFIRMED, PROCESSING, SHIPPED)
    damaged = orders.ReturnedUnits(
        item_id=order.items[0].id,
        quantity=2,
        treatment=orders.RETURN_TREATMENT_WITHHOLD,
        location="NORTH",
        withholding_reason="DAMAGED",
    )

    back, repeated = (shop.take_back(order.id, damaged, request_id="damaged return") for _ in range(2))

    assert repeated == back
    assert list(back.returns[0].items) == [damaged]
    shop.eventually(lambda: shop.on_hand(product) == 3)
    assert shop.available(product) == 1
    with pytest.raises(Refused, match="2 requested, 1 available"):
        shop.reserve(product, 2)
    repaired = inventory.StockChange(
        product_id=product, location="NORTH", withheld=inventory.StockWithholding(reason="DAMAGED", quantity=-2)
    )
    shop.api.call(shop.api.inventory.BatchChangeStock, inventory.BatchChangeStockRequest(changes=[repaired]))
    assert shop.available(product) == 3
    shop.reserve(product, 3)
    # 5 units came in, 4 went out, and 2 came back.
    shop.assert_consistent(product, stocked=7)


def test_events_of_an_order_arrive_in_the_order_of_its_status_changes(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=50)
    order_ids = [shop.create_order((product, 1)).id for _ in range(20)]
    for status in (CONFIRMED, PROCESSING, SHIPPED, DELIVERED):
        for order_id in order_ids:
            shop.change_status(order_id, status)

    for order_id in order_ids:
        assert shop.order_events(order_id, "ORDER_DELIVERED") == [
            "ORDER_CREATED", "ORDER_CONFIRMED", "ORDER_PROCESSING", "ORDER_SHIPPED", "ORDER_DELIVERED",
        ]  # fmt: skip


def test_an_illegal_status_change_is_refused_with_the_legal_ones(shop: ShopDriver) -> None:
    order = shop.create_order((shop.stocked_product(units=1), 1))

    with pytest.raises(Refused) as refusal:
        shop.change_status(order.id, SHIPPED)

    assert refusal.value.reason == "ILLEGAL_TRANSITION"
    assert "CONFIRMED" in refusal.value.metadata()["legal"]
    assert shop.order(order.id).status == PENDING


def test_releasing_the_stock_of_a_confirmed_order_cancels_it(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)
    order = shop.create_order((product, 1))
    shop.change_status(order.id, CONFIRMED)

    (reservation,) = shop.reservations(product)
    released = shop.api.call(
        shop.api.inventory.ReleaseStock, inventory.ReleaseStockRequest(reservation_id=reservation.id)
    )

    assert released.released_quantity == 1
    shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    shop.assert_consistent(product, stocked=1)


def test_a_count_of_too_few_units_cancels_the_newest_orders_and_frees_their_other_stock(shop: ShopDriver) -> None:
    counted, other = shop.stocked_product(NORTH=5), shop.stocked_product(units=9)
    older, newer = (shop.create_order((counted, 2), (other, 3)) for _ in range(2))
    for order in (older, newer):
        shop.change_status(order.id, CONFIRMED)
    held = shop.create_order((counted, 1))
    count = inventory.StockChange(
        product_id=counted, location="NORTH", counted=3, reason="lost", release_shortfall=True
    )
    request = inventory.BatchChangeStockRequest(changes=[count], request_id=f"count-{counted}")

    first, again = (shop.api.call(shop.api.inventory.BatchChangeStock, request).results[0].item for _ in range(2))

    assert first == again
    assert (first.quantity, first.reserved_quantity) == (3, 2)
    shop.eventually(lambda: all(shop.order(order.id).status == CANCELLED for order in (newer, held)))
    assert shop.order(newer.id).status_reason == "its stock was released"
    assert shop.order(older.id).status == CONFIRMED
    # The cancelled order also lets go of the product that was not counted.
    shop.eventually(lambda: shop.available(other) == 6)
    shop.change_status(older.id, PROCESSING, SHIPPED)
    shop.eventually(lambda: shop.on_hand(counted) == 1)
    shop.stock_events(counted, "STOCK_FULFILLED")
    shop.stock_events(other, "STOCK_FULFILLED")
    shop.assert_consistent(counted, stocked=3)
    shop.assert_consistent(other, stocked=9)


def test_an_order_is_changed_and_its_stock_follows(shop: ShopDriver) -> None:
    first, second = shop.stocked_product(units=5), shop.stocked_product(units=5)
    order = shop.create_order((first, 3))
    line = order.items[0].id

    order = shop.change_order(order, {line: 5}, (second, 2))
    assert (shop.available(first), shop.available(second)) == (0, 3)
    order = shop.change_status(order.id, CONFIRMED)
    order = shop.change_order(order, {line: 1}, (second, 1))
    shop.eventually(lambda: shop.available(first) == 4)
    shop.change_status(order.id, PROCESSING, SHIPPED)

    shop.eventually(lambda: (shop.on_hand(first), shop.on_hand(second)) == (4, 2))
    types = shop.order_events(order.id, "ORDER_SHIPPED")
    assert types == [
        "ORDER_CREATED", "ORDER_CHANGED", "ORDER_CONFIRMED", "ORDER_CHANGED", "ORDER_PROCESSING", "ORDER_SHIPPED",
    ]  # fmt: skip
    for product in (first, second):
        shop.assert_consistent(product, stocked=5)


@pytest.mark.parametrize("free", [True, False], ids=["with free stock", "without free stock"])
def test_an_order_that_is_paid_ten_minutes_late_is_reinstated_if_its_stock_is_free(
    shop: ShopDriver, free: bool
) -> None:
    product = shop.stocked_product(units=2)
    order = shop.create_order((product, 2))
    shop.expire(order.id, ago_seconds=600)
    shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    if not free:
        shop.reserve(product, 1)

    if free:
        reinstated = shop.reinstate(order.id)
        assert (reinstated.status, reinstated.version) == (CONFIRMED, 4)
        assert shop.available(product) == 0
        # The events of the cancellation and of the expiry have been handled by now, since later ones have.
        shop.change_status(order.id, PROCESSING, SHIPPED)
        shop.eventually(lambda: shop.on_hand(product) == 0)
        assert shop.order(order.id).status == SHIPPED
        types = shop.order_events(order.id, "ORDER_SHIPPED")
        assert types == ["ORDER_CREATED", "ORDER_CANCELLED", "ORDER_CONFIRMED", "ORDER_PROCESSING", "ORDER_SHIPPED"]
    else:
        with pytest.raises(Refused) as refusal:
            shop.reinstate(order.id)
        assert (refusal.value.reason, refusal.value.metadata()["available"]) == ("INSUFFICIENT_STOCK", "1")
        assert shop.order(order.id).status == CANCELLED
    shop.assert_consistent(product, stocked=2)


def test_confirming_after_the_reservation_has_expired_cancels_the_order(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)
    # The reaper is frozen, so that no expiry event cancels the order before the confirmation.
    with shop.stack.reaper.frozen():
        order = shop.create_order((product, 1), ttl_seconds=1)
        shop.eventually(lambda: shop.available(product) == 1)

        with pytest.raises(Refused) as refusal:
            shop.change_status(order.id, CONFIRMED)

        assert refusal.value.reason == "RESERVATION_EXPIRED"
        assert shop.order(order.id).status == CANCELLED
    shop.assert_consistent(product, stocked=1)
