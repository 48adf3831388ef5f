"""With WORKERS > 1, several processes share one port and keep the same guarantees."""

from collections.abc import Iterator

import pytest

from devstack import kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Stack
from shopctl.system.layout import INVENTORY_API, ORDER_API
from tests.e2e.shop_driver import CANCELLED, ShopDriver, call_concurrently, succeeded


@pytest.fixture
def shop_of_workers(postgres_server: PostgresServer) -> Iterator[ShopDriver]:
    options = Options(per_process={name: {"WORKERS": "2"} for name in (INVENTORY_API, ORDER_API)})
    # This stack has its own broker. If two stacks shared a consumer group, each would get events of the other.
    with (
        kafka.provide() as broker,
        Stack(Databases.on_server(postgres_server), broker, options=options) as stack,
        ShopDriver.connect(stack) as shop,
    ):
        yield shop


def test_two_workers_of_each_api_never_oversell(shop_of_workers: ShopDriver) -> None:
    shop = shop_of_workers
    product = shop.stocked_product(NORTH=15, SOUTH=15)

    outcomes = call_concurrently(60, lambda _: shop.create_order((product, 1)))

    assert len(succeeded(outcomes)) == 30
    shop.assert_consistent(product, stocked=30)
    for order in succeeded(outcomes)[:10]:
        shop.change_status(order.id, CANCELLED)
    shop.eventually(lambda: shop.available(product) == 10)
    shop.assert_consistent(product, stocked=30)
