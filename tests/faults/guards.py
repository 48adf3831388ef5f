"""Our guards, and how each is switched off in a throw-away build."""

from tests.faults.build import Change

ROW_LOCK = (
    Change(
        "inventory_api/store/items.py",
        "        .where(among(_items.c.product_id, given.c.product_id))\n"
        "        .order_by(_items.c.id)\n        .with_for_update(of=_items)\n",
        "        .where(among(_items.c.product_id, given.c.product_id))\n        .order_by(_items.c.id)\n",
    ),
)
"""Stock is decided on rows that others may change meanwhile."""

STATE_OF_A_RESERVATION = (
    Change(
        "inventory_api/domain/transitions.py",
        "        if reservation.state not in ENDED\n",
        "        if reservation.state is not State.FULFILLED\n",
    ),
)
"""What was released or has expired is released once more."""

STATE_OF_AN_ORDER = (
    Change(
        "order_api/operations/transitions.py",
        "            elif step.status not in LEGAL_STEPS[order.status]:",
        "            elif False:",
    ),
)
"""Any status follows any other."""

IDEMPOTENCY_CLAIM = (
    Change(
        "shop_common/db/idempotency.py",
        "        earlier = self.claim(tx, [claim for claim in claims if claim])\n",
        "        earlier: dict[Key, Claim] = {}\n",
    ),
)
"""A call that is sent again has its effect again."""

DELETE_AFTER_ACKNOWLEDGE = (
    Change(
        "event_relay/relay.py",
        "            until = min(self._held.",
        "            self._database.transact(lambda tx: self._rows.delete(tx, rows))\n"
        "            until = min(self._held.",
    ),
)
"""Rows go before the broker has their events."""

AUTOINCREMENT = tuple(
    Change(
        f"{service}/migrations/versions/0001_initial.py",
        "        sqlite_autoincrement=True,\n",
        "        sqlite_autoincrement=False,\n",
        times,
    )
    for service, times in (("inventory_api", 2), ("order_api", 1))
)
"""SQLite gives out the number of a row again once the table is empty."""

BEGIN_IMMEDIATE = (Change("shop_common/db/sqlite.py", 'else "BEGIN IMMEDIATE"', 'else "BEGIN"'),)
"""SQLite's write lock is taken at the first write, after the first read."""

CLOCK_OF_THE_DATABASE = (
    Change(
        "shop_common/db/sql.py",
        "    moment: datetime = tx.execute(_NOW).scalar_one()\n",
        "    moment = datetime.fromtimestamp(__import__('time').time(), __import__('datetime').UTC)\n",
    ),
)
"""Each process goes by its own clock."""
