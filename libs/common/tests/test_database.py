"""Transactions on both databases, and the errors that callers get when the database fails or hangs."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, exc, text

from devstack import postgres
from devstack.postgres import PostgresServer
from shop_common.batching.coalescer import Coalescer
from shop_common.db import database as database_module
from shop_common.db import sqlite
from shop_common.db.database import (
    ASYNC_COMMIT,
    FORCE_INDEX_PLANS,
    LOCK_TIMEOUT_SECONDS,
    Database,
    cause_of,
    is_statement_error,
)
from shop_common.errors import (
    Contention,
    DatabaseNeedsRepair,
    DatabaseUnavailable,
    LockTimeout,
    PoolTimeout,
    QueueFull,
    Refused,
    ShopError,
    TransactionTimeout,
)

PATIENCE_SECONDS = 60.0


class TooMany(Refused):
    reason = "TOO_MANY"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    make_table(database)
    yield database
    database.close()


@pytest.fixture
def on_postgres(postgres_server: PostgresServer) -> Iterator[Database]:
    url = postgres_server.new_database()
    database = Database(url)
    make_table(database)
    yield database
    database.close()
    postgres_server.drop_database(url)


def make_table(database: Database) -> None:
    with database.write() as tx:
        tx.execute(text("CREATE TABLE parcels (id BIGINT PRIMARY KEY, weight BIGINT NOT NULL CHECK (weight > 0))"))


def put(tx: Connection, *ids: int, weight: int = 1) -> None:
    tx.execute(text("INSERT INTO parcels VALUES (:id, :weight)"), [{"id": each, "weight": weight} for each in ids])


def add_weight(tx: Connection, parcel: int) -> None:
    tx.execute(text("UPDATE parcels SET weight = weight + 1 WHERE id = :id"), {"id": parcel})


def weights(database: Database) -> dict[int, int]:
    with database.read() as tx:
        return {row.id: row.weight for row in tx.execute(text("SELECT id, weight FROM parcels ORDER BY id"))}


def backend(tx: Connection) -> int:
    return int(tx.execute(text("SELECT pg_backend_pid()")).scalar_one())


def wait_until_gone(database: Database, pid: int) -> None:
    """Wait until the server has ended this connection."""
    deadline = time.monotonic() + 60
    alive = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
    while database.query(lambda tx: tx.execute(alive, {"pid": pid}).scalar_one()):
        assert time.monotonic() < deadline, "the connection is still there"
        threading.Event().wait(0.02)


def terminate(database: Database, *pids: int) -> None:
    """End these connections from the server's side, and wait until they are gone."""
    other = Database(database.engine.url.render_as_string(hide_password=False), connections_max=1)
    with other.write() as tx:
        for pid in pids:
            tx.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    other.close()


# --- both ---


def test_a_transaction_commits_when_its_block_ends_and_not_before(database: Database) -> None:
    with database.write() as tx:
        put(tx, 1)
        assert weights(database) == {}

    assert weights(database) == {1: 1}


@pytest.mark.parametrize("failure", [TooMany("refused"), ZeroDivisionError("defect"), KeyboardInterrupt()])
def test_a_transaction_that_raises_leaves_nothing(database: Database, failure: BaseException) -> None:
    def put_and_fail(tx: Connection) -> None:
        put(tx, 1)
        raise failure

    with pytest.raises(type(failure)):
        database.transact(put_and_fail)

    assert weights(database) == {}


def test_an_error_caused_by_data_is_raised_unchanged(database: Database) -> None:
    database.transact(lambda tx: put(tx, 1))

    for wrong in (lambda tx: put(tx, 1), lambda tx: put(tx, 2, weight=0)):
        with pytest.raises(exc.IntegrityError) as broken:
            database.transact(wrong)
        assert is_statement_error(broken.value)
    with pytest.raises(exc.DBAPIError) as defect:
        database.transact(lambda tx: tx.execute(text("SELECT FROM WHERE")))
    assert is_statement_error(defect.value)
    assert weights(database) == {1: 1}


