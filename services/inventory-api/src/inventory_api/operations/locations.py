"""Changes and reads the properties of locations, for UpdateLocation and ListLocations."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from inventory_api.domain.commands import LocationFilter, UpdateLocation
from inventory_api.domain.model import Location, LocationKey
from inventory_api.store import locations, tables
from shop_common.api.paging import Page, PageRequest, page_of
from shop_common.db.sql import now
from shop_common.errors import ShopError


def update_locations(tx: Connection, requests: Sequence[UpdateLocation]) -> list[Location | ShopError]:
    """Change the properties of each location, one request after another.

    Returns one outcome per request, in order: the location, or RequestIdReused. A repeated request_id returns the
    location as it is now and changes nothing.
    """
    claimed = tables.idempotency_keys.claim(tx, requests, [request.claim() for request in requests])
    repeated = [LocationKey(claim.tenant, claim.resources[0]) for claim in claimed.replays]
    stored = locations.load(tx, repeated)
    return claimed.settle(tx, replayed=[stored[key] for key in repeated], new=_update(tx, claimed.new))


def _update(tx: Connection, requests: Sequence[UpdateLocation]) -> list[Location | ShopError]:
    if not requests:
        return []
    changed = locations.lock(tx, (request.key for request in requests), now(tx))
    timestamp = now(tx)
    outcomes: list[Location | ShopError] = []
    for request in requests:
        location = _changed(changed[request.key], request, timestamp)
        changed[request.key] = location
        outcomes.append(location)
    locations.save(tx, changed.values())
    return outcomes


def _changed(location: Location, request: UpdateLocation, now: datetime) -> Location:
    return replace(
        location,
        is_active=location.is_active if request.is_active is None else request.is_active,
        priority=location.priority if request.priority is None else request.priority,
        region=location.region if request.region is None else request.region,
        labels=location.labels if request.labels is None else request.labels,
        updated_at=now,
    )


def list_locations(tx: Connection, request: PageRequest[LocationFilter]) -> Page[Location]:
    """Return a page of a tenant's locations whose properties were set, sorted by location."""
    after = str(request.after[0]) if request.after else None
    stored = locations.load_page(tx, request.filter.tenant, after=after, limit=request.size + 1)
    return page_of(stored, request.size, lambda location: (location.location,))
