"""Every RPC of every service against every kind of token."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from devstack.servers.issuer import Issuer
from devstack.stack import Stack
from shop_common.identity.rules import ORDERS_ANY, PERMISSIONS
from shop_protos.order.v1 import order_pb2
from shop_protos.order.v1.order_pb2 import GetCallerRequest, GetCallerResponse
from tests.identity.apis import METHODS, Apis, every_method, every_method_with_permission, method_rule, request_of

USER, ANOTHER_USER = 1, 2
_NOT_ALLOWED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


@pytest.fixture(scope="module")
def called(apis: Stack) -> Iterator[Apis]:
    opened = Apis(apis)
    yield opened
    opened.close()


def _token(issuer: Issuer, *scopes: str, **options: Any) -> str:
    return f"Bearer {issuer.token(USER, *(scopes or tuple(PERMISSIONS)), **options)}"


UNACCEPTABLE: dict[str, tuple[Callable[[Issuer], list[str]], str]] = {
    "no credential": (lambda _: [], "CREDENTIALS_MISSING"),
    "an expired token": (lambda issuer: [_token(issuer, seconds=-3600)], "TOKEN_EXPIRED"),
    "a token for another audience": (lambda issuer: [_token(issuer, audience="another")], "TOKEN_INVALID"),
    "a token of another issuer": (lambda issuer: [_token(issuer, iss="https://another.example")], "TOKEN_INVALID"),
    "a token with an unknown key": (lambda issuer: [_token(issuer, key_id="unknown")], "TOKEN_INVALID"),
    "a token without a user": (lambda issuer: [_token(issuer, sub=None)], "TOKEN_INVALID"),
    "no token at all": (lambda _: ["Bearer nonsense"], "TOKEN_INVALID"),
    "a password": (lambda _: ["Basic dXNlcjpwYXNzd29yZA=="], "TOKEN_INVALID"),
    "two tokens": (lambda issuer: [_token(issuer), _token(issuer)], "TOKEN_INVALID"),
}


@every_method
@pytest.mark.parametrize("credential", UNACCEPTABLE)
def test_a_caller_that_is_not_known_is_unauthenticated(
    method: MethodDescriptor, credential: str, called: Apis, issuer: Issuer
) -> None:
    headers, reason = UNACCEPTABLE[credential]

    refused = called.call(method, request_of(method), *headers(issuer))

    assert (refused.code, refused.reason, refused.metadata) == (grpc.StatusCode.UNAUTHENTICATED, reason, {})


@every_method_with_permission
def test_a_caller_without_the_permission_is_denied_whatever_else_it_may_do(
    method: MethodDescriptor, called: Apis, issuer: Issuer
) -> None:
    needed = method_rule(method).permission
    others = set(PERMISSIONS) - {needed}

    refused = called.call(method, request_of(method), _token(issuer, *others, "unknown-scope"))

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": needed}


@every_method_with_permission
def test_a_caller_with_the_permission_alone_is_let_in(method: MethodDescriptor, called: Apis, issuer: Issuer) -> None:
    allowed = called.call(method, request_of(method, user=USER), _token(issuer, method_rule(method).permission))

    assert allowed.code not in _NOT_ALLOWED


@pytest.mark.parametrize(
    "method",
    # Leave out lists of users: there, each entry is refused separately.
    [method for method in METHODS if (field := method_rule(method).own_user_field) and "." not in field],
    ids=lambda method: str(method.full_name),
)
def test_a_caller_names_another_user_only_with_a_permission_for_that(
    method: MethodDescriptor, called: Apis, issuer: Issuer
) -> None:
    request, permission = request_of(method, user=ANOTHER_USER), method_rule(method).permission

    refused = called.call(method, request, _token(issuer, permission))
    allowed = called.call(method, request, _token(issuer, permission, ORDERS_ANY))

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": ORDERS_ANY}
    assert allowed.code not in _NOT_ALLOWED


def test_a_caller_learns_who_it_is_also_without_any_permission(called: Apis, issuer: Issuer) -> None:
    method = order_pb2.DESCRIPTOR.services_by_name["OrderService"].methods_by_name["GetCaller"]

    def found(*scopes: str) -> Message:
        return called.response(method, GetCallerRequest(), [("authorization", _token(issuer, *scopes))])

    assert found("unknown-scope") == GetCallerResponse(name=f"user:{USER}", tenant="default")
    assert found("orders.write", "inventory.read") == GetCallerResponse(
        name=f"user:{USER}", tenant="default", permissions=["inventory.read", "orders.write"]
    )


def test_a_caller_is_refused_before_its_message_has_come(apis: Stack) -> None:
    """The stream of the request stays open and empty: only the headers have arrived."""
    is_refused = threading.Event()

    def never() -> Iterator[bytes]:
        is_refused.wait()
        yield from ()

    with grpc.insecure_channel(apis.orders_address) as channel:
        rpc: Any = channel.stream_unary("/shop.order.v1.OrderService/CreateOrder")
        call = rpc.future(never(), timeout=60)
        try:
            assert call.exception().code() is grpc.StatusCode.UNAUTHENTICATED
        finally:
            is_refused.set()
