"""Both APIs record each change with its caller, also changes for which order-api acts; refusals are log lines."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.type.money_pb2 import Money
from sqlalchemy import select

import inventory_api.store.tables
import order_api.store.tables
from devstack import certificates
from devstack.certificates import OPERATOR, Files
from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.servers.issuer import Issuer
from devstack.stack import Databases, Options, Stack
from shop_common.db.audit import AuditLog
from shop_common.db.database import Database
from shop_common.rpc.tls import channel_credentials
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2 as pb
from shop_protos.order.v1 import order_pb2_grpc
from shopctl.data import audit_log
from shopctl.data.audit_log import AuditFilter
from shopctl.system.layout import INVENTORY_API, ORDER_API
from testkit.apis import WITHOUT_EVENTS, running
from testkit.calls import refusal
from tests.identity.conftest import secured

TENANT_CLAIM = "organization"
TENANTS = ("acme", "other")
PRODUCT = 7
CALLS = 60
_CALL_SECONDS = 60


@pytest.fixture
def stack(
    database_kind: str,
    issuer: Issuer,
    workload_files: Path,
    embedded_broker: Kafka,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Stack]:
    """Both APIs with mutual TLS and users of two tenants. order-api may act for them."""
    order_api_id = certificates.spiffe_id(ORDER_API)
    settings = secured(issuer, tmp_path, workloads={order_api_id: ["stock.reserve", "delegate"]})
    settings["OIDC_TENANT_CLAIM"] = TENANT_CLAIM
    if database_kind == "sqlite":
        databases = Databases.in_folder(tmp_path)
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        databases = Databases.on_server(server)
    options = Options(
        environment=WITHOUT_EVENTS,
        per_process={INVENTORY_API: settings, ORDER_API: settings},
        certificates={name: Files(workload_files / name) for name in certificates.WORKLOADS},
    )
    yield from running(Stack(databases, embedded_broker, options=options))


@pytest.fixture
def channels(stack: Stack, workload_files: Path) -> Iterator[tuple[grpc.Channel, grpc.Channel]]:
    """Channels to inventory-api and to order-api. Each call needs a token."""
    credentials = channel_credentials(Files(workload_files / OPERATOR).for_clients.read())
    with (
        grpc.secure_channel(stack.inventory_address, credentials) as stock,
        grpc.secure_channel(stack.orders_address, credentials) as orders,
    ):
        yield stock, orders


def as_user(issuer: Issuer, user: int, tenant: str, *scopes: str) -> dict[str, Any]:
    claims: dict[str, Any] = {TENANT_CLAIM: tenant}
    token = issuer.token(user, *scopes, **claims)
    return {"timeout": _CALL_SECONDS, "metadata": [("authorization", f"Bearer {token}")]}


def rows(url: str, log: AuditLog) -> list[tuple[Any, ...]]:
    """Tenant, caller, subject, method, request_id and resources of each row."""
    columns = [log.table.c[name] for name in ("tenant", "caller", "subject", "method", "request_id", "resources")]
    database = Database(url)
    try:
        return [tuple(row) for row in database.query(lambda tx: tx.execute(select(*columns)).all())]
    finally:
        database.close()


def test_concurrent_callers_of_two_tenants_leave_one_row_per_change(
    stack: Stack, channels: tuple[grpc.Channel, grpc.Channel], issuer: Issuer
) -> None:
    stock = inventory_pb2_grpc.InventoryServiceStub(channels[0])
    orders = order_pb2_grpc.OrderServiceStub(channels[1])
    for tenant in TENANTS:
        stock.CreateInventoryItem(
            inventory_pb2.CreateInventoryItemRequest(product_id=PRODUCT, quantity=1000, request_id="stock"),
            **as_user(issuer, 1, tenant, "inventory.write"),
        )

    def buy(number: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Create an order, confirm it, and cancel it. Returns the rows to expect in each database."""
        tenant, user, name = TENANTS[number % 2], 1 + number % 5, f"r-{number}"
        caller = as_user(issuer, user, tenant, "orders.write")
        item = pb.CreateOrderItem(product_id=PRODUCT, quantity=1, price=Money(currency_code="USD", units=1))
        # Users of both tenants use the same ids.
        create = pb.CreateOrderRequest(user_id=user, items=[item], request_id=f"r-{number // 2}")
        order = orders.CreateOrder(create, **caller).order
        for status in (pb.ORDER_STATUS_CONFIRMED, pb.ORDER_STATUS_CANCELLED):
            change = pb.UpdateOrderStatusRequest(id=order.id, status=status, request_id=f"{name}-{status}")
            orders.UpdateOrderStatus(change, **caller)
        resources = f'["{order.id}"]'
        user_row = (tenant, f"user:{user}", str(user))
        of_orders = [
            (*user_row, "CreateOrder", create.request_id, resources),
            (*user_row, "UpdateOrderStatus", f"{name}-{pb.ORDER_STATUS_CONFIRMED}", resources),
            (*user_row, "UpdateOrderStatus", f"{name}-{pb.ORDER_STATUS_CANCELLED}", resources),
        ]
        delegated = (tenant, certificates.spiffe_id(ORDER_API), str(user))
        return of_orders, [(*delegated, "ReserveStock", order.id), (*delegated, "ConfirmReservations", None)]

    with ThreadPoolExecutor(16) as threads:
        expected = list(threads.map(buy, range(CALLS)))

    found = rows(stack.databases.orders, order_api.store.tables.audit_log)
    assert Counter(found) == Counter(row for of_orders, _ in expected for row in of_orders)
    of_stock = Counter(row[:-1] for row in rows(stack.databases.inventory, inventory_api.store.tables.audit_log))
    assert of_stock == Counter(
        [
            *(row for _, of_inventory in expected for row in of_inventory),
            *((tenant, "user:1", "1", "CreateInventoryItem", "stock") for tenant in TENANTS),
        ]
    )

    shown = list(audit_log.rows(stack.databases, AuditFilter(tenant="acme", caller="user:1", method="CreateOrder")))
    assert len(shown) == sum(row[:4] == ("acme", "user:1", "1", "CreateOrder") for row in found)


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_log_line_of_a_refusal_names_the_caller_and_no_token(
    stack: Stack, channels: tuple[grpc.Channel, grpc.Channel], issuer: Issuer
) -> None:
    orders = order_pb2_grpc.OrderServiceStub(channels[1])
    denied = as_user(issuer, 5, "acme", "inventory.read")
    forged = as_user(issuer, 6, "acme", "orders.read")
    (_, token) = forged["metadata"][0]
    forged["metadata"] = [("authorization", token[:-9] + "forgedsig")]

    assert refusal(lambda: orders.ListOrders(pb.ListOrdersRequest(), **denied)).reason == "PERMISSION_MISSING"
    assert refusal(lambda: orders.ListOrders(pb.ListOrdersRequest(), **forged)).reason == "TOKEN_INVALID"

    denial = stack.order_api.wait_for_line("caller=user:5", 30)
    assert "PERMISSION_MISSING" in denial
    assert "tenant=acme" in denial
    unknown = stack.order_api.wait_for_line("TOKEN_INVALID", 30)
    assert f"certificate={certificates.spiffe_id(OPERATOR)}" in unknown
    assert "peer=" in unknown
    assert token.split(".")[1] not in stack.order_api.log
    assert "forgedsig" not in stack.order_api.log
