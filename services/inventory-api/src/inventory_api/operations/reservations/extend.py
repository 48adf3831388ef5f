"""Extends the held reservations of orders, for ExtendReservations."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from inventory_api.domain import events, transitions
from inventory_api.domain.commands import ExtendRequest
from inventory_api.domain.errors import ReservationsLimit
from inventory_api.domain.model import Reservation, State
from inventory_api.operations.reservations.confirm import lock_unreleased
from inventory_api.store import tables
from inventory_api.store.reservations import by_order, changes
from inventory_api.store.reservations.by_order import UNRELEASED_STATES
from shop_common.errors import ShopError


def extend(tx: Connection, requests: Sequence[ExtendRequest]) -> list[list[Reservation] | ShopError]:
    """For each order, move the expiry of all its held reservations to a later time, or of none of them.

    Returns one outcome per request, in order: the active and fulfilled reservations of the order, or the error that
    refused it. The errors are those of `confirm` and ExtensionLimit. A due reservation refuses its order, and does not
    change. May be repeated: an expiry never becomes earlier. Emits STOCK_RESERVATION_EXTENDED per changed reservation.
    """
    overviews = by_order.overviews(tx, (request.order_key for request in requests))
    extendable = [key for key, each in overviews.items() if not each.size.is_too_large]
    # Another transaction may have added reservations to the order after we read and before we locked. It locked the
    # other reservations of the order first, so it has ended now. Lock again, with the added reservations.
    ids, locked = lock_unreleased(tx, extendable)
    if by_order.unreleased(tx, extendable) != ids:
        ids, locked = lock_unreleased(tx, extendable)
    outcomes: list[list[Reservation] | ShopError] = []
    messages = []
    changed: dict[str, Reservation] = {}
    for request in requests:
        overview = overviews[request.order_key]
        if request.order_key not in ids:
            size = overview.size
            outcomes.append(ReservationsLimit(request.order_id, size.reservations, size.allocations))
            continue
        present = [locked.reservations[each] for each in ids[request.order_key] if each in locked.reservations]
        extension = transitions.extend(
            request.order_id,
            [each for each in present if each.state is not State.REPLACED],
            request.ttl_seconds,
            has_expired=overview.has_expired,
            has_released=overview.has_released,
            now=locked.now,
        )
        extended = {each.id: each for each in extension.extended}
        locked.reservations.update(extended)
        changed |= extended
        messages += [events.stock_reservation_extended(each, locked.now, request.cause) for each in extended.values()]
        outcomes.append(extension.refusal or _unreleased(extended.get(each.id, each) for each in present))
    if changed:
        changes.save_states(tx, changed.values(), locked.now)
        tables.outbox.append(tx, messages)
    return outcomes


def _unreleased(reservations: Iterable[Reservation]) -> list[Reservation]:
    return [each for each in reservations if each.state in UNRELEASED_STATES]
