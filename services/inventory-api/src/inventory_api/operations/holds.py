"""How many holds there are, for Prometheus: counted now and then by a thread, so that no scrape asks the database.

A count reads entries of the index of what is due, and a bounded number of them: it costs the same beside ten million
reservations as beside ten.
"""

import threading
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, ScalarSelect, TextClause, func, literal, select
from sqlalchemy.exc import DBAPIError

from inventory_api.store import tables
from shop_common.db.database import STEADY_PLANS, Database, cause_of
from shop_common.db.sql import now
from shop_common.errors import ShopError
from shop_common.telemetry import logs, metrics

COUNTED_MAX = 100_000
INTERVAL_SECONDS = 15.0

_expires_at = tables.stock_reservations.c.expires_at
_set_aside_at = tables.stock_reservations.c.set_aside_at

_log = logs.get(__name__)

_holds = metrics.gauge(
    __name__,
    "shop_holds",
    "Reservations that are HELD: running, or due because their time is over; each counted to 100,000, by every process "
    "of the service alike",
    "state",
    over_workers="livemax",
)

_stuck = metrics.gauge(
    __name__,
    "shop_stuck_reservations",
    "Reservations that were set aside, since they can't be expired or purged; counted to 100,000, by every process "
    "of the service alike",
    over_workers="livemax",
)


@dataclass(frozen=True, slots=True)
class Holds:
    """Reservations that are HELD, and those that were set aside, counted to 100,000 and no further."""

    running: int
    due: int
    stuck: int


def count(tx: Connection) -> Holds:
    """How many hold stock still, are past their time and not ended yet, and are set aside. Wants STEADY_PLANS."""
    moment = now(tx)
    return Holds(
        *tx.execute(
            select(
                _counted(_expires_at, tables.HELD, _expires_at > moment),
                _counted(_expires_at, tables.HELD, _expires_at <= moment),
                _counted(_set_aside_at, tables.SET_ASIDE),
            )
        ).one()
    )


class HoldsWatch:
    """Tells Prometheus, every 15 seconds. When the database is away, what it told last stays."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holds", daemon=True)

    def start(self) -> None:
        """Count now, and from time to time."""
        self._thread.start()

    def stop(self) -> None:
        """Count no more. A count under way is not waited for: the database may be the reason that we end."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            try:
                # Without statistics of what is held PostgreSQL would read and sort the whole table.
                holds = self._database.query(count, STEADY_PLANS)
            except (ShopError, DBAPIError) as error:
                # Calls that fail for the same reason are logged as such. No call depends on this count.
                _log.debug("holds not counted", cause=cause_of(error))
            else:
                _holds("running").set(holds.running)
                _holds("due").set(holds.due)
                _stuck().set(holds.stuck)
            if self._stopped.wait(INTERVAL_SECONDS):
                return


def _counted(column: ColumnElement[Any], *where: ColumnElement[bool] | TextClause) -> ScalarSelect[int]:
    # By time and up to a bound: so it is a walk along an index of time, of no more entries than that.
    bound = literal(COUNTED_MAX, literal_execute=True)
    found = select(column).where(*where).order_by(column).limit(bound)
    return select(func.count()).select_from(found.subquery()).scalar_subquery()
