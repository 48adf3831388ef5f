"""Creates, lists and revokes API keys, and reads their digests for the processes that check them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import Connection

from order_api.domain.api_keys import (
    KEYS_MAX,
    TENANT_KEYS_MAX,
    ApiKeyFilter,
    ApiKeyInfo,
    ApiKeyNotFound,
    ApiKeysLimit,
    CreatedApiKey,
    FetchApiKeys,
    NewApiKey,
    RevokeApiKey,
)
from order_api.store import api_keys
from shop_common.api.paging import Page, PageRequest, Position
from shop_common.batching.coalescer import Coalescer
from shop_common.batching.coalescers import ALONE, Coalescers
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.db.sql import now
from shop_common.errors import ShopError
from shop_common.identity import api_key
from shop_common.identity.api_key import ApiKey
from shop_common.identity.api_key_set import Uses

STORE_SECONDS = 60.0
"""The time between two statements that store the last uses."""

PAGE_KEYS = 1_000


class StoredApiKeys:
    """The keys in the orders database, for the processes that check them. Safe to share between threads.

    The uses that processes report are collected in memory and stored once in STORE_SECONDS. A process that ends loses
    the uses that it has not stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._uses: dict[str, datetime] = {}
        self._stored_at = time.monotonic()
        self._lock = threading.Lock()  # guards the two fields above

    def read(self, uses: Uses) -> Iterator[ApiKey]:
        """Yield all keys. Raises ShopError."""
        after: Position | None = None
        while True:
            page = self.fetch(FetchApiKeys(uses, PageRequest("digests", None, after, PAGE_KEYS)))
            yield from page.rows
            uses, after = {}, page.next_position
            if after is None:
                return

    def fetch(self, request: FetchApiKeys) -> Page[ApiKey]:
        """Collect the uses, and return a page of keys by id. Raises ShopError. May be repeated."""
        self._collect(request.uses)
        self._store()
        return self._database.query(lambda tx: api_keys.digests_page(tx, request.page), ALL_TENANTS)

    def _collect(self, uses: Uses) -> None:
        latest = datetime.now(UTC)
        with self._lock:
            for key_id, used_at in uses.items():
                # Callers send the ids, so bound the number of them.
                if key_id in self._uses or len(self._uses) < KEYS_MAX:
                    self._uses[key_id] = min(latest, max(used_at, self._uses.get(key_id, used_at)))

    def _store(self) -> None:
        with self._lock:
            if not self._uses or time.monotonic() - self._stored_at < STORE_SECONDS:
                return
            uses, self._uses, self._stored_at = self._uses, {}, time.monotonic()
        try:
            self._database.transact(lambda tx: api_keys.note_uses(tx, uses), ALL_TENANTS)
        except ShopError:
            self._collect(uses)
            raise


class ApiKeyOperations:
    """Every operation of ApiKeyService. `deadline` and the errors of each method are those of `Operations`.

    With `audit_log`, changes are recorded there.
    """

    def __init__(
        self,
        database: Database,
        stored: StoredApiKeys,
        *,
        on_fatal: Callable[[str, BaseException], None],
        audit_log: AuditLog | None = None,
    ) -> None:
        run = Coalescers(database, on_fatal)
        self.close = run.close
        # Creating a key counts the keys of all tenants.
        self._create: Coalescer[NewApiKey, CreatedApiKey] = run.alone(
            "create-api-key",
            lambda command: database.transact(lambda tx: _create(tx, command, audit_log), ALL_TENANTS),
        )
        self._list = run.pages("api-keys-page", api_keys.list_page)
        self._revoke = run.writes("revoke-api-key", partial(_revoke, log=audit_log), limits=ALONE)
        self._fetch = run.alone("fetch-api-keys", stored.fetch)

    def create(self, command: NewApiKey, *, deadline: float) -> CreatedApiKey:
        """Create a key. Raises PermissionMissing, if the creator lacks one of its permissions, and ApiKeysLimit."""
        for permission in sorted(command.permissions):
            command.creator.require(permission)
        return self._create.submit(command, deadline=deadline)

    def list(self, page: PageRequest[ApiKeyFilter], *, deadline: float) -> Page[ApiKeyInfo]:
        return self._list.submit(page, deadline=deadline)

    def revoke(self, command: RevokeApiKey, *, deadline: float) -> ApiKeyInfo:
        """Revoke a key. Raises ApiKeyNotFound. May be repeated."""
        return self._revoke.submit(command, deadline=deadline)

    def fetch(self, request: FetchApiKeys, *, deadline: float) -> Page[ApiKey]:
        return self._fetch.submit(request, deadline=deadline)


def _create(tx: Connection, command: NewApiKey, log: AuditLog | None) -> CreatedApiKey:
    tenant, at = command.creator.tenant, now(tx)
    # Two concurrent transactions may exceed a limit by one key. The limits bound memory, so this does no harm.
    of_tenant, in_all = api_keys.count_valid(tx, tenant, at)
    for count, limit in ((of_tenant, TENANT_KEYS_MAX), (in_all, KEYS_MAX)):
        if count >= limit:
            raise ApiKeysLimit(limit)
    key_id, text = api_key.new_text()
    lifetime = command.expires_in_seconds
    expires_at = None if lifetime is None else at + timedelta(seconds=lifetime)
    info = ApiKeyInfo(key_id, command.name, command.permissions, at, expires_at, None, None)
    api_keys.add(tx, info, tenant, api_key.digest_of(text))
    if log is not None:
        log.append(tx, [entry(command.creator, "CreateApiKey", (key_id,))])
    return CreatedApiKey(info, text)


def _revoke(tx: Connection, commands: Sequence[RevokeApiKey], log: AuditLog | None) -> list[ApiKeyInfo | ShopError]:
    return [_revoke_one(tx, command, log) for command in commands]


def _revoke_one(tx: Connection, command: RevokeApiKey, log: AuditLog | None) -> ApiKeyInfo | ShopError:
    revoked = api_keys.revoke(tx, command.id, command.caller.tenant)
    if revoked is None:
        return ApiKeyNotFound(command.id)
    if log is not None:
        log.append(tx, [entry(command.caller, "RevokeApiKey", (command.id,))])
    return revoked
