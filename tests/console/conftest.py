"""The whole system with the console, mutual TLS and the users of two tenants."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devstack import certificates
from devstack import kafka as kafka_brokers
from devstack.certificates import OPERATOR
from devstack.dev.identity import WORKLOADS
from devstack.servers.issuer import Issuer
from devstack.stack import Databases, Options, Ports, Stack
from shop_client import Shop
from shop_client.settings import Settings, Tls
from shop_common.identity.rules import DELEGATE, PERMISSIONS
from shopctl.system.layout import INVENTORY_API, ORDER_API
from tests.console import browser
from tests.console.browser import Browser
from tests.identity.conftest import secured

REQUIRE_BROWSER_VARIABLE = "TEST_REQUIRE_BROWSER"

_STAFF = [permission for permission in PERMISSIONS if permission != DELEGATE]
_READER = ["inventory.read", "orders.read", "orders.any"]


@dataclass(frozen=True)
class System:
    """A running system with its console."""

    stack: Stack
    issuer: Issuer
    tls: Tls

    @property
    def address(self) -> str:
        return f"http://localhost:{self.stack.ports.console}"

    def token(self, tenant: str, *, may_change: bool = True) -> str:
        return self.issuer.token("staff", *(_STAFF if may_change else _READER), tenant=tenant)

    def shop(self, tenant: str) -> Shop:
        """A client of the APIs, beside the console."""
        targets = self.stack.inventory_address, self.stack.orders_address
        return Shop(Settings(*targets, token=self.token(tenant), tls=self.tls))


@pytest.fixture(scope="session")
def chromium() -> None:
    """Without a browser, the test is skipped, or fails if TEST_REQUIRE_BROWSER=1."""
    if reason := browser.missing():
        if os.environ.get(REQUIRE_BROWSER_VARIABLE) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_BROWSER_VARIABLE} is set")
        pytest.skip(reason)


@pytest.fixture(scope="module")
def system(chromium: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("console")
    files = certificates.make(folder / "certificates")
    with Issuer() as issuer, kafka_brokers.provide(containers=False) as broker:
        settings = secured(issuer, folder, workloads=WORKLOADS) | {"OIDC_TENANT_CLAIM": "tenant"}
        options = Options(
            per_process={INVENTORY_API: settings, ORDER_API: settings}, certificates=files, has_console=True
        )
        with Stack(Databases.in_folder(folder), broker, Ports.free(metrics=True), options) as stack:
            own = files[OPERATOR]
            yield System(stack, issuer, Tls(own.ca, own.cert, own.key))
            assert set(stack.stop().values()) == {0}


@pytest.fixture
def page(system: System, tmp_path: Path) -> Iterator[Browser]:
    """A browser that nobody has used."""
    with browser.running(system.address, tmp_path / "profile") as running:
        running.resize(*browser.DESKTOP)
        yield running