@pytest.mark.parametrize("sql", ["SELECT 1 FROM missing", "SELECT missing FROM parcels", "SELECT missing(1)"])
def test_what_is_missing_in_the_database_is_no_requests_fault(database: Database, sql: str) -> None:
    with pytest.raises(DatabaseNeedsRepair) as lacking:
        database.transact(lambda tx: tx.execute(text(sql)))

    assert not is_statement_error(lacking.value)
    assert "missing" in cause_of(lacking.value)
    assert "missing" not in lacking.value.message


def test_defects_of_ours_are_own_faults_and_answers_are_not() -> None:
    assert is_statement_error(KeyError("defect"))
    assert not is_statement_error(Contention("others"))


def test_a_read_sees_one_moment(database: Database) -> None:
    database.transact(lambda tx: put(tx, 1))
    with database.read() as tx:
        before = tx.execute(text("SELECT count(*) FROM parcels")).scalar_one()
        database.transact(lambda other: put(other, 2))
        after = tx.execute(text("SELECT count(*) FROM parcels")).scalar_one()

    assert (before, after) == (1, 1)


def test_writers_at_once_lose_no_update(database: Database, database_url: str) -> None:
    other_process = Database(database_url)
    database.transact(lambda tx: put(tx, 1))
    with ThreadPoolExecutor(8) as writers:
        done = [
            writers.submit(process.transact, lambda tx: add_weight(tx, 1))
            for process in (database, other_process)
            for _ in range(20)
        ]
        for each in done:
            each.result(PATIENCE_SECONDS)
    other_process.close()

    assert weights(database) == {1: 41}


def test_no_connection_in_time_is_overload(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "POOL_TIMEOUT_SECONDS", 0.1)
    database = Database(database_url, connections_max=1)
    with database.read(), pytest.raises(PoolTimeout), database.read():
        pass
    database.close()


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    for url in ("postgresql+psycopg://nobody@127.0.0.1:1/none", f"sqlite:///{tmp_path / 'no' / 'folder' / 'x.db'}"):
        database = Database(url)
        with pytest.raises(DatabaseUnavailable) as away:
            database.query(lambda tx: tx.execute(text("SELECT 1")))
        assert away.value.rolled_back
        database.close()


# --- SQLite ---


def test_a_sqlite_file_that_another_process_writes_for_long_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sqlite.CONNECT, "timeout", 0.1)
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    one, other = Database(url), Database(url)
    make_table(one)

    with one.write() as tx:
        put(tx, 1)
        with pytest.raises(DatabaseUnavailable) as busy:
            other.transact(lambda tx: put(tx, 2))
        assert weights(other) == {}

    assert busy.value.rolled_back
    assert weights(other) == {1: 1}
    one.close()
    other.close()


def test_a_sqlite_writer_that_waits_too_long_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "POOL_TIMEOUT_SECONDS", 0.1)
    database = Database(f"sqlite:///{tmp_path / 'shop.db'}")
    make_table(database)

    with database.write(), ThreadPoolExecutor(1) as other:
        waiting = other.submit(database.transact, lambda tx: put(tx, 1))
        with pytest.raises(DatabaseUnavailable, match="busy"):
            waiting.result(PATIENCE_SECONDS)
    database.close()


def test_sqlite_keeps_foreign_keys_and_syncs_each_commit(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'shop.db'}")
    with database.read() as tx:
        found = [
            tx.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    database.close()

    assert found == ["wal", 2, 1]


def test_a_new_sqlite_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path / 'shop.db'}") for _ in range(8)]
    with ThreadPoolExecutor(8) as openers:
        opened = list(openers.map(lambda database: database.query(lambda tx: 1), databases))
    for database in databases:
        database.close()

    assert opened == [1] * 8


# --- PostgreSQL ---


def test_timeouts_hold_within_each_transaction_and_reads_can_not_write(on_postgres: Database) -> None:
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    with on_postgres.write() as tx:
        written = [tx.execute(text(f"SHOW {name}")).scalar_one() for name in (*names, "transaction_isolation")]
    with on_postgres.read() as tx:
        read = [tx.execute(text(f"SHOW {name}")).scalar_one() for name in (*names, "transaction_isolation")]

    assert written == ["2s", "5s", "5s", "read committed"]
    assert read == ["2s", "5s", "5s", "repeatable read"]
    with pytest.raises(DatabaseUnavailable), on_postgres.read() as tx:
        put(tx, 1)


