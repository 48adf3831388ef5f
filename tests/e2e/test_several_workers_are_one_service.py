"""WORKERS > 1: more processes on one port, and the same promises."""

from collections.abc import Iterator

import pytest

from devstack import kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Stack
from shopctl.system.layout import INVENTORY_API, ORDER_API
from tests.e2e.shop import CANCELLED, Shop, at_once, granted


@pytest.fixture
def shop_of_workers(postgres_server: PostgresServer) -> Iterator[Shop]:
    options = Options(per_process={name: {"WORKERS": "2"} for name in (INVENTORY_API, ORDER_API)})
    # A broker of its own: in one consumer group with the other stack they would act on each other's events.
    with (
        kafka.provide() as broker,
        Stack(Databases.on_server(postgres_server), broker, options=options) as stack,
        Shop.of(stack) as shop,
    ):
        yield shop


def test_two_workers_of_each_api_sell_what_is_there_and_not_more(shop_of_workers: Shop) -> None:
    shop = shop_of_workers
    product = shop.stocked_product(NORTH=15, SOUTH=15)

    outcomes = at_once(60, lambda _: shop.place_order((product, 1)))

    assert len(granted(outcomes)) == 30
    shop.assert_counted(product, put_in=30)
    for order in granted(outcomes)[:10]:
        shop.bring_to(order.id, CANCELLED)
    shop.eventually(lambda: shop.available(product) == 10)
    shop.assert_counted(product, put_in=30)
