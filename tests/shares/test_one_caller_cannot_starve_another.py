"""One caller with 64 connections and the largest legal batches beside another caller, on both databases."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
import yaml
from google.protobuf.message import Message

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.servers.issuer import AUDIENCE, Issuer
from devstack.stack import READY_SECONDS, Databases, Options, Stack
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shopctl.system.layout import INVENTORY_API
from testkit.calls import outcome

pytestmark = pytest.mark.timeout(600)

CONNECTIONS = 64
ORDERS, LINES = 500, 10
CALLS = 10
CALL_SECONDS = 30
SERVICE = "/shop.inventory.v1.InventoryService"
PRODUCTS = range(1, LINES + 1)


class Caller:
    """A user with a token, and one connection for each object."""

    def __init__(self, stack: Stack, token: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(stack.inventory_address, options)
        self._headers = (("authorization", f"Bearer {token}"),)

    def add_stock(self) -> None:
        for product in PRODUCTS:
            self._call(
                "CreateInventoryItem", pb.CreateInventoryItemRequest(product_id=product, location="A", quantity=10**9)
            )

    def reserve(self) -> None:
        self._call("ReserveStock", pb.ReserveStockRequest(product_id=1, quantity=1, order_id=uuid4().hex))

    def reserve_batch(self) -> None:
        """Make the largest legal call."""
        lines = [pb.Line(product_id=product, quantity=1) for product in PRODUCTS]
        orders = [pb.OrderLines(order_id=uuid4().hex, lines=lines) for _ in range(ORDERS)]
        self._call("BatchReserveStock", pb.BatchReserveStockRequest(orders=orders))

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: Message) -> None:
        rpc: Any = self._channel.unary_unary(f"{SERVICE}/{method}")
        rpc(request.SerializeToString(), timeout=CALL_SECONDS, metadata=self._headers)


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def stack(
    request: pytest.FixtureRequest, issuer: Issuer, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """inventory-api, which checks its callers."""
    folder: Path = tmp_path_factory.mktemp("shares")
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        databases = Databases.on_server(server)
    else:
        databases = Databases.in_folder(folder)
    grants = folder / "grants.yaml"
    grants.write_text(yaml.safe_dump({"scopes": {"warehouse": ["stock.reserve", "inventory.write"]}}))
    settings = {
        "GRANTS_PATH": str(grants),
        "OIDC_ISSUER": issuer.url,
        "OIDC_AUDIENCE": AUDIENCE,
        "CONSUMER_ENABLED": "false",
    }
    stack = Stack(databases, embedded_broker, options=Options(per_process={INVENTORY_API: settings}))
    try:
        stack.migrate()
        stack.inventory_api.start().wait_ready(READY_SECONDS)
        yield stack
    finally:
        stack.stop()


def test_the_other_caller_is_never_refused(stack: Stack, issuer: Issuer) -> None:
    greedy = [Caller(stack, issuer.token(1, "warehouse")) for _ in range(CONNECTIONS)]
    small = Caller(stack, issuer.token(2, "warehouse"))
    small.add_stock()
    stopped = threading.Event()
    begun = threading.Semaphore(0)

    def flood(caller: Caller) -> set[tuple[grpc.StatusCode, str]]:
        found = set()
        while not stopped.is_set():
            begun.release()
            result = outcome(caller.reserve_batch)
            found.add((result.code, result.reason))
        return found

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        floods = [threads.submit(flood, caller) for caller in greedy]
        try:
            for _ in range(CONNECTIONS):
                assert begun.acquire(timeout=CALL_SECONDS)
            codes = [outcome(small.reserve).code for _ in range(CALLS)]
        finally:
            stopped.set()
        endings = set().union(*(each.result() for each in floods))
    for caller in (small, *greedy):
        caller.close()

    assert codes == [grpc.StatusCode.OK] * CALLS
    # The greedy caller itself may be refused, but nothing breaks.
    assert endings <= {
        (grpc.StatusCode.OK, ""),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ""),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    }