def failing(state: str) -> Callable[[Connection], object]:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'said by the server' USING ERRCODE = '{state}'; END $$"
    return lambda tx: tx.exec_driver_sql(raising)


@pytest.mark.parametrize(
    "state", ["42501", "42P01", "42703", "42883", "42704", "3F000", "53100", "58030", "XX000", "XX001", "XX002"]
)
def test_what_the_operator_has_to_mend_is_no_requests_fault(on_postgres: Database, state: str) -> None:
    with pytest.raises(DatabaseNeedsRepair) as broken:
        on_postgres.transact(failing(state))

    assert not is_statement_error(broken.value)
    assert broken.value.rolled_back
    assert cause_of(broken.value) == "said by the server"


@pytest.mark.parametrize("state", ["25006", "53200", "53300", "55000", "55006", "57P03", "08006", "58000", "0A000"])
def test_errors_of_the_surroundings_are_no_requests_fault(on_postgres: Database, state: str) -> None:
    with pytest.raises(DatabaseUnavailable) as away:
        on_postgres.transact(failing(state))

    assert not is_statement_error(away.value)
    assert away.value.rolled_back


@pytest.mark.parametrize("state", ["21000", "22003", "22P02", "23505", "42601", "42804", "54000"])
def test_what_a_statement_or_its_data_is_to_blame_for_passes_as_it_is(on_postgres: Database, state: str) -> None:
    with pytest.raises(exc.DBAPIError) as blamed:
        on_postgres.transact(failing(state))

    assert is_statement_error(blamed.value)


def test_the_error_of_a_missing_grant_names_the_table(on_postgres: Database) -> None:
    def as_nobody(tx: Connection) -> None:
        tx.exec_driver_sql("CREATE ROLE parcels_nobody")
        tx.exec_driver_sql("SET LOCAL ROLE parcels_nobody")
        put(tx, 1)

    with pytest.raises(DatabaseNeedsRepair) as refused:
        on_postgres.transact(as_nobody)

    assert cause_of(refused.value) == "permission denied for table parcels"


def test_settings_hold_within_their_transaction_alone(on_postgres: Database) -> None:
    def settings(tx: Connection) -> tuple[str, str]:
        names = ("enable_seqscan", "synchronous_commit")
        seqscan, commit = (str(tx.exec_driver_sql(f"SHOW {name}").scalar()) for name in names)
        return seqscan, commit

    assert on_postgres.transact(settings, FORCE_INDEX_PLANS + ASYNC_COMMIT) == ("off", "off")
    assert on_postgres.query(settings, FORCE_INDEX_PLANS) == ("off", "on")
    assert on_postgres.query(settings) == ("on", "on")
    assert on_postgres.transact(settings) == ("on", "on")


def test_a_row_that_others_hold_for_long_is_contention(on_postgres: Database) -> None:
    on_postgres.transact(lambda tx: put(tx, 1))
    started = time.monotonic()
    with on_postgres.write() as tx:
        add_weight(tx, 1)
        with pytest.raises(LockTimeout):
            on_postgres.transact(lambda other: add_weight(other, 1))

    assert LOCK_TIMEOUT_SECONDS <= time.monotonic() - started < 2 * LOCK_TIMEOUT_SECONDS
    assert weights(on_postgres) == {1: 2}


def test_a_transaction_that_takes_too_long_is_a_timeout_and_is_rolled_back(on_postgres: Database) -> None:
    def slow_statement(tx: Connection) -> None:
        put(tx, 1)
        tx.execute(text("SET LOCAL statement_timeout = 20"))
        tx.execute(text("SELECT pg_sleep(60)"))

    def long_pause(tx: Connection) -> None:
        put(tx, 2)
        pid = backend(tx)
        tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 20"))
        wait_until_gone(on_postgres, pid)
        put(tx, 3)

    for operation in (slow_statement, long_pause):
        with pytest.raises(TransactionTimeout) as told:
            on_postgres.transact(operation)
        assert told.value.rolled_back
    assert weights(on_postgres) == {}


