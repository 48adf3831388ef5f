"""One outbox database to Kafka: hold leases, read the oldest rows, produce, wait, delete what was acknowledged.

A crash at any point repeats events under their ids and loses none: a row goes only after the broker has its event.
"""

import random
import threading
import time

from sqlalchemy import MetaData, inspect
from sqlalchemy.exc import DBAPIError

from event_relay.leases import Held, Leases
from event_relay.metrics import Metrics
from event_relay.pending import PendingRows
from event_relay.shipper import BrokerAway, Shipper
from shop_common import logs
from shop_common.database import Database, cause_of
from shop_common.errors import ShopError
from shop_common.outbox import Outbox

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 2.0
BATCH_SECONDS_MAX = 7.0
"""Less than a process gets to end its work in (`lifecycle`), so that a batch on its way can be waited for."""

SAMPLE_SECONDS = 5.0
RENEWALS_PER_LEASE = 5
QUIET_SECONDS = 1.0
QUIET_POLLS = 5
"""A look costs about a millisecond of CPU, the database's included: fifty a second for nothing are too many."""

_NOTHING = Held((), 0.0, 0.0)
_log = logs.get(__name__)


class TablesMissing(Exception):
    """The database has no outbox yet."""


class DeliveryFailed(Exception):
    """The broker did not take all of a batch; what it did not take is shipped again, from the oldest."""


class Relay:
    """The relay of one database. `run` belongs to one thread; `ready` may be asked by any."""

    def __init__(
        self,
        database: Database,
        shipper: Shipper,
        metrics: Metrics,
        *,
        name: str,
        owner: str,
        lease_seconds: float,
        poll_seconds: float,
    ) -> None:
        self.name = name
        outbox = Outbox(MetaData())
        self._database = database
        self._shipper = shipper
        self._metrics = metrics
        self._leases = Leases(outbox.leases, owner, lease_seconds)
        self._rows = PendingRows(outbox.table)
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._tables_seen = False
        self._held = _NOTHING
        self._renew_at = 0.0
        self._sample_at = 0.0
        self._worked_at = float("-inf")
        self._shipped_at = float("-inf")
        self._outage: type[Exception] | None = None

    @property
    def ready(self) -> bool:
        """Whether events flow, as far as is known: the last pass went well, and not long ago."""
        return self._outage is None and time.monotonic() - self._worked_at < self._lease_seconds

    @property
    def shard_count(self) -> int:
        """How many shards this relay ships at the moment."""
        return len(self._held.shards)

    def run(self, stop: threading.Event) -> None:
        """Relay until told to stop, then let the leases go. An idle pass waits, one that shipped does not."""
        failures = 0
        while not stop.is_set():
            try:
                self._sample()
                shipped = self.relay_once()
            except (BrokerAway, DeliveryFailed, ShopError, TablesMissing, DBAPIError) as error:
                # What was not acknowledged is still there, and nothing of it is in flight.
                self._interrupted(error)
                stop.wait(_backoff(failures))
                failures += 1
            else:
                self._resumed()
                failures = 0
                if shipped:
                    self._shipped_at = time.monotonic()
                else:
                    stop.wait(self._pause())
        self._let_go()
        self._shipper.close()

    def _pause(self) -> float:
        """Between two looks that find nothing: longer when nothing has come for a while, as at night."""
        quiet = time.monotonic() - self._shipped_at > QUIET_SECONDS
        return self._poll_seconds * QUIET_POLLS if quiet else self._poll_seconds

    def relay_once(self) -> int:
        """Ship the oldest rows of our shards, at most 2,000. Returns how many were shipped and deleted.

        Raises BrokerAway, DeliveryFailed, TablesMissing, and what the database raises.
        """
        self._check_tables()
        # Before the leases: who can't reach the broker leaves the shards to those who can.
        self._shipper.connect()
        held = self._hold()
        absent, waiting = self._shipper.absent_topics(), self._shipper.waiting_shards()
        shards = [shard for shard in held.shards if shard not in waiting]
        self._metrics.blocked_shards.set(len(self._shipper.refused_shards().intersection(held.shards)))
        rows = self._database.query(lambda tx: self._rows.oldest(tx, shards, without_topics=absent))
        if not rows:
            return 0

        until = min(held.produce_until, time.monotonic() + BATCH_SECONDS_MAX)
        delivery = self._shipper.ship(rows, until=until)

        # Past its end the lease may be another's, who ships these rows as well and deletes them when it has.
        shipped = delivery.acknowledged if time.monotonic() < held.ends else []
        if shipped:
            self._database.transact(lambda tx: self._rows.delete(tx, shipped))
            self._metrics.shipped.inc(len(shipped))
            now = time.time()
            self._metrics.delay_seconds.observe_all(now - row.created_at.timestamp() for row in shipped)
        if delivery.failure is not None:
            self._metrics.failures.inc()
            raise DeliveryFailed(delivery.failure)
        return len(shipped)

    def _check_tables(self) -> None:
        if self._tables_seen:
            return
        missing = self._database.query(
            lambda tx: [name for name in ("outbox", "relay_lease") if not inspect(tx).has_table(name)]
        )
        if missing:
            raise TablesMissing(f"no table {' and no '.join(missing)}: the service of this database has to migrate it")
        self._tables_seen = True

    def _hold(self) -> Held:
        if time.monotonic() >= self._renew_at:
            # Between two batches, so nothing is in flight of a shard that is given up.
            self._held = self._database.transact(self._leases.hold)
            self._renew_at = self._held.ends - self._lease_seconds * (1 - 1 / RENEWALS_PER_LEASE)
            self._metrics.shards.set(self.shard_count)
        return self._held

    def _let_go(self) -> None:
        """Give up the leases at once rather than let them run out. If the database is away, they run out."""
        if self._held is _NOTHING:
            return
        self._held = _NOTHING
        self._renew_at = 0.0
        self._metrics.shards.set(0)
        try:
            self._database.transact(self._leases.release)
        except (ShopError, DBAPIError) as error:
            _log.info("leases are left to run out", database=self.name, error=str(error))

    def _sample(self) -> None:
        if time.monotonic() < self._sample_at:
            return
        self._check_tables()
        backlog = self._database.query(self._rows.backlog)
        self._metrics.rows.set(backlog.rows)
        self._metrics.oldest_seconds.set(backlog.oldest_seconds)
        self._sample_at = time.monotonic() + SAMPLE_SECONDS

    def _interrupted(self, error: Exception) -> None:
        if isinstance(error, BrokerAway | DeliveryFailed):
            # Others may reach the broker where we do not.
            self._let_go()
        self._tables_seen = False
        # Said once, not with each try: hours of it would bury everything else.
        if self._outage is not type(error):
            cause = {"cause": cause_of(error)} if isinstance(error, ShopError) else {}
            # SQLAlchemy's own words quote the statement and its rows.
            said = cause_of(error) if isinstance(error, DBAPIError) else str(error)
            _log.warning("relay interrupted", database=self.name, error=said, kind=type(error).__name__, **cause)
            self._outage = type(error)

    def _resumed(self) -> None:
        self._worked_at = time.monotonic()
        if self._outage is not None:
            _log.info("relay works again", database=self.name)
            self._outage = None


def _backoff(failures: int) -> float:
    """Longer with each failure in a row, to two seconds; scattered, so that several relays don't come in step."""
    return random.uniform(0.5, 1.0) * min(BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 10), BACKOFF_MAX_SECONDS)
