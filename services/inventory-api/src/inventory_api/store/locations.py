"""All SQL on the table locations, except the joins of items with it."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import BigInteger, Boolean, Connection, Row, Text, select, update

from inventory_api.domain.model import Location, LocationKey
from inventory_api.store import tables
from shop_common.db.sql import Statement, Timestamp, insert_into, is_each

_locations = tables.locations

_COLUMNS = tuple(_locations.c[name] for name in Location.__slots__)


def load(tx: Connection, keys: Iterable[LocationKey]) -> dict[LocationKey, Location]:
    """Return the locations with these keys, without a lock. Locations without a row are left out."""
    rows = [key._asdict() for key in set(keys)]
    return {location.key: location for location in map(_location, _load(tx, rows))} if rows else {}


def load_page(tx: Connection, tenant: str, *, after: str | None, limit: int) -> list[Location]:
    """Return at most `limit` locations of the tenant that come after the location `after`, sorted by location."""
    query = select(*_COLUMNS).where(_locations.c.tenant == tenant).order_by(_locations.c.location).limit(limit)
    if after is not None:
        query = query.where(_locations.c.location > after)
    return [_location(row) for row in tx.execute(query)]


def lock(tx: Connection, keys: Iterable[LocationKey], now: datetime) -> dict[LocationKey, Location]:
    """Lock and return the locations with these keys. Inserts those without a row, with default values."""
    # Sorted, so that two transactions with the same locations wait for each other and do not deadlock.
    rows = [key._asdict() for key in sorted(set(keys))]
    _insert_defaults(tx, [_row(Location(**row, updated_at=now)) for row in rows])
    return {location.key: location for location in map(_location, _lock(tx, rows))}


def save(tx: Connection, locked: Iterable[Location]) -> None:
    """Write the properties of locked locations."""
    _save(tx, [_row(location) for location in locked])


def _row(location: Location) -> dict[str, object]:
    return {
        "tenant": location.tenant,
        "location": location.location,
        "is_active": location.is_active,
        "priority": location.priority,
        "region": location.region,
        "labels": orjson.dumps(dict(location.labels)).decode(),
        "updated_at": location.updated_at,
    }


def _location(row: Row[Any]) -> Location:
    labels = tuple(orjson.loads(row.labels).items())
    return Location(row.tenant, row.location, row.is_active, row.priority, row.region, labels, row.updated_at)


_KEY = {"tenant": Text(), "location": Text()}
_load = Statement(
    lambda given: select(*_COLUMNS).where(*is_each(_locations, given, *LocationKey._fields)),
    **_KEY,
)
_lock = Statement(
    lambda given: (
        select(*_COLUMNS)
        .where(*is_each(_locations, given, *LocationKey._fields))
        .order_by(_locations.c.tenant, _locations.c.location)
        .with_for_update(of=_locations)
    ),
    **_KEY,
)
_insert_defaults = insert_into(_locations, *Location.__slots__, or_ignore=True)
_save = Statement(
    lambda given: (
        update(_locations)
        .values({name: given.c[name] for name in Location.__slots__ if name not in LocationKey._fields})
        .where(*is_each(_locations, given, *LocationKey._fields))
    ),
    **_KEY,
    is_active=Boolean(),
    priority=BigInteger(),
    region=Text(),
    labels=Text(),
    updated_at=Timestamp(),
)
