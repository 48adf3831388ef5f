"""A repeated request_id names the same resource and has one effect, whatever happened in between."""

from uuid import uuid4

import pytest

from shop_common.errors import Conflict, InvalidInput, Overload, Refused, Unavailable
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from tests.e2e.faults import orders_can_not_be_written
from tests.e2e.shop import Shop, at_once, granted


@pytest.fixture
def request_id() -> str:
    return f"request-{uuid4()}"


def test_a_repeated_order_is_the_same_order_and_holds_once(shop: Shop, request_id: str) -> None:
    product = shop.stocked_product(units=5)

    first = shop.place_order((product, 2), request_id=request_id)
    again = shop.place_order((product, 2), request_id=request_id)

    assert again.id == first.id
    assert shop.available(product) == 3


def test_a_repeated_order_is_the_same_order_after_a_restart(shop: Shop, request_id: str) -> None:
    product = shop.stocked_product(units=5)
    first = shop.place_order((product, 2), request_id=request_id)

    for process in (shop.stack.inventory_api, shop.stack.order_api):
        process.kill()
        process.start()
    shop.wait_ready()

    assert shop.place_order((product, 2), request_id=request_id).id == first.id
    assert shop.available(product) == 3
    shop.assert_counted(product, put_in=5)


def test_repeats_that_arrive_at_once_make_one_order(shop: Shop, request_id: str) -> None:
    product = shop.stocked_product(units=50)

    outcomes = at_once(20, lambda _: shop.place_order((product, 2), request_id=request_id))

    assert len(granted(outcomes)) == 20
    assert len({order.id for order in granted(outcomes)}) == 1
    assert shop.available(product) == 48
    assert shop.order_events(granted(outcomes)[0].id, "ORDER_CREATED") == ["ORDER_CREATED"]


def test_a_hold_of_an_earlier_try_that_has_expired_spends_the_request_id(shop: Shop, request_id: str) -> None:
    product = shop.stocked_product(units=1)
    first = shop.reserve(product, 1, hold_seconds=1, request_id=request_id, order_id="order-of-mine")
    shop.eventually(lambda: shop.available(product) == 1)

    again = shop.reserve(product, 1, hold_seconds=1, request_id=request_id, order_id="order-of-mine")

    assert again.id == first.id
    assert again.state == inventory.RESERVATION_STATE_EXPIRED
    assert shop.available(product) == 1


def test_an_order_whose_earlier_try_held_stock_that_has_expired_is_refused(shop: Shop, request_id: str) -> None:
    product = shop.stocked_product(units=3)

    def has_taken_its_hold() -> bool:
        # The stock is held, the order can't be stored; the deadline ends the client's own retries.
        with pytest.raises((Unavailable, Conflict, Overload)):
            shop.place_order((product, 1), hold_seconds=7, request_id=request_id, timeout_seconds=3)
        return shop.available(product) == 2

    with orders_can_not_be_written(shop.stack):
        shop.eventually(has_taken_its_hold)
        # Not before: what still waits for the lock would store the order after all.
        shop.eventually(lambda: shop.available(product) == 3)

    with pytest.raises(Refused) as refusal:
        shop.place_order((product, 1), hold_seconds=7, request_id=request_id)

    assert refusal.value.reason == "RESERVATION_EXPIRED"
    shop.assert_counted(product, put_in=3)


@pytest.mark.parametrize("quantity", [1, 3])
def test_the_same_request_id_with_other_content_is_refused(shop: Shop, request_id: str, quantity: int) -> None:
    product = shop.stocked_product(units=10)
    shop.place_order((product, 2), request_id=request_id)

    with pytest.raises(InvalidInput) as refusal:
        shop.place_order((product, quantity), request_id=request_id)

    assert refusal.value.reason == "REQUEST_ID_REUSED"
    assert shop.available(product) == 8


def test_a_refused_call_may_be_repeated_and_is_decided_anew(shop: Shop, request_id: str) -> None:
    product = shop.stocked_product(units=1)
    with pytest.raises(Refused):
        shop.place_order((product, 2), request_id=request_id)

    shop.add_stock(product, 1)

    assert shop.place_order((product, 2), request_id=request_id).items[0].quantity == 2
