"""Every row that existed before the first page and still matches is listed exactly once, while rows are inserted."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from shop_common.errors import InvalidInput
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders
from tests.e2e.shop_driver import ShopDriver, call_concurrently


@contextmanager
def repeating(action: Callable[[], object]) -> Iterator[None]:
    """Repeats the action in a thread until the block ends."""
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_pages_of_orders_neither_skip_nor_repeat_while_orders_are_created(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=10_000)
    user = shop.new_id()
    # Concurrently, so that several have the same created_at.
    created = {order.id for order in call_concurrently(25, lambda _: shop.create_order((product, 1), user_id=user))}  # type: ignore[union-attr]  # a refusal would have no id, and fail here

    seen: list[str] = []
    with repeating(lambda: shop.create_order((product, 1), user_id=user)):
        token = ""
        while True:
            page = shop.api.call(
                shop.api.orders.ListOrders, orders.ListOrdersRequest(user_id=user, page_size=3, page_token=token)
            )
            seen += [order.id for order in page.orders]
            token = page.next_page_token
            if not token:
                break

    assert len(seen) == len(set(seen))
    assert created <= set(seen)


def test_pages_of_items_neither_skip_nor_repeat_while_items_are_created(shop: ShopDriver) -> None:
    product = shop.stocked_product(**{f"PLACE_{n}": 1 for n in range(20)})
    more = iter(range(100_000))

    seen: list[str] = []
    with repeating(lambda: shop.add_stock(product, 1, f"LATER_{next(more)}")):
        token = ""
        while True:
            page = shop.api.call(
                shop.api.inventory.ListInventoryItems,
                inventory.ListInventoryItemsRequest(product_id=product, page_size=3, page_token=token),
            )
            seen += [item.location for item in page.items]
            token = page.next_page_token
            if not token or len(seen) > 200:
                break

    assert len(seen) == len(set(seen))
    assert {f"PLACE_{n}" for n in range(20)} <= set(seen)


def test_pages_of_reservations_neither_skip_nor_repeat_while_stock_is_reserved(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=10_000)
    held = {shop.reserve(product, 1).id for _ in range(20)}

    seen: list[str] = []
    with repeating(lambda: shop.reserve(product, 1)):
        token = ""
        while True:
            page = shop.api.call(
                shop.api.inventory.ListReservations,
                inventory.ListReservationsRequest(product_id=product, page_size=3, page_token=token),
            )
            seen += [reservation.id for reservation in page.reservations]
            token = page.next_page_token
            if not token or len(seen) > 200:
                break

    assert len(seen) == len(set(seen))
    assert held <= set(seen)


def test_a_page_token_of_another_filter_is_refused(shop: ShopDriver) -> None:
    product = shop.stocked_product(A=1, B=1)
    page = shop.api.call(
        shop.api.inventory.ListInventoryItems, inventory.ListInventoryItemsRequest(product_id=product, page_size=1)
    )

    with pytest.raises(InvalidInput) as refusal:
        shop.api.call(
            shop.api.inventory.ListInventoryItems,
            inventory.ListInventoryItemsRequest(page_size=1, page_token=page.next_page_token),
        )

    assert [violation.field for violation in refusal.value.violations] == ["page_token"]
