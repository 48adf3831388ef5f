"""One outbox database to Kafka: hold leases, read the oldest rows, produce, wait, delete what was acknowledged.

A crash at any point repeats events under their ids and loses none: a row goes only after the broker has its event.

A pass deletes what the passes before have shipped, in the transaction that reads its own rows. While much waits, the
shards take turns in two halves: the rows of one are deleted and read while those of the other are on their way. So
what is read is never on its way, and each half begins with its oldest row as all of them would.
"""

import random
import threading
import time
from contextlib import suppress

from sqlalchemy import Connection, MetaData, inspect
from sqlalchemy.exc import DBAPIError

from event_relay.flight import Flight
from event_relay.leases import Held, Leases
from event_relay.metrics import Metrics
from event_relay.pending import ROWS_MAX, OutboxReplaced, Pending, PendingRows
from event_relay.shipper import BrokerAway, Shipper
from shop_common.db.database import ASYNC_COMMIT, FORCE_INDEX_PLANS, Database, cause_of
from shop_common.errors import ShopError
from shop_common.events.outbox import Outbox
from shop_common.telemetry import logs

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 2.0
BATCH_SECONDS_MAX = 7.0
"""Less than a process gets to end its work in (`lifecycle`), so that a batch on its way can be waited for."""

AHEAD_ROWS = ROWS_MAX // 8
"""A pass of fewer rows is not worth a half to itself: events would wait for the other one's turn."""

