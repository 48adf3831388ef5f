"""Two tenants use the same products, users and request_ids at the same time, and neither has a trace of the other."""

from collections.abc import Mapping
from uuid import uuid4

import pytest

from devstack.kafka import Record
from shop_common.errors import NotFound, ShopError
from shop_protos.inventory.v1.inventory_pb2 import ReleaseStockRequest
from shop_protos.order.v1 import order_pb2 as pb
from testkit.contract import validator
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, PENDING, ShopDriver, call_concurrently, reason_counts
from tests.tenants.conftest import System

USERS = 8
LINES = 2

Shops = Mapping[str, ShopDriver]


@pytest.fixture
def shops(system: System) -> Shops:
    """A client of each of two tenants that no other test uses, by the tenant's name."""
    return {name: system.shop(name) for name in (f"{kind}-{uuid4().hex[:8]}" for kind in ("acme", "other"))}


def buy_at_once(shops: Shops, product: int, *, units: int) -> dict[str, list[pb.Order | ShopError]]:
    """Each user of each tenant sends the same CreateOrder twice, all at once. Returns the outcomes by tenant."""
    calls = [(name, user) for user in range(1, USERS + 1) for name in shops for _ in range(2)]

    def call(number: int) -> pb.Order:
        name, user = calls[number]
        return shops[name].create_order((product, units), user_id=user, request_id=f"request-{user}")

    outcomes = call_concurrently(len(calls), call)
    return {name: [outcomes[n] for n, (of, _) in enumerate(calls) if of == name] for name in shops}


def test_units_and_orders_are_counted_for_each_tenant(shops: Shops) -> None:
    stocked = dict(zip(shops, (100, 60), strict=True))
    product = next(iter(shops.values())).new_id()
    for name, shop in shops.items():
        shop.add_stock(product, stocked[name])

    bought = buy_at_once(shops, product, units=LINES)
    ids = {name: {order.id for order in orders if isinstance(order, pb.Order)} for name, orders in bought.items()}
    assert {name: len(of_tenant) for name, of_tenant in ids.items()} == dict.fromkeys(shops, USERS), bought
    assert len(set.union(*ids.values())) == len(shops) * USERS

    for name, shop in shops.items():
        for number, order_id in enumerate(sorted(ids[name])):
            shop.change_status(order_id, CANCELLED if number % 2 else CONFIRMED)
    for name, shop in shops.items():
        left = stocked[name] - LINES * USERS // 2
        shop.eventually(lambda shop=shop, left=left: shop.available(product) == left)  # type: ignore[misc]
        shop.assert_consistent(product, stocked=stocked[name])
        assert {order.id for order in listed(shop)} == ids[name]
        assert len(shop.reservations(product)) == USERS


def test_a_tenant_cannot_sell_the_units_of_another(shops: Shops) -> None:
    stocked = dict(zip(shops, (3, 5), strict=True))
    product = next(iter(shops.values())).new_id()
    for name, shop in shops.items():
        shop.add_stock(product, stocked[name])

    bought = buy_at_once(shops, product, units=1)

    for name, shop in shops.items():
        sold = {order.id for order in bought[name] if isinstance(order, pb.Order)}
        assert len(sold) == stocked[name]
        assert set(reason_counts(bought[name])) == {"INSUFFICIENT_STOCK"}
        assert shop.available(product) == 0


def test_the_order_of_another_tenant_does_not_exist(shops: Shops) -> None:
    ours, theirs = shops.values()
    product = ours.stocked_product(units=5)
    order = ours.create_order((product, 1), user_id=1)
    unknown = str(uuid4())

    def texts(call: str, order_id: str) -> tuple[str, str]:
        with pytest.raises(NotFound) as refused:
            theirs.order(order_id) if call == "get" else theirs.change_status(order_id, CANCELLED)
        return refused.value.reason, refused.value.message.replace(order_id, "ID")

    for call in ("get", "change"):
        assert texts(call, order.id) == texts(call, unknown) == ("ORDER_NOT_FOUND", "there is no order ID")
    assert ours.order(order.id).status == PENDING
    assert listed(theirs) == []
    assert theirs.items(product) == []
    assert theirs.reservations(product) == []


def test_every_event_names_its_tenant(shops: Shops) -> None:
    product = next(iter(shops.values())).new_id()
    orders: dict[str, str] = {}
    for name, shop in shops.items():
        shop.add_stock(product, 5)
        order = shop.create_order((product, 1), user_id=1, request_id="r")
        shop.change_status(order.id, CONFIRMED, CANCELLED)
        orders[order.id] = name
    kafka = next(iter(shops.values())).kafka

    def are_complete(records: list[Record], end: str) -> bool:
        ended = {record.headers["ce_tenant"] for record in records if record.headers["ce_type"] == end}
        return ended >= set(shops)

    of_orders = kafka.consume("order-events", lambda records: are_complete(records, "ORDER_CANCELLED"))
    of_stock = kafka.consume("inventory-events", lambda records: are_complete(records, "STOCK_RELEASED"))

    for record in (*of_orders, *of_stock):
        validator().check(record.topic, record.key or "", record.headers, record.value)
    assert {r.key: r.headers["ce_tenant"] for r in of_orders if r.key in orders} == orders
    of_product = [r for r in of_stock if r.json()["data"].get("product_id") == product]
    assert {(r.headers["ce_tenant"], r.key) for r in of_product} == {(name, f"{name}/{product}") for name in shops}
    released = [r for r in of_product if r.headers["ce_type"] == "STOCK_RELEASED"]
    assert {r.json()["data"]["order_id"]: r.headers["ce_tenant"] for r in released} == orders


def test_an_expired_reservation_cancels_the_order_of_its_tenant(shops: Shops) -> None:
    ours, theirs = shops.values()
    product = ours.stocked_product(units=1)
    theirs.add_stock(product, 1)
    kept = theirs.create_order((product, 1), user_id=1, request_id="r")

    lost = ours.create_order((product, 1), user_id=1, request_id="r", ttl_seconds=1)

    ours.eventually(lambda: ours.order(lost.id).status == CANCELLED)
    assert ours.available(product) == 1
    assert theirs.order(kept.id).status == PENDING
    assert theirs.available(product) == 0


def test_nobody_cancels_an_order_by_releasing_a_reservation_under_its_id(system: System, shops: Shops) -> None:
    (name, ours), *_ = shops.items()
    colleague = system.shop(name, "colleague")
    product = ours.stocked_product(units=10)
    order = ours.create_order((product, 1), user_id=1)

    foreign = colleague.reserve(product, 1, order_id=order.id)
    colleague.api.call(colleague.api.inventory.ReleaseStock, ReleaseStockRequest(reservation_id=foreign.id))
    # The events of a product are handled in order. So the release is handled before this expiry cancels another order.
    last = ours.create_order((product, 1), user_id=1, ttl_seconds=1)
    ours.eventually(lambda: ours.order(last.id).status == CANCELLED)

    assert ours.order(order.id).status == PENDING
    assert ours.change_status(order.id, CONFIRMED).status == CONFIRMED


def test_the_user_for_whom_order_api_calls_may_have_any_name(system: System) -> None:
    shop = system.shop("default", "Zoë 100% / ☃")
    product = shop.stocked_product(units=1)

    order = shop.create_order((product, 1), user_id=1)

    assert shop.change_status(order.id, CONFIRMED).status == CONFIRMED


def listed(shop: ShopDriver) -> list[pb.Order]:
    return list(shop.api.call(shop.api.orders.ListOrders, pb.ListOrdersRequest(page_size=1000)).orders)
