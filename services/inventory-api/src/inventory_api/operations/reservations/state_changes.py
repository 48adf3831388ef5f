"""Changes the state of locked reservations, with the effect on their items and one event per change.

Confirming, releasing, fulfilling, and covering a shortage go through `change_states`. The reaper does not: see
expire.py. Either way, items are locked before reservations and the state is checked under the lock. So no two
transactions change the same state, and an item's reserved quantity always equals the sum of its active reservations.
"""

from collections.abc import Mapping

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.model import State
from inventory_api.store import items, tables
from inventory_api.store.reservations import changes as updates
from inventory_api.store.reservations.locks import Locked


def change_states(
    tx: Connection,
    locked: Locked,
    changes: Mapping[str, State],
    traceparents: Mapping[str, str | None] | None = None,
) -> None:
    """Write the new states, given by reservation id, and bring `locked` up to date.

    The caller has checked on `locked` that each change is legal. `traceparents` is by reservation id.
    """
    if not changes:
        return
    effect = transitions.apply(changes, locked.reservations, locked.items, locked.now, traceparents or {})
    updates.save_states(tx, effect.reservations.values(), locked.now)
    if effect.items:
        items.save_counters(tx, effect.items.values())
    tables.outbox.append(tx, effect.messages)
    locked.reservations.update(effect.reservations)
    locked.items.update(effect.items)
