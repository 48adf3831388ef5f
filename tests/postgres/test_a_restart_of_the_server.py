"""PostgreSQL is killed under load and is soon available again, as after a failover to a standby."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from devstack import kafka, postgres
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Stack
from shop_protos.order.v1 import order_pb2, order_pb2_grpc
from tests.e2e.shop_driver import CONFIRMED, ShopDriver

BUYERS = 6
RESTARTS = 2
UNITS = 100_000
TTL_SECONDS = 30  # longer than a restart takes, so that a repeated call finds its reservation still held
CALL_SECONDS = 10
BACK_SECONDS = 90


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that this test kills. It is durable, unlike other servers for tests: commits survive the kill."""
    with postgres.provide(containers=True, durable=True) as server:
        yield server


@pytest.fixture
def shop(server: PostgresServer) -> Iterator[ShopDriver]:
    with (
        kafka.provide() as broker,
        Stack(Databases.on_server(server), broker) as stack,
        ShopDriver.connect(stack) as shop,
    ):
        shop.wait_ready()
        yield shop
        assert set(stack.stop().values()) == {0}


class Results:
    """The results of the buyers' calls."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        """Ids of the acknowledged orders."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """The number of errors by status code and reason."""


@pytest.mark.timeout(500)
def test_during_a_restart_clients_get_unavailable_and_no_other_error(shop: ShopDriver, server: PostgresServer) -> None:
    product = shop.stocked_product(units=UNITS)
    with buyers(shop, product) as results:
        for _ in range(RESTARTS):
            wait_for_orders(shop, results)
            server.kill()
            wait_for_an_error(shop, results)
            server.start_again()
        wait_for_orders(shop, results)
    shop.wait_ready()

    known = {("UNAVAILABLE", "DATABASE_UNAVAILABLE"), ("UNAVAILABLE", "INVENTORY_UNAVAILABLE")}
    assert set(results.errors) <= known
    for order_id in results.orders:
        shop.change_status(order_id, CONFIRMED)
    # Reservations without an order expire. After that, each reserved unit has its order.
    shop.eventually(lambda: shop.available(product) == UNITS - len(results.orders), BACK_SECONDS)
    shop.assert_consistent(product, stocked=UNITS)
    for order_id in results.orders[:: len(results.orders) // 5]:
        assert shop.order_events(order_id, "ORDER_CONFIRMED", 40) == ["ORDER_CREATED", "ORDER_CONFIRMED"]


def wait_for_orders(shop: ShopDriver, results: Results) -> None:
    so_far = len(results.orders)
    shop.eventually(lambda: len(results.orders) >= so_far + 20, BACK_SECONDS)


def wait_for_an_error(shop: ShopDriver, results: Results) -> None:
    so_far = results.errors.total()
    shop.eventually(lambda: results.errors.total() > so_far, BACK_SECONDS)


@contextmanager
def buyers(shop: ShopDriver, product: int) -> Iterator[Results]:
    """Buyers that create orders of one unit until the block ends. They repeat failed calls; gRPC's retries are off."""
    results, done = Results(), threading.Event()

    def buy() -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(shop.stack.orders_address, options=options) as channel:
            api = order_pb2_grpc.OrderServiceStub(channel)
            request = order_of_one(product)
            while not done.is_set():
                call = api.CreateOrder.future(request, timeout=CALL_SECONDS)
                if call.code() is grpc.StatusCode.OK:
                    results.orders.append(call.result().order.id)
                    request = order_of_one(product)
                else:
                    results.errors[call.code().name, reason_of(call)] += 1

    threads = [threading.Thread(target=buy) for _ in range(BUYERS)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        done.set()
        for thread in threads:
            thread.join()


def order_of_one(product: int) -> order_pb2.CreateOrderRequest:
    item = order_pb2.CreateOrderItem(product_id=product, quantity=1, price=Money(currency_code="EUR", units=1))
    return order_pb2.CreateOrderRequest(
        user_id=1, items=[item], ttl=Duration(seconds=TTL_SECONDS), request_id=str(uuid4())
    )


def reason_of(call: grpc.Call) -> str:
    metadata = str(call.trailing_metadata())
    known = ("DATABASE_UNAVAILABLE", "INVENTORY_UNAVAILABLE")
    return next((reason for reason in known if reason in metadata), f"{call.details()}: {metadata}")
