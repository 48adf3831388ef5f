"""Workloads are known by their certificates: every RPC against every kind of certificate."""

from collections.abc import Callable

import grpc
from google.protobuf.descriptor import MethodDescriptor

from devstack.servers.issuer import Issuer
from shop_common.identity.rules import ORDERS_ANY
from tests.identity.apis import Apis, every_method_with_permission, method_rule, request_of
from tests.identity.conftest import NOBODY


@every_method_with_permission
def test_a_workload_with_the_permission_alone_is_let_in(
    method: MethodDescriptor, as_workload: Callable[[str], Apis]
) -> None:
    result = as_workload(method_rule(method).permission).call(method, request_of(method))

    assert result.code is not grpc.StatusCode.UNAUTHENTICATED
    if result.code is grpc.StatusCode.PERMISSION_DENIED:  # it has the permission for its own orders, but is no user
        assert result.metadata == {"permission": ORDERS_ANY}


@every_method_with_permission
def test_a_workload_without_grants_is_denied(method: MethodDescriptor, as_workload: Callable[[str], Apis]) -> None:
    refused = as_workload(NOBODY).call(method, request_of(method))

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": method_rule(method).permission}


@every_method_with_permission
def test_a_token_decides_alone_whatever_the_certificate_is_granted(
    method: MethodDescriptor, as_workload: Callable[[str], Apis], issuer: Issuer
) -> None:
    permission = method_rule(method).permission
    granted = as_workload(permission)

    refused = granted.call(method, request_of(method), f"Bearer {issuer.token(1, 'unknown-scope')}")
    expired = granted.call(method, request_of(method), f"Bearer {issuer.token(1, permission, seconds=-3600)}")

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert (expired.code, expired.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
