"""Exports Prometheus gauges: held reservations, reservations that were set aside, and withheld units."""

import threading

from sqlalchemy.exc import DBAPIError

from inventory_api.store import withholdings
from inventory_api.store.reservations import counts
from shop_common.db.database import FORCE_INDEX_PLANS, Database, cause_of
from shop_common.db.row_security import ALL_TENANTS
from shop_common.errors import ShopError
from shop_common.telemetry import logs, metrics

INTERVAL_SECONDS = 15.0

_log = logs.get(__name__)

_held = metrics.gauge(
    __name__,
    "shop_holds",
    "Held reservations, running or due (past their expiry). Counted up to 100,000; every process of the service "
    "reports the same number",
    "state",
    over_workers="livemax",
)

_set_aside = metrics.gauge(
    __name__,
    "shop_stuck_reservations",
    "Reservations that were set aside because they cannot be expired or purged. Counted up to 100,000; every process "
    "of the service reports the same number",
    over_workers="livemax",
)

_withheld = metrics.gauge(
    __name__,
    "shop_withheld_units",
    "Units that are withheld from sale. Counted for up to 100,000 pairs of an item and a reason; every process of the "
    "service reports the same number",
    over_workers="livemax",
)


class HeldReservationsCollector:
    """Counts every 15 seconds in its own thread, so that a scrape never queries the database.

    While the database is unavailable, the gauges keep their last values.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="held-reservations", daemon=True)

    def start(self) -> None:
        """Count now and every INTERVAL_SECONDS from then on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop counting. Does not wait for a running query: the process may stop because the database is stuck."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            try:
                count = self._database.query(counts.count, FORCE_INDEX_PLANS + ALL_TENANTS)
                withheld = self._database.query(withholdings.count_units, FORCE_INDEX_PLANS + ALL_TENANTS)
            except (ShopError, DBAPIError) as error:
                # A debug message is enough: calls that fail for the same reason log it, and no call needs the gauges.
                _log.debug("held reservations were not counted", cause=cause_of(error))
            else:
                _held("running").set(count.running)
                _held("due").set(count.due)
                _set_aside().set(count.set_aside)
                _withheld().set(withheld)
            if self._stopped.wait(INTERVAL_SECONDS):
                return
