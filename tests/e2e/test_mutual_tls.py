"""The whole system with mutual TLS: orders are created, nobody without a certificate is served, certificates change."""

import operator
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc
import pytest

from devstack import certificates
from devstack import kafka as kafka_brokers
from devstack.certificates import Authority, Files
from devstack.kafka import Kafka
from devstack.stack import Databases, Options, Stack
from shop_common.errors import ShopError, Unavailable
from shop_common.rpc.tls import ReloadedCertificates
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shopctl.client import Shop
from shopctl.system.layout import INVENTORY_API
from testkit.eventually import eventually
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, ShopDriver

ORDERS_BETWEEN_CHANGES = 20
SOON_SECONDS = 1


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """A broker for this file alone: the consumer groups of two stacks have the same names."""
    with kafka_brokers.provide(containers=False) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the CA and of all certificates."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def shop(broker: Kafka, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShopDriver]:
    """A system with mutual TLS, and a client with the operator's certificate."""
    files = certificates.make(folder)
    databases = Databases.in_folder(tmp_path_factory.mktemp("data"))
    with Stack(databases, broker, options=Options(certificates=files)) as stack:
        with ShopDriver(stack, connect(stack, files[certificates.OPERATOR])) as driver:
            driver.wait_ready()
            yield driver
        assert set(stack.stop().values()) == {0}


def connect(stack: Stack, files: Files) -> Shop:
    return Shop.connect(
        stack.inventory_address,
        stack.orders_address,
        ReloadedCertificates(files.for_clients),
    )


def test_an_order_reserves_and_releases_stock_through_all_processes(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=3)

    order = shop.create_order((product, 2))
    assert shop.available(product) == 1
    assert shop.change_status(order.id, CONFIRMED).status == CONFIRMED
    shop.change_status(order.id, CANCELLED)

    shop.eventually(lambda: shop.available(product) == 3)


def test_the_reaper_reaches_both_apis(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)

    order = shop.create_order((product, 1), ttl_seconds=SOON_SECONDS)

    shop.eventually(lambda: shop.order(order.id).status == CANCELLED)
    assert shop.available(product) == 1


def test_a_caller_in_plain_text_is_not_served(shop: ShopDriver) -> None:
    request = inventory_pb2.CheckStockRequest(product_id=1, required_quantity=1)
    with grpc.insecure_channel(shop.stack.inventory_address) as channel, pytest.raises(grpc.RpcError) as refused:
        inventory_pb2_grpc.InventoryServiceStub(channel).CheckStock(request, timeout=10)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_caller_with_a_certificate_of_another_ca_is_not_served(
    shop: ShopDriver, folder: Path, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    Authority.create().issue(INVENTORY_API, files, trusts=[Authority.load(folder)])

    with connect(shop.stack, files) as api, ShopDriver(shop.stack, api) as stranger:
        with pytest.raises(Unavailable):
            stranger.items(1)
        with pytest.raises(Unavailable):
            stranger.order("any")


def test_new_certificates_and_a_new_ca_fail_no_order(shop: ShopDriver, folder: Path) -> None:
    old, new = Authority.load(folder), Authority.create("the next CA")
    product = shop.stocked_product(units=1_000_000)
    with Purchases(shop, product) as purchases:
        for signed_by, trusts in ((old, [old, new]), (new, [old, new]), (new, [new])):
            before = reconnections(shop)
            for workload in certificates.WORKLOADS:
                signed_by.issue(workload, Files(folder / workload), trusts=trusts)
            wait_for_reconnections(shop, before)
            purchases.wait_for_more()

    assert purchases.failures == []
    shop.eventually(lambda: shop.available(product) == 1_000_000 - purchases.count)


def reconnections(shop: ShopDriver) -> tuple[int, ...]:
    """How often order-api and the reaper have connected with new certificates."""
    order_api, reaper = shop.stack.order_api, shop.stack.reaper
    return tuple(process.log.count("connected with new certificates") for process in (order_api, reaper))


def wait_for_reconnections(shop: ShopDriver, before: tuple[int, ...]) -> None:
    eventually(lambda: all(map(operator.gt, reconnections(shop), before)))


class Purchases:
    """Orders that a thread creates one after another until the block ends."""

    def __init__(self, shop: ShopDriver, product: int) -> None:
        self.count = 0
        self.failures: list[ShopError] = []
        self._shop = shop
        self._product = product
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self) -> None:
        enough = self.count + ORDERS_BETWEEN_CHANGES
        eventually(lambda: self.count >= enough or self.failures)

    def _run(self) -> None:
        while not self._stop.is_set() and not self.failures:
            try:
                self._shop.create_order((self._product, 1))
                self.count += 1
            except ShopError as error:
                self.failures.append(error)
