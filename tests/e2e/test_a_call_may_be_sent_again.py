"""Calls with the same request_id return the same resource and have one effect, even after a restart or an expiry."""

from uuid import uuid4

import pytest

from shop_common.errors import Conflict, InvalidInput, Overload, Refused, Unavailable
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from tests.e2e.faults import orders_write_locked
from tests.e2e.shop_driver import ShopDriver, call_concurrently, succeeded


@pytest.fixture
def request_id() -> str:
    return f"request-{uuid4()}"


def test_a_repeated_order_is_the_same_order_and_reserves_once(shop: ShopDriver, request_id: str) -> None:
    product = shop.stocked_product(units=5)

    first = shop.create_order((product, 2), request_id=request_id)
    again = shop.create_order((product, 2), request_id=request_id)

    assert again.id == first.id
    assert shop.available(product) == 3


def test_a_repeated_order_is_the_same_order_after_a_restart(shop: ShopDriver, request_id: str) -> None:
    product = shop.stocked_product(units=5)
    first = shop.create_order((product, 2), request_id=request_id)

    for process in (shop.stack.inventory_api, shop.stack.order_api):
        process.kill()
        process.start()
    shop.wait_ready()

    assert shop.create_order((product, 2), request_id=request_id).id == first.id
    assert shop.available(product) == 3
    shop.assert_consistent(product, stocked=5)


def test_concurrent_repeats_create_one_order(shop: ShopDriver, request_id: str) -> None:
    product = shop.stocked_product(units=50)

    outcomes = call_concurrently(20, lambda _: shop.create_order((product, 2), request_id=request_id))

    assert len(succeeded(outcomes)) == 20
    assert len({order.id for order in succeeded(outcomes)}) == 1
    assert shop.available(product) == 48
    assert shop.order_events(succeeded(outcomes)[0].id, "ORDER_CREATED") == ["ORDER_CREATED"]


def test_a_repeat_returns_the_first_reservation_even_after_it_has_expired(shop: ShopDriver, request_id: str) -> None:
    product = shop.stocked_product(units=1)
    first = shop.reserve(product, 1, ttl_seconds=1, request_id=request_id, order_id="order-of-mine")
    shop.eventually(lambda: shop.available(product) == 1)

    again = shop.reserve(product, 1, ttl_seconds=1, request_id=request_id, order_id="order-of-mine")

    assert again.id == first.id
    assert again.state == inventory.RESERVATION_STATE_EXPIRED
    assert shop.available(product) == 1


def test_a_repeat_is_refused_when_the_first_call_stored_no_order_and_its_reservation_has_expired(
    shop: ShopDriver, request_id: str
) -> None:
    product = shop.stocked_product(units=3)

    def has_reserved() -> bool:
        # inventory-api reserves the stock, but order-api can't store the order. The timeout ends the client's retries.
        with pytest.raises((Unavailable, Conflict, Overload)):
            shop.create_order((product, 1), ttl_seconds=7, request_id=request_id, timeout_seconds=3)
        return shop.available(product) == 2

    with orders_write_locked(shop.stack):
        shop.eventually(has_reserved)
        # Keep the lock until the reservation has expired: a call that still waits for the lock would store the order.
        shop.eventually(lambda: shop.available(product) == 3)

    with pytest.raises(Refused) as refusal:
        shop.create_order((product, 1), ttl_seconds=7, request_id=request_id)

    assert refusal.value.reason == "RESERVATION_EXPIRED"
    shop.assert_consistent(product, stocked=3)


@pytest.mark.parametrize("quantity", [1, 3])
def test_the_same_request_id_with_other_content_is_refused(shop: ShopDriver, request_id: str, quantity: int) -> None:
    product = shop.stocked_product(units=10)
    shop.create_order((product, 2), request_id=request_id)

    with pytest.raises(InvalidInput) as refusal:
        shop.create_order((product, quantity), request_id=request_id)

    assert refusal.value.reason == "REQUEST_ID_REUSED"
    assert shop.available(product) == 8


def test_a_repeat_of_a_refused_call_is_decided_again(shop: ShopDriver, request_id: str) -> None:
    product = shop.stocked_product(units=1)
    with pytest.raises(Refused):
        shop.create_order((product, 2), request_id=request_id)

    shop.add_stock(product, 1)

    assert shop.create_order((product, 2), request_id=request_id).items[0].quantity == 2
