"""The whole system with mutual TLS and tokens that name the tenant of their user, on each kind of database."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from devstack import certificates
from devstack import kafka as kafka_brokers
from devstack.certificates import OPERATOR, Files
from devstack.dev.identity import WORKLOADS
from devstack.servers.issuer import Issuer
from devstack.stack import Databases, Options, Ports, Stack
from shop_common.identity.rules import DELEGATE, PERMISSIONS
from shop_common.rpc.tls import ReloadedCertificates
from shopctl.client import Shop
from shopctl.system.layout import INVENTORY_API, ORDER_API
from tests.e2e.shop_driver import ShopDriver
from tests.identity.conftest import secured

_OF_USERS = [permission for permission in PERMISSIONS if permission != DELEGATE]


@dataclass(frozen=True)
class System:
    """A running system, and clients of it."""

    stack: Stack
    issuer: Issuer
    files: Files
    clients: ExitStack

    def token(self, tenant: str, user: object) -> str:
        """The token of a user of a tenant. The user may do everything except act for others."""
        return self.issuer.token(user, *_OF_USERS, tenant=tenant)

    def shop(self, tenant: str, user: object = "staff") -> ShopDriver:
        """A client with the token of a user."""
        api = Shop.connect(
            self.stack.inventory_address,
            self.stack.orders_address,
            ReloadedCertificates(self.files.for_clients),
            headers=(("authorization", f"Bearer {self.token(tenant, user)}"),),
        )
        return self.clients.enter_context(ShopDriver(self.stack, api))


@pytest.fixture(scope="module")
def system(
    database_kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """The four processes, with a broker of their own: the consumer groups of two stacks have the same names."""
    folder = tmp_path_factory.mktemp("tenants")
    databases = (
        Databases.in_folder(folder)
        if database_kind == "sqlite"
        else Databases.on_server(request.getfixturevalue("postgres_server"))
    )
    files = certificates.make(folder / "certificates")
    with Issuer() as issuer, kafka_brokers.provide(containers=False) as broker, ExitStack() as clients:
        settings = secured(issuer, folder, workloads=WORKLOADS) | {"OIDC_TENANT_CLAIM": "tenant"}
        options = Options(per_process={INVENTORY_API: settings, ORDER_API: settings}, certificates=files)
        with Stack(databases, broker, Ports.free(metrics=True), options) as stack:
            running = System(stack, issuer, files[OPERATOR], clients)
            running.shop("default").wait_ready()
            yield running
            clients.close()
            assert set(stack.stop().values()) == {0}
