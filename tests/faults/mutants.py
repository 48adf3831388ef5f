"""Mutants: builds in which one safeguard is switched off. The checker has to notice each."""

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

DATABASE_CLOCK: Mutant = {"database-clock": "timestamp = datetime.now(__import__('datetime').UTC)"}
"""Each process uses its own clock."""
