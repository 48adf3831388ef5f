"""Mutants: builds in which one safeguard is switched off. The checker must find violations in the histories of each."""

from tests.faults.build import Mutant

ROW_LOCK: Mutant = {"item-row-lock": ""}
"""Stock is decided on rows that other transactions change in the meantime."""

RESERVATION_STATE: Mutant = {"reservation-state-check": "if reservation.state is not State.FULFILLED"}
"""A reservation that was released or has expired is released again."""

ORDER_STATUS: Mutant = {"order-status-check": "elif False:"}
"""Any status can follow any other."""

IDEMPOTENCY_CLAIM: Mutant = {"idempotency-claim": "earlier: dict[Key, Claim] = {}"}
"""A call that is sent again has its effect again."""

DELETE_AFTER_ACKNOWLEDGEMENT: Mutant = {
    "delete-before-acknowledgement": "self._database.transact(lambda tx: self._rows.delete(tx, rows))"
}
"""Rows are deleted before the broker has their events."""

AUTOINCREMENT: Mutant = {"sqlite-autoincrement": "sqlite_autoincrement=False,"}
"""SQLite reuses the numbers of deleted rows once the table is empty."""

BEGIN_IMMEDIATE: Mutant = {"sqlite-begin": '_BEGIN_WRITE = "BEGIN"'}
"""SQLite takes the write lock at the first write, after the first read."""

STOCK_OF_TENANT: Mutant = {
    "shelf-of-tenant": "self._by_product.setdefault(ProductKey('', item.product_id), []).append(shelf)",
    "shelves-of-tenant": "shelves = self._by_product.get(ProductKey('', product.product_id), ())",
}
"""An order takes the units of all tenants that its batch has locked."""

PAGE_OF_TENANT: Mutant = {"page-of-tenant": "query = in_order"}
"""A page of items has the items of all tenants."""

CHANGE_WITHOUT_STOCK: Mutant = {"units-of-a-change": "pass"}
"""An order gets more units by a change, although they were not reserved."""

TARGETS_AGAIN: Mutant = {"totals": "final = dict(effects[key].totals)"}
"""Each event of an order releases and ships again the units of the earlier events."""

MOVEMENT_SKIPPED: Mutant = {
    "movement": "last[item.id].revision > 1 or movements.append((_movement(change, last, now), change.cause))"
}
"""Changes of an item after its first ones are recorded by no movement."""

MOVEMENT_TWICE: Mutant = {
    "movement": "movements.extend((_movement(change, last, now), change.cause) for _ in range(2))"
}
"""Each change is recorded by two movements."""

COUNTER_LEFT: Mutant = {
    "item-counters": '.values({name: given.c[name] for name in _COUNTERS if name not in ("id", "quantity")})'
}
"""Movements are recorded, but the quantity of the item stays as it was."""

DATABASE_CLOCK: Mutant = {
    # Not datetime.now, which reads the clock in C, so that test_clocks.py cannot shift it.
    "database-clock": "timestamp = datetime.fromtimestamp(__import__('time').time(), __import__('datetime').UTC)"
}
"""Each process uses its own clock."""
