"""Changes the states of locked reservations and the counters of their items, and emits one event per change.

Confirming, releasing, fulfilling, and covering a shortage use `change_states`. ExpireReservations does not: see
expire.py. In both cases items are locked before reservations, and the state is checked under the lock. So two
transactions never change the state of one reservation at the same time, and the reserved quantity of an item always
equals the units that active reservations allocate from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from inventory_api.domain import events, transitions
from inventory_api.domain.model import State
from inventory_api.domain.order_targets import Split
from inventory_api.operations.items.record_movements import record_movements
from inventory_api.store import items, tables
from inventory_api.store.reservations import changes as updates
from inventory_api.store.reservations import rows
from inventory_api.store.reservations.locks import Locked
from shop_common.api.command import Cause


def change_states(
    tx: Connection,
    locked: Locked,
    changes: Mapping[str, State],
    causes: Mapping[str, Cause] | None = None,
) -> None:
    """Write the new states and their effect on the items, append the events, and update `locked`.

    The keys of `changes` and `causes` are reservation ids. The caller has checked that each change is legal for
    the state in `locked`.
    """
    if not changes:
        return
    effect = transitions.apply(changes, locked.reservations, locked.items, locked.now, causes or {})
    updates.save_states(tx, effect.reservations.values(), locked.now)
    if effect.items:
        items.save_counters(tx, effect.items.values())
    moved = record_movements(tx, effect.quantity_changes, locked.now)
    tables.outbox.append(tx, [*effect.messages, *moved])
    locked.reservations.update(effect.reservations)
    locked.items.update(effect.items)


def replace_by_parts(tx: Connection, locked: Locked, splits: Sequence[Split], causes: Mapping[str, Cause]) -> None:
    """Insert the parts of each split, end the split reservations as REPLACED, and update `locked`.

    A part has the state of the reservation that it replaces. The counters of the items do not change. Emits
    STOCK_RESERVATION_CHANGED per split. `causes` is by reservation id.
    """
    if not splits:
        return
    replaced = [replace(each.reservation, state=State.REPLACED) for each in splits]
    parts = [part for each in splits for part in each.parts]
    rows.insert(tx, parts)
    updates.save_states(tx, replaced, locked.now)
    tables.outbox.append(
        tx,
        [
            events.stock_reservation_changed(each.reservation, each.parts, locked.now, causes[each.reservation.id])
            for each in splits
        ],
    )
    locked.reservations.update((each.id, each) for each in [*replaced, *parts])
