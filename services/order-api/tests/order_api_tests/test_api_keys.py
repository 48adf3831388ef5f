"""ApiKeyService: keys are created, listed, revoked, and read by the processes that check them."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select, update

from order_api.domain.api_keys import ApiKeyNotFound, ApiKeysLimit, CreatedApiKey, NewApiKey, RevokeApiKey
from order_api.domain.commands import PurgeKeys
from order_api.operations import api_keys as operations
from order_api.operations.api_keys import ApiKeyOperations, StoredApiKeys
from order_api.operations.purge import KeyPurge, Purged
from order_api.store import tables
from shop_common.db.database import Database
from shop_common.identity import api_key
from shop_common.identity.caller import Caller
from shop_common.identity.errors import PermissionMissing
from shop_common.timestamps import to_proto
from shop_protos.access.v1 import keys_pb2 as pb
from shop_protos.access.v1.keys_pb2_grpc import ApiKeyServiceStub
from testkit.calls import refusal
from testkit.drivers.order_api import OrderApiDriver

DAY_SECONDS = 24 * 3600
ADMIN = Caller("spiffe://shop/shopctl", frozenset({"admin", "inventory.read", "orders.read"}), tenant="acme")


@pytest.fixture
def stub(database: Database) -> Iterator[ApiKeyServiceStub]:
    """ApiKeyService without inventory-api, which it does not need."""
    with OrderApiDriver.serving(database, "localhost:1") as opened:
        yield opened.api_keys


@pytest.fixture
def stored(database: Database) -> StoredApiKeys:
    return StoredApiKeys(database)


@pytest.fixture
def keys(database: Database, stored: StoredApiKeys) -> Iterator[ApiKeyOperations]:
    def fail(what: str, error: BaseException) -> None:
        raise AssertionError(what) from error

    made = ApiKeyOperations(database, stored, on_fatal=fail, audit_log=tables.audit_log)
    yield made
    made.close()


def _deadline() -> float:
    return time.monotonic() + 30


def _new(*permissions: str, creator: Caller = ADMIN, name: str = "a program") -> NewApiKey:
    return NewApiKey(name, frozenset(permissions or ("inventory.read",)), None, creator)


def _create(keys: ApiKeyOperations, *permissions: str, **options: Any) -> CreatedApiKey:
    return keys.create(_new(*permissions, **options), deadline=_deadline())


def test_a_new_key_is_shown_once_and_stored_as_its_digest(stub: ApiKeyServiceStub, database: Database) -> None:
    request = pb.CreateApiKeyRequest(
        name="reports", permissions=["orders.read", "inventory.read"], expires_in=Duration(seconds=3600)
    )

    created = stub.CreateApiKey(request)

    key = created.api_key
    assert created.key.startswith(f"shop_live_{key.id}_")
    assert (key.name, list(key.permissions)) == ("reports", ["inventory.read", "orders.read"])
    assert key.expires_at.ToDatetime() - key.created_at.ToDatetime() == timedelta(hours=1)
    (listed,) = stub.ListApiKeys(pb.ListApiKeysRequest()).api_keys
    assert listed == key
    (row,) = database.query(lambda tx: tx.execute(select(tables.api_keys)).all())
    assert row.digest == api_key.digest_of(created.key).hex()
    secret = created.key.rpartition("_")[2]
    assert not any(secret in str(value) for value in row)


def test_the_text_of_a_key_is_not_in_the_text_of_the_message() -> None:
    assert pb.CreateApiKeyResponse.DESCRIPTOR.fields_by_name["key"].GetOptions().debug_redact


def test_a_key_cannot_do_more_than_its_creator(keys: ApiKeyOperations) -> None:
    with pytest.raises(PermissionMissing) as refused:
        _create(keys, "inventory.read", "orders.write")

    assert refused.value.metadata() == {"permission": "orders.write"}


def test_a_key_belongs_to_the_tenant_of_its_creator(keys: ApiKeyOperations, stored: StoredApiKeys) -> None:
    created = _create(keys)

    with pytest.raises(ApiKeyNotFound):
        keys.revoke(RevokeApiKey(created.key.id, replace(ADMIN, tenant="default")), deadline=_deadline())

    (known,) = stored.read({})
    assert (known.id, known.tenant) == (created.key.id, "acme")
    assert keys.revoke(RevokeApiKey(created.key.id, ADMIN), deadline=_deadline()).revoked_at is not None


def test_other_tenants_do_not_list_a_key(keys: ApiKeyOperations, stub: ApiKeyServiceStub) -> None:
    _create(keys)

    assert not stub.ListApiKeys(pb.ListApiKeysRequest()).api_keys


def test_revoking_a_key_again_changes_nothing(stub: ApiKeyServiceStub, stored: StoredApiKeys) -> None:
    key = stub.CreateApiKey(pb.CreateApiKeyRequest(name="old", permissions=["admin"])).api_key

    first = stub.RevokeApiKey(pb.RevokeApiKeyRequest(id=key.id)).api_key
    second = stub.RevokeApiKey(pb.RevokeApiKeyRequest(id=key.id)).api_key

    assert first.HasField("revoked_at")
    assert first == second
    assert not list(stored.read({}))


def test_an_unknown_key_is_not_found(stub: ApiKeyServiceStub) -> None:
    refused = refusal(lambda: stub.RevokeApiKey(pb.RevokeApiKeyRequest(id="a" * 16)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "API_KEY_NOT_FOUND")
    assert refused.metadata == {"id": "a" * 16}


def test_pages_of_keys_neither_skip_nor_repeat(stub: ApiKeyServiceStub) -> None:
    created = [
        stub.CreateApiKey(pb.CreateApiKeyRequest(name=str(number), permissions=["admin"])).api_key.id
        for number in range(5)
    ]

    listed: list[str] = []
    fetched: list[str] = []
    token = ""
    while True:
        page = stub.ListApiKeys(pb.ListApiKeysRequest(page_size=2, page_token=token))
        listed += [key.id for key in page.api_keys]
        if not (token := page.next_page_token):
            break
    while True:
        digests = stub.FetchApiKeys(pb.FetchApiKeysRequest(page_size=2, page_token=token))
        fetched += [key.id for key in digests.digests]
        if not (token := digests.next_page_token):
            break

    assert listed == created[::-1], "newest first"
    assert fetched == sorted(created)


def test_keys_that_ended_make_room_for_new_ones(keys: ApiKeyOperations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "TENANT_KEYS_MAX", 2)
    created = [_create(keys) for _ in range(2)]

    with pytest.raises(ApiKeysLimit) as refused:
        _create(keys)
    assert refused.value.metadata() == {"limit": "2"}

    keys.revoke(RevokeApiKey(created[0].key.id, ADMIN), deadline=_deadline())
    _create(keys)


def test_all_tenants_together_have_a_limit(keys: ApiKeyOperations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "KEYS_MAX", 1)
    _create(keys)

    with pytest.raises(ApiKeysLimit):
        _create(keys, creator=Caller("another", ADMIN.permissions, tenant="another"))


def test_an_expired_key_is_known_for_thirty_days(
    keys: ApiKeyOperations, stored: StoredApiKeys, database: Database
) -> None:
    created = _create(keys).key

    def expire(days: int) -> None:
        at = datetime.now(UTC) - timedelta(days=days)
        database.transact(lambda tx: tx.execute(update(tables.api_keys).values(expires_at=at)))

    expire(29)
    assert [key.id for key in stored.read({})] == [created.id]
    expire(31)
    assert not list(stored.read({}))


def test_ended_keys_are_purged_after_ninety_days(
    keys: ApiKeyOperations, stored: StoredApiKeys, database: Database
) -> None:
    days = (89, 91, 100)
    used, *revoked = (_create(keys).key.id for _ in (0, *days))
    expired = [_create(keys, creator=replace(ADMIN, tenant="other")).key.id for _ in days]
    for key_ids, column in ((revoked, "revoked_at"), (expired, "expires_at")):
        for key_id, age in zip(key_ids, days, strict=True):
            _set(database, key_id, column, datetime.now(UTC) - timedelta(days=age))
    purge = KeyPurge(database, tables.audit_log).purge

    assert purge(PurgeKeys(95 * DAY_SECONDS, 10)) == Purged(0, 2)
    assert purge(PurgeKeys(DAY_SECONDS, 1)) == Purged(0, 1)
    assert purge(PurgeKeys(DAY_SECONDS, 10)) == Purged(0, 1)
    assert purge(PurgeKeys(DAY_SECONDS, 10)) == Purged(0, 0)

    left = database.query(lambda tx: set(tx.execute(select(tables.api_keys.c.id)).scalars()))
    assert left == {used, revoked[0], expired[0]}
    assert [key.id for key in stored.read({})] == [used]
    audited = database.query(
        lambda tx: tx.execute(
            select(tables.audit_log.table.c.resources).where(tables.audit_log.table.c.method == "PurgeHistory")
        ).scalars()
    )
    assert sorted(key_id for row in audited for key_id in json.loads(row)) == sorted([*revoked[1:], *expired[1:]])


def _set(database: Database, key_id: str, column: str, at: datetime) -> None:
    database.transact(
        lambda tx: tx.execute(update(tables.api_keys).where(tables.api_keys.c.id == key_id).values({column: at}))
    )


def test_last_uses_are_stored_once_a_minute_and_never_move_back(
    keys: ApiKeyOperations, stub: ApiKeyServiceStub, stored: StoredApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = _create(keys, creator=Caller("anyone", ADMIN.permissions)).key
    used_at = key.created_at

    def last_used() -> datetime | None:
        (listed,) = stub.ListApiKeys(pb.ListApiKeysRequest()).api_keys
        return listed.last_used_at.ToDatetime(UTC) if listed.HasField("last_used_at") else None

    list(stored.read({key.id: used_at, "a" * 16: used_at}))
    assert last_used() is None, "it is not time yet"

    monkeypatch.setattr(operations, "STORE_SECONDS", 0.0)
    list(stored.read({}))
    assert last_used() == used_at
    list(stored.read({key.id: used_at - timedelta(days=1)}))
    assert last_used() == used_at


def test_a_use_in_the_future_counts_as_now(
    stub: ApiKeyServiceStub, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "STORE_SECONDS", 0.0)
    key = stub.CreateApiKey(pb.CreateApiKeyRequest(name="a clock", permissions=["admin"])).api_key
    use = pb.ApiKeyUse(id=key.id, used_at=to_proto(datetime.now(UTC) + timedelta(days=1)))

    stub.FetchApiKeys(pb.FetchApiKeysRequest(uses=[use]))

    (listed,) = stub.ListApiKeys(pb.ListApiKeysRequest()).api_keys
    assert key.created_at.ToDatetime() <= listed.last_used_at.ToDatetime(UTC).replace(tzinfo=None)
    assert listed.last_used_at.ToDatetime(UTC) <= datetime.now(UTC)


def test_the_audit_log_has_who_created_and_revoked_a_key(keys: ApiKeyOperations, database: Database) -> None:
    created = _create(keys).key
    revoker = replace(ADMIN, name="user:7", subject="7")

    keys.revoke(RevokeApiKey(created.id, revoker), deadline=_deadline())
    with pytest.raises(ApiKeyNotFound):
        keys.revoke(RevokeApiKey("a" * 16, revoker), deadline=_deadline())

    log = tables.audit_log.table
    rows = database.query(
        lambda tx: tx.execute(
            select(log.c.tenant, log.c.caller, log.c.method, log.c.resources).order_by(log.c.id)
        ).all()
    )
    assert [tuple(row) for row in rows] == [
        ("acme", ADMIN.name, "CreateApiKey", f'["{created.id}"]'),
        ("acme", "user:7", "RevokeApiKey", f'["{created.id}"]'),
    ]
