"""inventory-api and order-api as processes that check who calls them, and an issuer of tokens."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from devstack import certificates
from devstack.certificates import OPERATOR, Authority, Files
from devstack.kafka import Kafka
from devstack.servers.issuer import AUDIENCE, Issuer
from devstack.stack import Databases, Options, Stack
from shop_common.identity.rules import PERMISSIONS
from shop_common.rpc.tls import channel_credentials
from shopctl.system.layout import INVENTORY_API, ORDER_API
from testkit.apis import WITHOUT_EVENTS, running
from tests.identity.apis import Apis

NOBODY = "not-in-the-grants"
ACME_OPERATOR = "acme-operator"
"""A workload of the tenant `acme`."""


@pytest.fixture(scope="session")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


def secured(issuer: Issuer, folder: Path, *, workloads: Mapping[str, object] | None = None) -> dict[str, str]:
    """Settings of an API that checks its callers. Each permission is granted to the scope of the same name."""
    grants = folder / "grants.yaml"
    scopes = {permission: [permission] for permission in PERMISSIONS}
    grants.write_text(yaml.safe_dump({"scopes": scopes, "workloads": dict(workloads or {})}))
    return {"GRANTS_PATH": str(grants), "OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": AUDIENCE}


@pytest.fixture(scope="session")
def apis(issuer: Issuer, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both APIs, started once. They check the callers of every RPC."""
    folder = tmp_path_factory.mktemp("identity")
    settings = secured(issuer, folder)
    options = Options(environment=WITHOUT_EVENTS, per_process={INVENTORY_API: settings, ORDER_API: settings})
    yield from running(Stack(Databases.in_folder(folder), embedded_broker, options=options))


@pytest.fixture(scope="session")
def shop(issuer: Issuer, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both APIs; order-api checks its callers, inventory-api serves everybody."""
    folder = tmp_path_factory.mktemp("shop")
    options = Options(environment=WITHOUT_EVENTS, per_process={ORDER_API: secured(issuer, folder)})
    yield from running(Stack(Databases.in_folder(folder), embedded_broker, options=options))


@pytest.fixture(scope="session")
def workload_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a certificate for each workload of the system, for each permission, and for the two workloads
    above.
    """
    made = tmp_path_factory.mktemp("certificates")
    certificates.make(made)
    authority = Authority.load(made)
    for workload in (*PERMISSIONS, NOBODY, ACME_OPERATOR):
        authority.issue(workload, Files(made / workload), trusts=[authority])
    return made


@pytest.fixture(scope="session")
def secure_apis(
    issuer: Issuer, workload_files: Path, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Both APIs with mutual TLS. A workload that is named for a permission has this permission."""
    data = tmp_path_factory.mktemp("workloads")
    every = list(PERMISSIONS)
    workloads: dict[str, object] = {certificates.spiffe_id(permission): [permission] for permission in PERMISSIONS}
    workloads[certificates.spiffe_id(OPERATOR)] = every
    workloads[certificates.spiffe_id(ACME_OPERATOR)] = {"permissions": every, "tenant": "acme"}
    workloads[certificates.spiffe_id(INVENTORY_API)] = ["keys.read"]
    settings = secured(issuer, data, workloads=workloads)
    options = Options(
        environment=WITHOUT_EVENTS,
        per_process={INVENTORY_API: settings, ORDER_API: settings},
        certificates={name: Files(workload_files / name) for name in certificates.WORKLOADS},
    )
    yield from running(Stack(Databases.in_folder(data), embedded_broker, options=options))


@pytest.fixture(scope="session")
def as_workload(secure_apis: Stack, workload_files: Path) -> Iterator[Callable[[str], Apis]]:
    """A function that returns a client of `secure_apis` with the certificate of a workload."""
    opened: dict[str, Apis] = {}

    def connect(workload: str) -> Apis:
        if workload not in opened:
            credentials = channel_credentials(Files(workload_files / workload).for_clients.read())
            opened[workload] = Apis(secure_apis, credentials)
        return opened[workload]

    yield connect
    for apis in opened.values():
        apis.close()
