"""All SQL on the table api_keys."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Text, case, delete, func, insert, literal, or_, select, tuple_, update

from order_api.domain.api_keys import ApiKeyFilter, ApiKeyInfo
from order_api.store import tables
from shop_common.api.paging import Page, PageRequest, Position, page_of
from shop_common.db.sql import Statement, Timestamp, join_rows, now
from shop_common.identity.api_key import ApiKey
from shop_common.identity.api_key_set import Uses
from shop_common.timestamps import from_micros, micros

EXPIRED_KEPT = timedelta(days=30)
"""Processes know an expired key for this time, so that its callers learn the reason: TOKEN_EXPIRED."""

_keys = tables.api_keys
_INFO = tuple(_keys.c[name] for name in ApiKeyInfo.__slots__)


def add(tx: Connection, info: ApiKeyInfo, tenant: str, digest: bytes) -> None:
    """Insert a key."""
    values = {name: getattr(info, name) for name in ApiKeyInfo.__slots__}
    tx.execute(
        insert(_keys).values(
            values | {"permissions": " ".join(sorted(info.permissions)), "tenant": tenant, "digest": digest.hex()}
        )
    )


def count_valid(tx: Connection, tenant: str, at: datetime) -> tuple[int, int]:
    """Return the number of keys that are neither expired nor revoked: of the tenant, and in all."""
    of_tenant = func.count(case((_keys.c.tenant == tenant, 1)))
    is_valid = _keys.c.revoked_at.is_(None) & or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > at)
    row = tx.execute(select(of_tenant, func.count()).where(is_valid)).one()
    return row[0], row[1]


def revoke(tx: Connection, key_id: str, tenant: str) -> ApiKeyInfo | None:
    """Revoke the key unless it is revoked already. Returns None if the tenant has no key with this id."""
    tx.execute(
        update(_keys)
        .values(revoked_at=now(tx))
        .where(_keys.c.id == key_id, _keys.c.tenant == tenant, _keys.c.revoked_at.is_(None))
    )
    row = tx.execute(select(*_INFO).where(_keys.c.id == key_id, _keys.c.tenant == tenant)).one_or_none()
    return None if row is None else _info(row)


def list_page(tx: Connection, request: PageRequest[ApiKeyFilter]) -> Page[ApiKeyInfo]:
    """Return a page of a tenant's keys by creation time and id, newest first."""
    query = (
        select(*_INFO)
        .where(_keys.c.tenant == request.filter.tenant)
        .order_by(_keys.c.created_at.desc(), _keys.c.id.desc())
        .limit(request.size + 1)
    )
    if request.after is not None:
        created_at, key_id = request.after
        last = tuple_(literal(from_micros(int(created_at)), Timestamp()), literal(key_id, Text()))
        query = query.where(tuple_(_keys.c.created_at, _keys.c.id) < last)
    return page_of([_info(row) for row in tx.execute(query)], request.size, _position)


def delete_ended(tx: Connection, before: datetime, max_count: int) -> list[str]:
    """Delete up to `max_count` keys that were revoked or had expired before `before`. Returns their ids."""
    ended = select(_keys.c.id).where(or_(_keys.c.revoked_at < before, _keys.c.expires_at < before)).limit(max_count)
    return sorted(tx.execute(delete(_keys).where(_keys.c.id.in_(ended)).returning(_keys.c.id)).scalars())


def digests_page(tx: Connection, request: PageRequest[None]) -> Page[ApiKey]:
    """Return a page of the keys that processes must know, of all tenants, by id."""
    since = now(tx) - EXPIRED_KEPT
    query = (
        select(_keys.c.id, _keys.c.digest, _keys.c.tenant, _keys.c.permissions, _keys.c.expires_at)
        .where(_keys.c.revoked_at.is_(None), or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > since))
        .order_by(_keys.c.id)
        .limit(request.size + 1)
    )
    if request.after is not None:
        query = query.where(_keys.c.id > request.after[0])
    keys = [
        ApiKey(row.id, bytes.fromhex(row.digest), row.tenant, frozenset(row.permissions.split()), row.expires_at)
        for row in tx.execute(query)
    ]
    return page_of(keys, request.size, lambda key: (key.id,))


def note_uses(tx: Connection, uses: Uses) -> None:
    """Store when keys were last used. A time never moves back. Ignores unknown ids."""
    # Sorted, so that two processes lock the rows in the same order.
    _note_uses(tx, [{"id": key_id, "last_used_at": uses[key_id]} for key_id in sorted(uses)])


def _info(row: Row[Any]) -> ApiKeyInfo:
    return ApiKeyInfo(
        row.id, row.name, frozenset(row.permissions.split()),
        row.created_at, row.expires_at, row.revoked_at, row.last_used_at,
    )  # fmt: skip


def _position(key: ApiKeyInfo) -> Position:
    return (micros(key.created_at), key.id)


_note_uses = Statement(
    lambda given: (
        update(_keys)
        .values(last_used_at=given.c.last_used_at)
        .where(
            *join_rows(_keys.c.id, given.c.id),
            or_(_keys.c.last_used_at.is_(None), _keys.c.last_used_at < given.c.last_used_at),
        )
    ),
    id=Text(),
    last_used_at=Timestamp(),
)
