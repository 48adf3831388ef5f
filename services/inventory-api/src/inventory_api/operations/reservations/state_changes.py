"""Changes the states of locked reservations and the counters of their items, and emits one event per change.

Confirming, releasing, fulfilling, and covering a shortage use `change_states`. ExpireReservations does not: see
expire.py. In both cases items are locked before reservations, and the state is checked under the lock. So two
transactions never change the state of one reservation at the same time, and the reserved quantity of an item always
equals the units that active reservations allocate from it.
"""

from collections.abc import Mapping

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.model import State
from inventory_api.store import items, tables
from inventory_api.store.reservations import changes as updates
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
    tables.outbox.append(tx, effect.messages)
    locked.reservations.update(effect.reservations)
    locked.items.update(effect.items)
