"""Keycloak, and both APIs as processes that accept its tokens. Started once for the file: each start takes seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from devstack import certificates
from devstack.certificates import OPERATOR, Files, spiffe_id
from devstack.kafka import Kafka
from devstack.servers import keycloak as server
from devstack.servers.keycloak import Keycloak
from devstack.stack import Databases, Options, Stack
from shop_common.rpc.tls import channel_credentials
from shopctl.system.layout import INVENTORY_API, ORDER_API
from testkit.apis import WITHOUT_EVENTS, running
from tests.oidc.clients import Clients
from tests.oidc.realm import AUDIENCE, Realm

REQUIRE_VARIABLE = "TEST_REQUIRE_KEYCLOAK"

GRANTS = {
    "workloads": {spiffe_id(ORDER_API): ["stock.reserve", "delegate"]},
    "scopes": {
        "shopper": ["inventory.read", "orders.read", "orders.write"],
        "staff": ["inventory.read", "inventory.write", "orders.read", "orders.write", "orders.any"],
    },
}


@pytest.fixture(scope="module")
def keycloak() -> Iterator[Keycloak]:
    """A Keycloak of our own. Skips the test where there is no Java or Maven, or fails it if TEST_REQUIRE_KEYCLOAK=1."""
    if (reason := server.missing()) is not None:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_VARIABLE} is set")
        pytest.skip(reason)
    with server.provide() as started:
        yield started


@pytest.fixture(scope="module")
def realm(keycloak: Keycloak) -> Realm:
    return Realm(keycloak)


@pytest.fixture(scope="module")
def certificate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certificates.make(folder)
    return folder


@pytest.fixture(scope="module")
def apis(
    realm: Realm, certificate_folder: Path, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Both APIs, with mutual TLS between workloads and Keycloak's tokens for users."""
    folder = tmp_path_factory.mktemp("oidc")
    grants = folder / "grants.yaml"
    grants.write_text(yaml.safe_dump(GRANTS))
    settings = {
        "GRANTS_PATH": str(grants),
        "OIDC_ISSUER": realm.issuer,
        "OIDC_AUDIENCE": AUDIENCE,
        "OIDC_USER_CLAIM": "user_id",
        "OIDC_TENANT_CLAIM": "tenant",
    }
    options = Options(
        environment=WITHOUT_EVENTS,
        per_process={INVENTORY_API: settings, ORDER_API: settings},
        certificates={name: Files(certificate_folder / name) for name in certificates.WORKLOADS},
    )
    yield from running(Stack(Databases.in_folder(folder), embedded_broker, options=options))


@pytest.fixture(scope="module")
def clients(apis: Stack, certificate_folder: Path) -> Iterator[Clients]:
    opened = Clients(apis, channel_credentials(Files(certificate_folder / OPERATOR).for_clients.read()))
    yield opened
    opened.close()