SAMPLE_SECONDS = 5.0
RENEWALS_PER_LEASE = 5
BUSY_POLLS = 0.1
"""Where one event has just come the next is near: a wait for more would be most of its way."""

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
        self._flight: Flight | None = None
        self._arrived: list[Pending] = []
        self._in_halves = False
        self._half = 0
        self._renew_at = 0.0
        self._sample_at = 0.0
        self._worked_at = float("-inf")
        self._found_at = float("-inf")
        self._outage: type[Exception] | None = None
        self._stuck_id: int | None = None
        self._stuck_since = float("inf")

    @property
    def ready(self) -> bool:
        """True if the last pass succeeded less than one lease ago, and events do not wait while no shard is ours.

        The leases of a relay that died run out within one lease. If the oldest row still waits after two, nobody ships.
        """
        now = time.monotonic()
        is_stuck = now - self._stuck_since > 2 * self._lease_seconds
        return self._outage is None and not is_stuck and now - self._worked_at < self._lease_seconds

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
                found = self.relay_once()
            except (BrokerAway, DeliveryFailed, OutboxReplaced, ShopError, TablesMissing, DBAPIError) as error:
                self._interrupted(error)
                stop.wait(_backoff(failures))
                failures += 1
            else:
                self._resumed()
                failures = 0
                if found:
                    self._found_at = time.monotonic()
                else:
                    stop.wait(self._pause())
        self._let_go()
        self._shipper.close()

    def _pause(self) -> float:
        """After a look that found nothing: the longer the less has come lately, and longest at night."""
        since = time.monotonic() - self._found_at
        if since > QUIET_SECONDS:
            return self._poll_seconds * QUIET_POLLS
        return min(max(since, self._poll_seconds * BUSY_POLLS), self._poll_seconds)

    def relay_once(self) -> int:
        """Read the oldest rows, at most 4,000, and send them. Returns how many were found.

        When few were found they are shipped on return, else they may be on their way still; the next pass deletes
        them. Raises BrokerAway, DeliveryFailed, OutboxReplaced, TablesMissing, and what the database raises.
        """
        self._check_tables()
        # Before the leases: who can't reach the broker leaves the shards to those who can.
        self._shipper.connect()
        self._hold()
        rows = self._delete_and_read(self._turn())
        self._land()
        if rows:
            # failpoint: delete-before-acknowledgement
            until = min(self._held.produce_until, time.monotonic() + BATCH_SECONDS_MAX)
            # failpoint: before-produce
            self._flight = self._shipper.send(rows, until=until)
        in_halves = len(rows) >= AHEAD_ROWS and not self._shipper.in_doubt
        if not (in_halves and self._in_halves):
            self._land()
        self._in_halves = in_halves
        return len(rows)

    def _turn(self) -> list[int]:
        """The shards of this pass; none of them has anything on its way."""
        shards = self._held.shards
        self._metrics.blocked_shards.set(len(self._shipper.refused_shards().intersection(shards)))
        if self._in_halves:
            # Halves of what is held and not of what is left of it below: that may be another half in each pass.
            self._half = 1 - self._half
            shards = shards[self._half :: 2]
        waiting = self._shipper.waiting_shards()
        return [shard for shard in shards if shard not in waiting]

    def _delete_and_read(self, shards: list[int]) -> list[Pending]:
        absent = self._shipper.absent_topics()

        def read(tx: Connection) -> list[Pending]:
            return self._rows.oldest(tx, shards, without_topics=absent)

        def delete_and_read(tx: Connection) -> list[Pending]:
            self._rows.delete(tx, arrived)
            return read(tx)

        arrived = self._ours_of_what_arrived()
        if arrived:
            # failpoint: before-delete
            # If the database loses this commit in a crash, the rows are shipped again under their ids.
            rows = self._database.transact(delete_and_read, FORCE_INDEX_PLANS + ASYNC_COMMIT)
        else:
            rows = self._database.query(read, FORCE_INDEX_PLANS)
        self._arrived = []
        return rows

    def _ours_of_what_arrived(self) -> list[Pending]:
        # Past its end the lease may be another's, who ships these rows as well and deletes them when it has.
        return self._arrived if time.monotonic() < self._held.ends else []

    def _land(self) -> None:
        """Wait for what is on its way. Raises DeliveryFailed; what the broker has of it can be deleted all the same."""
        if self._flight is None:
            return
        flight, self._flight = self._flight, None
        delivery = self._shipper.landed(flight)
        self._arrived.extend(delivery.acknowledged)
        self._metrics.shipped.inc(len(delivery.acknowledged))
        now = time.time()
        self._metrics.delay_seconds.observe_all([now - row.created_micros / 1e6 for row in delivery.acknowledged])
        if delivery.failure is not None:
            self._metrics.failures.inc()
            raise DeliveryFailed(delivery.failure)

    def _settle(self) -> None:
        """Leave nothing on its way, and nothing in the outbox that has arrived. Raises as `_land` does."""
        try:
            self._land()
        finally:
            if arrived := self._ours_of_what_arrived():
                self._database.transact(lambda tx: self._rows.delete(tx, arrived), FORCE_INDEX_PLANS + ASYNC_COMMIT)
            self._arrived = []

    def _check_tables(self) -> None:
        if self._tables_seen:
            return
        missing = self._database.query(
            lambda tx: [name for name in ("outbox", "relay_lease") if not inspect(tx).has_table(name)]
        )
        if missing:
            raise TablesMissing(f"no table {' and no '.join(missing)}: the service of this database has to migrate it")
        self._tables_seen = True

    def _hold(self) -> None:
        if time.monotonic() < self._renew_at:
            return
        # Nothing may be on its way of a shard that is given up.
        self._settle()
        self._held = self._database.transact(self._leases.hold)
        self._renew_at = self._held.ends - self._lease_seconds * (1 - 1 / RENEWALS_PER_LEASE)
        self._metrics.shards.set(self.shard_count)

    def _let_go(self) -> None:
        """Give up the leases at once rather than let them run out. If the database is away, they run out."""
        if self._held is _NOTHING:
            return
        try:
            with suppress(DeliveryFailed, OutboxReplaced):
                self._settle()
            self._database.transact(self._leases.release)
        except (ShopError, DBAPIError) as error:
            _log.info("leases are left to run out", database=self.name, error=str(error))
        self._held = _NOTHING
        self._renew_at = 0.0
        self._metrics.shards.set(0)

    def _sample(self) -> None:
        if time.monotonic() < self._sample_at:
            return
        self._check_tables()
        backlog = self._database.query(self._rows.backlog, FORCE_INDEX_PLANS)
        self._metrics.rows.set(backlog.rows)
        self._metrics.oldest_seconds.set(backlog.oldest_seconds)
        # By id and our own clock: the age of a row says nothing when the database's clock was set back.
        stuck_id = None if self._held.shards else backlog.oldest_id
        if stuck_id != self._stuck_id or stuck_id is None:
            self._stuck_id = stuck_id
            self._stuck_since = float("inf") if stuck_id is None else time.monotonic()
        self._sample_at = time.monotonic() + SAMPLE_SECONDS

    def _interrupted(self, error: Exception) -> None:
        # Nothing is on its way while we wait. What has not arrived is there still, and is read again.
        self._in_halves = False
        with suppress(DeliveryFailed):
            self._land()
        if isinstance(error, OutboxReplaced):
            self._arrived = []
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