def test_two_that_deadlock_both_succeed_in_the_end(on_postgres: Database) -> None:
    on_postgres.transact(lambda tx: put(tx, 1, 2))
    with on_postgres.write() as tx:
        name = on_postgres.engine.url.database
        tx.execute(text(f'ALTER DATABASE "{name}" SET deadlock_timeout = 100'))
    on_postgres.close()  # the setting is for new connections
    first_steps = threading.Barrier(2)
    tries: list[int] = []

    def forth_or_back(sequence: Sequence[int]) -> Callable[[Connection], None]:
        met = False

        def run(tx: Connection) -> None:
            nonlocal met
            tries.append(sequence[0])
            add_weight(tx, sequence[0])
            if not met:
                met = True
                first_steps.wait(PATIENCE_SECONDS)
            add_weight(tx, sequence[1])

        return run

    with ThreadPoolExecutor(2) as writers:
        done = [writers.submit(on_postgres.transact, forth_or_back(sequence)) for sequence in ((1, 2), (2, 1))]
        for each in done:
            each.result(PATIENCE_SECONDS)

    assert len(tries) == 3
    assert weights(on_postgres) == {1: 3, 2: 3}


def test_connections_that_died_while_idle_are_replaced_unseen(on_postgres: Database) -> None:
    with on_postgres.read() as one, on_postgres.read() as two, on_postgres.read() as three, on_postgres.read() as four:
        pids = [backend(tx) for tx in (one, two, three, four)]
    terminate(on_postgres, *pids)

    on_postgres.transact(lambda tx: put(tx, 1))

    assert on_postgres.query(backend) not in pids
    assert weights(on_postgres) == {1: 1}


def test_without_another_try_a_connection_that_died_while_idle_is_told_as_unavailable(on_postgres: Database) -> None:
    terminate(on_postgres, on_postgres.query(backend))

    with pytest.raises(DatabaseUnavailable) as lost, on_postgres.write():
        pass

    assert lost.value.rolled_back


def test_a_connection_that_dies_in_the_middle_is_told_and_nothing_was_done(on_postgres: Database) -> None:
    tries = []

    def cut_off(tx: Connection) -> None:
        tries.append(1)
        put(tx, 1)
        terminate(on_postgres, backend(tx))
        put(tx, 2)

    with pytest.raises(DatabaseUnavailable) as lost:
        on_postgres.transact(cut_off)

    assert lost.value.rolled_back
    assert tries == [1]  # the statement may have crashed the server, so it is not repeated
    assert weights(on_postgres) == {}


def test_a_commit_without_a_response_has_an_unknown_outcome(on_postgres: Database) -> None:
    def cut_off_at_the_end(tx: Connection) -> None:
        put(tx, 1)
        terminate(on_postgres, backend(tx))

    with pytest.raises(DatabaseUnavailable) as lost:
        on_postgres.transact(cut_off_at_the_end)

    assert not lost.value.rolled_back
    assert weights(on_postgres) == {}


def test_callers_of_a_frozen_database_are_answered_within_their_deadline_and_it_goes_on_after() -> None:
    with postgres.provide() as server:
        database = Database(server.new_database())
        make_table(database)

        def freeze_before_the_commit(ids: Sequence[int]) -> list[int | ShopError]:
            def run(tx: Connection) -> list[int | ShopError]:
                put(tx, *ids)
                if 1 in ids:
                    server.freeze()
                return list(ids)

            return database.transact(run)

        fatal_errors: list[str] = []
        coalescer = Coalescer("put", freeze_before_the_commit, on_fatal=lambda reason, _: fatal_errors.append(reason))
        with ThreadPoolExecutor(2) as callers:
            deadline = time.monotonic() + 1.0
            committing = callers.submit(coalescer.submit, 1, deadline=deadline)
            flushing = threading.Event()
            while not flushing.wait(0.001) and coalescer._queue:
                assert time.monotonic() < deadline
            queued = callers.submit(coalescer.submit, 2, deadline=deadline)
            with pytest.raises(DatabaseUnavailable) as unknown:
                committing.result(PATIENCE_SECONDS)
            with pytest.raises(QueueFull):
                queued.result(PATIENCE_SECONDS)
            assert time.monotonic() < deadline + 0.5

        server.thaw()

        assert not unknown.value.rolled_back
        assert coalescer.submit(3, deadline=time.monotonic() + PATIENCE_SECONDS) == 3
        assert list(weights(database)) == [1, 3]  # the first one was committed, although its outcome was unknown
        coalescer.close()
        database.close()
        assert fatal_errors == []
