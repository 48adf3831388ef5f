"""API keys at both APIs: every RPC against every kind of key, and a key that is replaced under load."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from devstack.certificates import OPERATOR
from shop_common.identity.rules import ORDERS_ANY, PERMISSIONS
from shop_protos.access.v1 import keys_pb2 as pb
from shop_protos.access.v1.keys_pb2_grpc import ApiKeyServiceStub
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2
from testkit.calls import Outcome, refusal
from testkit.eventually import eventually
from tests.identity.apis import Apis, every_method, every_method_with_permission, method_rule, request_of
from tests.identity.conftest import ACME_OPERATOR, NOBODY

CHECK_STOCK = inventory_pb2.DESCRIPTOR.services_by_name["InventoryService"].methods_by_name["CheckStock"]
LIST_ORDERS = order_pb2.DESCRIPTOR.services_by_name["OrderService"].methods_by_name["ListOrders"]
PROBES = {
    CHECK_STOCK: inventory_pb2.CheckStockRequest(product_id=1, required_quantity=1),
    LIST_ORDERS: order_pb2.ListOrdersRequest(),
}
"""A call of each API that a key with all permissions may make."""

LOAD_CALLERS = 4


@dataclass(frozen=True)
class Keys:
    """Texts of keys, and the client that presents them. Its certificate is granted nothing."""

    apis: Apis
    manager: ApiKeyServiceStub
    full: pb.CreateApiKeyResponse
    by_permission: dict[str, str]
    expired: str
    revoked: str
    used_at_inventory_api: str

    def call(self, method: MethodDescriptor, key: str) -> Outcome:
        return self.apis.call(method, request_of(method), f"Bearer {key}")

    def probe(self, key: str) -> set[tuple[grpc.StatusCode, str]]:
        """The outcomes of a call with this key at each API."""
        outcomes = [self.apis.call(method, request, f"Bearer {key}") for method, request in PROBES.items()]
        return {(outcome.code, outcome.reason) for outcome in outcomes}


ACCEPTED = {(grpc.StatusCode.OK, "")}
REFUSED = {(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")}
EXPIRED = {(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")}


def _manager(apis: Apis) -> ApiKeyServiceStub:
    return ApiKeyServiceStub(apis.channels["shop.access.v1"])


def _create(manager: ApiKeyServiceStub, *permissions: str, **options: Any) -> pb.CreateApiKeyResponse:
    request = pb.CreateApiKeyRequest(name="a test", permissions=permissions or list(PERMISSIONS), **options)
    return manager.CreateApiKey(request, timeout=60)


def _revoke(manager: ApiKeyServiceStub, created: pb.CreateApiKeyResponse) -> None:
    manager.RevokeApiKey(pb.RevokeApiKeyRequest(id=created.api_key.id), timeout=60)


@pytest.fixture(scope="module")
def keys(as_workload: Callable[[str], Apis]) -> Keys:
    manager = _manager(as_workload(OPERATOR))
    by_permission = {permission: _create(manager, permission).key for permission in PERMISSIONS}
    expired, revoked = _create(manager, expires_in=Duration(seconds=1)), _create(manager)
    _revoke(manager, revoked)
    used, full = _create(manager), _create(manager)
    made = Keys(as_workload(NOBODY), manager, full, by_permission, expired.key, revoked.key, used.api_key.id)
    # `full` was created last, so a process that accepts it has read all of these keys.
    eventually(lambda: made.probe(full.key) == ACCEPTED)
    eventually(lambda: made.probe(expired.key) == EXPIRED)
    made.call(CHECK_STOCK, used.key)
    return made


def _changed(key: str) -> str:
    return key[:-4] + ("aaaa" if key[-4:] != "aaaa" else "bbbb")


UNACCEPTABLE: dict[str, tuple[Callable[[Keys], str], str]] = {
    "an unknown key": (lambda keys: f"shop_live_{'a' * 16}_{'b' * 52}", "TOKEN_INVALID"),
    "a malformed key": (lambda keys: "shop_live_", "TOKEN_INVALID"),
    "a wrong secret": (lambda keys: _changed(keys.full.key), "TOKEN_INVALID"),
    "a wrong secret of an expired key": (lambda keys: _changed(keys.expired), "TOKEN_INVALID"),
    "a revoked key": (lambda keys: keys.revoked, "TOKEN_INVALID"),
    "an expired key": (lambda keys: keys.expired, "TOKEN_EXPIRED"),
}


@every_method
@pytest.mark.parametrize("kind", UNACCEPTABLE)
def test_a_caller_without_a_valid_key_is_unauthenticated(method: MethodDescriptor, kind: str, keys: Keys) -> None:
    key, reason = UNACCEPTABLE[kind]

    refused = keys.call(method, key(keys))

    assert (refused.code, refused.reason, refused.metadata) == (grpc.StatusCode.UNAUTHENTICATED, reason, {})


@every_method_with_permission
def test_a_key_with_the_permission_alone_is_let_in(method: MethodDescriptor, keys: Keys) -> None:
    result = keys.call(method, keys.by_permission[method_rule(method).permission])

    assert result.code is not grpc.StatusCode.UNAUTHENTICATED
    if result.code is grpc.StatusCode.PERMISSION_DENIED:  # it has the permission for its own orders, but is no user
        assert result.metadata == {"permission": ORDERS_ANY}


@every_method_with_permission
def test_a_key_without_the_permission_is_denied(method: MethodDescriptor, keys: Keys) -> None:
    needed = method_rule(method).permission
    other = next(permission for permission in PERMISSIONS if permission not in (needed, "delegate"))

    refused = keys.call(method, keys.by_permission[other])

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": needed}


def test_an_administrator_cannot_make_a_key_that_may_do_more(keys: Keys, as_workload: Callable[[str], Apis]) -> None:
    refused = refusal(lambda: _create(_manager(as_workload("admin")), "admin", "inventory.write"))

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": "inventory.write"}


def test_a_key_of_another_tenant_is_neither_listed_nor_revoked(keys: Keys, as_workload: Callable[[str], Apis]) -> None:
    acme = _manager(as_workload(ACME_OPERATOR))
    created = _create(acme)

    refused = refusal(lambda: _revoke(keys.manager, created))

    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "API_KEY_NOT_FOUND")
    assert [key.id for key in acme.ListApiKeys(pb.ListApiKeysRequest(), timeout=60).api_keys] == [created.api_key.id]
    listed = keys.manager.ListApiKeys(pb.ListApiKeysRequest(page_size=1000), timeout=60).api_keys
    assert created.api_key.id not in {key.id for key in listed}
    eventually(lambda: keys.probe(created.key) == ACCEPTED)


class _Load:
    """Threads that call both APIs with a key until the end of the block. `outcomes` are those of all calls."""

    def __init__(self, keys: Keys, key: str) -> None:
        self.key = key
        self.outcomes: set[tuple[grpc.StatusCode, str]] = set()
        self.calls = 0
        self._keys = keys
        self._is_ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(LOAD_CALLERS)]

    def _run(self) -> None:
        while not self._is_ended.is_set():
            self.outcomes |= self._keys.probe(self.key)
            self.calls += 1

    def __enter__(self) -> "_Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def old(keys: Keys) -> pb.CreateApiKeyResponse:
    """A key that both APIs accept."""
    created = _create(keys.manager)
    eventually(lambda: keys.probe(created.key) == ACCEPTED)
    return created


@pytest.fixture
def load(keys: Keys, old: pb.CreateApiKeyResponse) -> Iterator[_Load]:
    with _Load(keys, old.key) as running:
        yield running


def test_a_key_is_replaced_under_load_without_a_failed_call(
    keys: Keys, old: pb.CreateApiKeyResponse, load: _Load
) -> None:
    new = _create(keys.manager)
    eventually(lambda: keys.probe(new.key) == ACCEPTED)
    calls = load.calls

    load.key = new.key
    eventually(lambda: load.calls > calls + 2 * LOAD_CALLERS)
    _revoke(keys.manager, old)

    eventually(lambda: keys.probe(old.key) == REFUSED)
    assert load.outcomes == ACCEPTED
    assert keys.probe(new.key) == ACCEPTED


@pytest.mark.timeout(300)
def test_order_api_stores_a_use_that_inventory_api_reports(keys: Keys) -> None:
    """The key was used when the first test of this module started, since the uses are stored once a minute."""

    def is_stored() -> bool:
        page = keys.manager.ListApiKeys(pb.ListApiKeysRequest(page_size=1000), timeout=60)
        return any(key.id == keys.used_at_inventory_api and key.HasField("last_used_at") for key in page.api_keys)

    eventually(is_stored, within_seconds=240)
