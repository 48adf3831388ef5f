"""The server dies in the middle of its clients' work and is back soon after, as when a standby takes over."""

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
HOLD_SECONDS = 30  # longer than a restart takes: who asks again then still finds what was held
CALL_SECONDS = 10
BACK_SECONDS = 90


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One of its own, to be killed; it keeps what it has committed, as tests' servers otherwise need not."""
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


class Answers:
    """What buyers were told."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.refusals: Counter[tuple[str, str]] = Counter()
        """By code and reason."""


@pytest.mark.timeout(500)
def test_clients_see_unavailable_for_seconds_and_nothing_else(shop: ShopDriver, server: PostgresServer) -> None:
    product = shop.stocked_product(units=UNITS)
    with buyers(shop, product) as answers:
        for _ in range(RESTARTS):
            sell(shop, answers)
            server.kill()
            be_refused(shop, answers)
            server.start_again()
        sell(shop, answers)
    shop.wait_ready()

    known = {("UNAVAILABLE", "DATABASE_UNAVAILABLE"), ("UNAVAILABLE", "INVENTORY_UNAVAILABLE")}
    assert set(answers.refusals) <= known
    for order_id in answers.orders:
        shop.change_status(order_id, CONFIRMED)
    # What was held for an order that was never made runs out; every other unit has its order.
    shop.eventually(lambda: shop.available(product) == UNITS - len(answers.orders), BACK_SECONDS)
    shop.assert_consistent(product, stocked=UNITS)
    for order_id in answers.orders[:: len(answers.orders) // 5]:
        assert shop.order_events(order_id, "ORDER_CONFIRMED", 40) == ["ORDER_CREATED", "ORDER_CONFIRMED"]


def sell(shop: ShopDriver, answers: Answers) -> None:
    """Until some more orders are made."""
    so_far = len(answers.orders)
    shop.eventually(lambda: len(answers.orders) >= so_far + 20, BACK_SECONDS)


def be_refused(shop: ShopDriver, answers: Answers) -> None:
    """Until somebody was told that there is no database."""
    so_far = answers.refusals.total()
    shop.eventually(lambda: answers.refusals.total() > so_far, BACK_SECONDS)


@contextmanager
def buyers(shop: ShopDriver, product: int) -> Iterator[Answers]:
    """Each orders one unit after the other on a plain channel, and sends a call again itself when nobody answers."""
    answers, done = Answers(), threading.Event()

    def buy() -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(shop.stack.orders_address, options=options) as channel:
            api = order_pb2_grpc.OrderServiceStub(channel)
            request = one_of(product)
            while not done.is_set():
                call = api.CreateOrder.future(request, timeout=CALL_SECONDS)
                if call.code() is grpc.StatusCode.OK:
                    answers.orders.append(call.result().order.id)
                    request = one_of(product)
                else:
                    answers.refusals[call.code().name, reason_of(call)] += 1

    threads = [threading.Thread(target=buy) for _ in range(BUYERS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()


def one_of(product: int) -> order_pb2.CreateOrderRequest:
    item = order_pb2.CreateOrderItem(product_id=product, quantity=1, price=Money(currency_code="EUR", units=1))
    return order_pb2.CreateOrderRequest(
        user_id=1, items=[item], ttl=Duration(seconds=HOLD_SECONDS), request_id=str(uuid4())
    )


def reason_of(call: grpc.Call) -> str:
    told = str(call.trailing_metadata())
    known = ("DATABASE_UNAVAILABLE", "INVENTORY_UNAVAILABLE")
    return next((reason for reason in known if reason in told), f"{call.details()}: {told}")
