"""Relays one outbox to Kafka: hold leases, read the oldest rows, send them, wait, delete the acknowledged rows.

A crash at any point may repeat events, with the same ids, but loses none: a row is deleted only after the broker has
acknowledged its event.

One transaction of a pass deletes the rows that earlier passes have shipped, and reads the rows of this pass. Under
load, passes alternate between two halves of the shards: the relay deletes and reads rows of one half while it sends
rows of the other. So the relay never reads a row that it is sending. Each half begins with its oldest row.
"""

import random
import threading
import time
from contextlib import suppress

from sqlalchemy import Connection, MetaData, inspect
from sqlalchemy.exc import DBAPIError

from event_relay.leases import Held, Leases
from event_relay.metrics import Metrics
from event_relay.outbox_rows import ROWS_MAX, OutboxReplaced, OutboxRow, OutboxRows
from event_relay.pacing import Halves, Pause, Stall
from event_relay.publisher import NOTHING, BrokerAway, Publisher
from shop_common.db.database import ASYNC_COMMIT, FORCE_INDEX_PLANS, Database, cause_of
from shop_common.errors import ShopError
from shop_common.events.outbox import Outbox
from shop_common.telemetry import logs

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 2.0
BATCH_SECONDS_MAX = 7.0
"""The time limit of a batch. It is less than the time that a process has to shut down (`lifecycle`), so that a shutdown
can wait for the outstanding batch."""

AHEAD_ROWS = ROWS_MAX // 8
"""The relay reads ahead only after a read of this size. With fewer rows, events would only wait for the pass of the
other half."""

SAMPLE_SECONDS = 5.0
RENEWALS_PER_LEASE = 5
_NOTHING = Held((), 0.0, 0.0)
_log = logs.get(__name__)


class TablesMissing(Exception):
    """The database has no outbox yet."""


class DeliveryFailed(Exception):
    """The broker did not acknowledge the whole batch. The relay sends the rest again, from the oldest row on."""


