"""The real processes run with what the manifests give them: probes, certificates and grants."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from devstack import certificates, kafka
from devstack.certificates import OPERATOR, Files
from devstack.stack import Databases, Options, Stack
from shop_common.rpc.tls import channel_credentials
from shop_protos.access.v1 import keys_pb2, keys_pb2_grpc
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2, order_pb2_grpc
from shopctl.system import grpc_health
from shopctl.system.layout import INVENTORY_API, ORDER_API
from testkit.calls import outcome, refusal
from testkit.eventually import eventually
from tests.kubernetes.checks import deployments
from tests.kubernetes.processes import REQUIRED
from tests.kubernetes.rendered import Cluster, Rendered

FOLDER = "deploy/kubernetes/overlays/production"
PRODUCT = 7


@pytest.fixture(scope="module")
def production(rendered: Rendered) -> Cluster:
    return rendered(FOLDER)


@pytest.fixture(scope="module")
def certificate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates that docs/kubernetes.md puts into Secrets."""
    folder = tmp_path_factory.mktemp("certificates")
    certificates.make(folder, namespace="shop")
    return folder


@pytest.fixture(scope="module")
def running(production: Cluster, certificate_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The four processes with the rendered grants, on SQLite: the kind of database does not matter here."""
    folder = tmp_path_factory.mktemp("data")
    (content,) = (each["data"] for each in production.of_kind("ConfigMap") if "grants.yaml" in each["data"])
    grants = folder / "grants.yaml"
    grants.write_text(content["grants.yaml"])
    options = Options(
        certificates={name: Files(certificate_folder / name) for name in certificates.WORKLOADS},
        per_process={name: {"GRANTS_PATH": str(grants)} for name in (INVENTORY_API, ORDER_API)},
    )
    # A broker of its own: the consumer groups of two stacks have the same names.
    with kafka.provide() as broker, Stack(Databases.in_folder(folder), broker, options=options) as stack:
        yield stack


@pytest.fixture(scope="module")
def credentials(certificate_folder: Path) -> grpc.ChannelCredentials:
    return channel_credentials(Files(certificate_folder / OPERATOR).for_clients.read())


@pytest.fixture
def inventory(running: Stack, credentials: grpc.ChannelCredentials) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(running.inventory_address, credentials) as channel:
        yield channel


@pytest.fixture
def orders(running: Stack, credentials: grpc.ChannelCredentials) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(running.orders_address, credentials) as channel:
        yield channel


def _health_addresses(running: Stack) -> dict[str, str]:
    ports = running.ports
    health_ports = (ports.inventory_health, ports.orders_health, ports.reaper, ports.relay)
    return {each.name: f"127.0.0.1:{port}" for each, port in zip(running.processes, health_ports, strict=True)}


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_every_probe_succeeds(running: Stack, production: Cluster, probe: str) -> None:
    for workload in deployments(production):
        service = workload.container[probe]["grpc"].get("service", "")

        assert grpc_health.health(_health_addresses(running)[workload.name], service) == "SERVING", (
            f"{workload} {probe} {service!r}"
        )


def test_an_unknown_service_name_is_not_found(running: Stack) -> None:
    """Shows that the test above can fail."""
    found = {name: grpc_health.health(address, "shop.Nobody") for name, address in _health_addresses(running).items()}

    assert found == dict.fromkeys(REQUIRED, "NOT_FOUND")


def test_the_grants_suffice_from_an_order_to_its_expiry(inventory: grpc.Channel, orders: grpc.Channel) -> None:
    """order-api reserves the stock, the reaper lets the reservation expire, and the event cancels the order."""
    stock = inventory_pb2_grpc.InventoryServiceStub(inventory)
    stub = order_pb2_grpc.OrderServiceStub(orders)
    stock.CreateInventoryItem(inventory_pb2.CreateInventoryItemRequest(product_id=PRODUCT, quantity=1), timeout=60)
    item = order_pb2.CreateOrderItem(product_id=PRODUCT, quantity=1, price=Money(currency_code="USD", units=1))
    request = order_pb2.CreateOrderRequest(user_id=1, items=[item], ttl=Duration(seconds=1))

    order = stub.CreateOrder(request, timeout=60).order

    def status() -> order_pb2.OrderStatus.ValueType:
        return stub.GetOrder(order_pb2.GetOrderRequest(id=order.id), timeout=60).order.status

    eventually(lambda: status() == order_pb2.ORDER_STATUS_CANCELLED)


def test_the_grants_suffice_for_api_keys(inventory: grpc.Channel, orders: grpc.Channel) -> None:
    """inventory-api reads the keys from order-api, which the network policies allow."""
    request = keys_pb2.CreateApiKeyRequest(name="reports", permissions=["inventory.read"])
    created = keys_pb2_grpc.ApiKeyServiceStub(orders).CreateApiKey(request, timeout=60)
    stub = inventory_pb2_grpc.InventoryServiceStub(inventory)
    metadata = (("authorization", f"Bearer {created.key}"),)

    def listed() -> grpc.StatusCode:
        request = inventory_pb2.ListInventoryItemsRequest()
        return outcome(lambda: stub.ListInventoryItems(request, timeout=60, metadata=metadata)).code

    eventually(lambda: listed() is grpc.StatusCode.OK)


def test_a_client_without_a_certificate_cannot_connect(running: Stack, certificate_folder: Path) -> None:
    ca = (certificate_folder / "ca.crt").read_bytes()
    with grpc.secure_channel(running.orders_address, grpc.ssl_channel_credentials(ca)) as channel:
        stub = order_pb2_grpc.OrderServiceStub(channel)

        refused = refusal(lambda: stub.ListOrders(order_pb2.ListOrdersRequest(), timeout=60))

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "")
