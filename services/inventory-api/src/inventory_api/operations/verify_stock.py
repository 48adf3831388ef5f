"""VerifyStock: finds items whose counters do not match the rows from which they follow, and repairs them on request."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from inventory_api.domain.commands import VerifyRequest
from inventory_api.domain.model import Item
from inventory_api.domain.verification import Counters, Mismatch, MismatchKind, WrongAllocations, mismatches
from inventory_api.store import items, verification
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.db.sql import now
from shop_common.telemetry import logs

TURN_ITEMS = 500
"""The most items that one statement compares."""

MISMATCHES_MAX = 1_000
"""A call ends early after this many mismatches, so that its response stays small."""

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of one call. `next_after_id` is 0 if no item is left."""

    count: int
    next_after_id: int
    mismatches: Sequence[Mismatch]


class StockVerification:
    """Verifies the items of all tenants in one database."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def run(self, request: VerifyRequest) -> Verified:
        """Verify at most `max_count` items with ids above `after_item_id`. Returns the mismatches by item id.

        Reads in turns, without locks. Only an item that does not match is locked, and read again, in a transaction of
        its own. With `repair`, that transaction also repairs the mismatches that have one right answer. May be
        repeated. Emits nothing.
        """
        count, after_id = 0, request.after_item_id
        found: list[Mismatch] = []
        while count < request.max_count:
            turn = self._read(after_id, min(TURN_ITEMS, request.max_count - count))
            if not turn:
                return Verified(count, 0, found)
            for counters in turn:
                count, after_id = count + 1, counters.item_id
                if not counters.is_sound:
                    found += self._recheck(request, counters.item_id)
                    if len(found) >= MISMATCHES_MAX:
                        return Verified(count, after_id, found)
        return Verified(count, after_id, found)

    def _read(self, after_id: int, limit: int) -> list[Counters]:
        return self._database.query(lambda tx: verification.read_counters(tx, after_id, limit), ALL_TENANTS)

    def _recheck(self, request: VerifyRequest, item_id: int) -> list[Mismatch]:
        # Read the reservations before the lock, because this reads the history of the product. Under the lock, only
        # those that were found are read again.
        wrong = self._database.query(lambda tx: verification.wrong_allocations(tx, item_id), ALL_TENANTS)
        found = self._database.transact(lambda tx: self._check_locked(tx, request, item_id, wrong), ALL_TENANTS)
        for mismatch in found:
            _log.warning(
                "stock mismatch",
                kind=mismatch.kind,
                tenant=mismatch.item.tenant,
                item=mismatch.item.id,
                product=mismatch.item.product_id,
                location=mismatch.item.location,
                reservation=mismatch.reservation_id or None,
                expected=mismatch.expected,
                actual=mismatch.actual,
                repaired=mismatch.repaired,
            )
        return found

    def _check_locked(
        self, tx: Connection, request: VerifyRequest, item_id: int, read: Sequence[WrongAllocations]
    ) -> list[Mismatch]:
        item, counters = verification.lock_item(tx, item_id)
        wrong = verification.lock_wrong_allocations(tx, read)
        found = mismatches(item, counters, wrong)
        if not request.repair or not any(mismatch.has_one_answer for mismatch in found):
            return found
        _repair(tx, item, found, wrong)
        if self._audit_log is not None:
            self._audit_log.append(tx, [entry(request.caller, "VerifyStock", [str(item.id)])])
        return [replace(mismatch, repaired=mismatch.has_one_answer) for mismatch in found]


def _repair(tx: Connection, item: Item, found: Sequence[Mismatch], wrong: Sequence[WrongAllocations]) -> None:
    verification.restore_allocations(tx, item, [each for each in wrong if each.has_one_answer])
    repaired = item
    for mismatch in found:
        if mismatch.kind is MismatchKind.RESERVED_QUANTITY and mismatch.has_one_answer:
            repaired = replace(repaired, reserved_quantity=mismatch.expected)
        if mismatch.kind is MismatchKind.WITHHELD_QUANTITY and mismatch.has_one_answer:
            repaired = replace(repaired, withheld_quantity=mismatch.expected)
    if repaired != item:
        items.save_counters(tx, [replace(repaired, updated_at=now(tx))])