class Relay:
    """The relay of one database. Call `run` from one thread; any thread may read `ready`."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
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
        self._publisher = publisher
        self._metrics = metrics
        self._leases = Leases(outbox.leases, owner, lease_seconds)
        self._rows = OutboxRows(outbox.table)
        self._lease_seconds = lease_seconds
        self._pause = Pause(poll_seconds)
        self._halves = Halves()
        self._stall = Stall()
        self._tables_seen = False
        self._held = _NOTHING
        self._acknowledged: list[OutboxRow] = []
        self._renew_at = 0.0
        self._sample_at = 0.0
        self._succeeded_at = float("-inf")
        self._outage: type[Exception] | None = None

    @property
    def ready(self) -> bool:
        """Return whether the last pass succeeded less than `lease_seconds` ago and the outbox is not stalled.

        The outbox is stalled if this relay owns no shard and the oldest row stays the same for more than twice
        `lease_seconds`. The leases of a dead relay expire within `lease_seconds`, so another relay should have shipped
        the row.
        """
        is_recent = time.monotonic() - self._succeeded_at < self._lease_seconds
        return self._outage is None and is_recent and self._stall.seconds <= 2 * self._lease_seconds

    @property
    def shard_count(self) -> int:
        """Return the number of shards that this relay owns now."""
        return len(self._held.shards)

    def run(self, stop: threading.Event) -> None:
        """Relay until `stop` is set, then release the leases. Pauses after a pass that found no rows."""
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
                    self._pause.found()
                else:
                    stop.wait(self._pause.seconds())
        self._release_leases()
        self._publisher.close()

    def relay_once(self) -> int:
        """Make one pass: delete acknowledged rows, read the oldest ones, at most 4,000, and send them.

        Returns the number of rows read. A small batch is acknowledged on return. A large batch may be outstanding: the
        next pass waits for it. Raises BrokerAway, DeliveryFailed, OutboxReplaced, TablesMissing, and database errors.
        """
        self._check_tables()
        # Connect before taking leases: a relay that cannot reach the broker leaves the shards to relays that can.
        self._publisher.connect()
        self._renew_leases()
        rows = self._delete_and_read(self._shards_of_pass())
        self._wait()
        if rows:
            # failpoint: delete-before-acknowledgement
            deadline = min(self._held.produce_until, time.monotonic() + BATCH_SECONDS_MAX)
            # failpoint: before-produce
            self._publisher.send(rows, deadline=deadline)
        reads_ahead = len(rows) >= AHEAD_ROWS and not self._publisher.in_doubt
        if not (reads_ahead and self._halves.active):
            self._wait()
        self._halves.active = reads_ahead
        return len(rows)

    def _shards_of_pass(self) -> list[int]:
        """Return the shards of this pass. No row of them is outstanding."""
        shards = self._held.shards
        self._metrics.blocked_shards.set(len(self._publisher.refused_shards().intersection(shards)))
        # Split all owned shards, and leave out the waiting shards only afterwards. The set of waiting shards changes.
        # Otherwise two passes in a row could have the same shard, and the second pass would read outstanding rows.
        waiting = self._publisher.waiting_shards()
        return [shard for shard in self._halves.shards_of_pass(shards) if shard not in waiting]

    def _delete_and_read(self, shards: list[int]) -> list[OutboxRow]:
        absent = self._publisher.absent_topics()

        def read(tx: Connection) -> list[OutboxRow]:
            return self._rows.oldest(tx, shards, without_topics=absent)

        def delete_and_read(tx: Connection) -> list[OutboxRow]:
            self._rows.delete(tx, acknowledged)
            return read(tx)

        acknowledged = self._deletable()
        if acknowledged:
            # failpoint: before-delete
            # If the database loses this commit in a crash, the rows are shipped again with the same event ids.
            rows = self._database.transact(delete_and_read, FORCE_INDEX_PLANS + ASYNC_COMMIT)
        else:
            rows = self._database.query(read, FORCE_INDEX_PLANS)
        self._acknowledged = []
        return rows

    def _deletable(self) -> list[OutboxRow]:
        # After our lease has ended, another relay may own the shard. It ships these rows again and deletes them.
        return self._acknowledged if time.monotonic() < self._held.ends else []

    def _wait(self) -> None:
        """Wait for the outstanding batch. Raises DeliveryFailed; the acknowledged rows can be deleted even then."""
        delivery = self._publisher.wait()
        if delivery is NOTHING:
            return
        self._acknowledged.extend(delivery.acknowledged)
        self._metrics.shipped.inc(len(delivery.acknowledged))
        now = time.time()
        self._metrics.delay_seconds.observe_all([now - row.created_micros / 1e6 for row in delivery.acknowledged])
        if delivery.failure is not None:
            self._metrics.failures.inc()
            raise DeliveryFailed(delivery.failure)

    def _settle(self) -> None:
        """Wait for the outstanding batch and delete its acknowledged rows. Raises as `_wait` does."""
        try:
            self._wait()
        finally:
            if acknowledged := self._deletable():
                self._database.transact(
                    lambda tx: self._rows.delete(tx, acknowledged), FORCE_INDEX_PLANS + ASYNC_COMMIT
                )
            self._acknowledged = []

    def _check_tables(self) -> None:
        if self._tables_seen:
            return
        missing = self._database.query(
            lambda tx: [name for name in ("outbox", "relay_lease") if not inspect(tx).has_table(name)]
        )
        if missing:
            raise TablesMissing(f"no table {' and no '.join(missing)}: the service of this database has to migrate it")
        self._tables_seen = True

    def _renew_leases(self) -> None:
        if time.monotonic() < self._renew_at:
            return
        # No row of a shard that is given up may be outstanding: its next owner starts at once.
        self._settle()
        self._held = self._database.transact(self._leases.hold)
        self._renew_at = self._held.ends - self._lease_seconds * (1 - 1 / RENEWALS_PER_LEASE)
        self._metrics.shards.set(self.shard_count)

    def _release_leases(self) -> None:
        """Give up the leases now, so that other relays need not wait. If the database is unavailable, they expire."""
        if self._held is _NOTHING:
            return
        try:
            with suppress(DeliveryFailed, OutboxReplaced):
                self._settle()
            self._database.transact(self._leases.release)
        except (ShopError, DBAPIError) as error:
            _log.info("the leases were not released and will expire", database=self.name, error=str(error))
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
        self._stall.observe(None if self._held.shards else backlog.oldest_id)
        self._sample_at = time.monotonic() + SAMPLE_SECONDS

    def _interrupted(self, error: Exception) -> None:
        # Leave nothing outstanding during the backoff. Rows that were not acknowledged are still in the outbox and are
        # read again.
        self._halves.active = False
        with suppress(DeliveryFailed):
            self._wait()
        if isinstance(error, OutboxReplaced):
            self._acknowledged = []
        if isinstance(error, BrokerAway | DeliveryFailed):
            # Other relays may reach the broker although we do not.
            self._release_leases()
        self._tables_seen = False
        # Log an outage once, not at each attempt. Otherwise an outage of hours would fill the log.
        if self._outage is not type(error):
            cause = {"cause": cause_of(error)} if isinstance(error, ShopError) else {}
            # Do not log SQLAlchemy's own text: it quotes the statement and its rows.
            said = cause_of(error) if isinstance(error, DBAPIError) else str(error)
            _log.warning("relay interrupted", database=self.name, error=said, kind=type(error).__name__, **cause)
            self._outage = type(error)

    def _resumed(self) -> None:
        self._succeeded_at = time.monotonic()
        if self._outage is not None:
            _log.info("relay works again", database=self.name)
            self._outage = None


def _backoff(failures: int) -> float:
    """Return the seconds to wait: exponential backoff with jitter, capped at two seconds."""
    return random.uniform(0.5, 1.0) * min(BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 10), BACKOFF_MAX_SECONDS)
