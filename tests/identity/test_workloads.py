"""Workloads are known by their certificates: every RPC against every kind of certificate."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from devstack import certificates
from devstack.certificates import Authority, Files
from devstack.kafka import Kafka
from devstack.servers.issuer import Issuer
from devstack.stack import Databases, Options, Stack
from shop_common.identity.rules import ORDERS_ANY, PERMISSIONS
from shop_common.rpc.tls import channel_credentials
from shopctl.system.layout import INVENTORY_API, ORDER_API
from tests.identity.apis import Apis, every_method, method_rule, request_of
from tests.identity.conftest import WITHOUT_EVENTS, running, secured

NOBODY = "not-in-the-grants"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a certificate for each workload of the system, for each permission, and for NOBODY."""
    made = tmp_path_factory.mktemp("certificates")
    certificates.make(made)
    authority = Authority.load(made)
    for workload in (*PERMISSIONS, NOBODY):
        authority.issue(workload, Files(made / workload), trusts=[authority])
    return made


@pytest.fixture(scope="module")
def stack(
    issuer: Issuer, folder: Path, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Both APIs with mutual TLS. The permission of each workload is its name."""
    data = tmp_path_factory.mktemp("workloads")
    workloads = {certificates.spiffe_id(permission): [permission] for permission in PERMISSIONS}
    settings = secured(issuer, data, workloads=workloads)
    files = {name: Files(folder / name) for name in certificates.WORKLOADS}
    options = Options(
        environment=WITHOUT_EVENTS,
        per_process={INVENTORY_API: settings, ORDER_API: settings},
        certificates=files,
    )
    yield from running(Stack(Databases.in_folder(data), embedded_broker, options=options))


@pytest.fixture(scope="module")
def as_workload(stack: Stack, folder: Path) -> Iterator[Callable[[str], Apis]]:
    opened: dict[str, Apis] = {}

    def connect(workload: str) -> Apis:
        if workload not in opened:
            opened[workload] = Apis(stack, channel_credentials(Files(folder / workload).for_clients.read()))
        return opened[workload]

    yield connect
    for apis in opened.values():
        apis.close()


@every_method
def test_a_workload_with_the_permission_alone_is_let_in(
    method: MethodDescriptor, as_workload: Callable[[str], Apis]
) -> None:
    result = as_workload(method_rule(method).permission).call(method, request_of(method))

    assert result.code is not grpc.StatusCode.UNAUTHENTICATED
    if result.code is grpc.StatusCode.PERMISSION_DENIED:  # it has the permission for its own orders, but is no user
        assert result.metadata == {"permission": ORDERS_ANY}


@every_method
def test_a_workload_without_grants_is_denied(method: MethodDescriptor, as_workload: Callable[[str], Apis]) -> None:
    refused = as_workload(NOBODY).call(method, request_of(method))

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": method_rule(method).permission}


@every_method
def test_a_token_decides_alone_whatever_the_certificate_is_granted(
    method: MethodDescriptor, as_workload: Callable[[str], Apis], issuer: Issuer
) -> None:
    permission = method_rule(method).permission
    granted = as_workload(permission)

    refused = granted.call(method, request_of(method), f"Bearer {issuer.token(1, 'unknown-scope')}")
    expired = granted.call(method, request_of(method), f"Bearer {issuer.token(1, permission, seconds=-3600)}")

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert (expired.code, expired.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
