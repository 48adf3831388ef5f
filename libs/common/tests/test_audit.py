"""The audit log has one row for each call that changed data, in the transaction of the change."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, event, func, insert, select

from shop_common.api.command import Command
from shop_common.batching.coalescer import SHARED_WEIGHT_MAX, Coalescer
from shop_common.batching.coalescers import Coalescers, audit_of
from shop_common.db.audit import CHARACTERS_MAX, AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.sql import now
from shop_common.errors import DatabaseNeedsRepair, Refused, ShopError
from shop_common.identity.caller import Caller
from testkit.eventually import eventually

METADATA = MetaData()
PARCELS = Table("parcels", METADATA, Column("id", BigInteger, primary_key=True))
AUDIT_LOG = AuditLog(METADATA)

ALICE = Caller("user:alice", frozenset(), "alice", "acme")
BOB = Caller("user:bob", frozenset(), "bob", "acme")
ORDER_API = Caller("spiffe://shop/order-api", frozenset({"delegate"}), "alice", "acme")
METHOD = "SendParcel"
WEIGHT_MAX = 1000


class TooHeavy(Refused):
    reason = "TOO_HEAVY"


@dataclass(frozen=True, slots=True)
class Send(Command):
    parcel: int


def send(tx: Connection, commands: Sequence[Send]) -> list[int | ShopError]:
    sent = [command.parcel for command in commands if command.parcel < WEIGHT_MAX]
    if sent:
        tx.execute(insert(PARCELS), [{"id": parcel} for parcel in sent])
    return [
        command.parcel if command.parcel < WEIGHT_MAX else TooHeavy(f"{command.parcel} kg is too heavy")
        for command in commands
    ]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.write() as tx:
        METADATA.create_all(tx)
    yield database
    database.close()


@pytest.fixture
def coalescer(database: Database) -> Iterator[Coalescer[Send, int]]:
    run = Coalescers(database, lambda reason, error: None, AUDIT_LOG)
    yield run.writes(
        "send",
        send,
        key=lambda command: command.request_id,
        audit=audit_of(Send, METHOD, lambda _, parcel: (str(parcel),)),
    )
    run.close()


def rows(database: Database) -> list[tuple[Any, ...]]:
    """The rows in the order in which they were written, without id and time."""
    table = AUDIT_LOG.table.c
    columns = (table.tenant, table.caller, table.subject, table.method, table.request_id, table.resources)
    with database.read() as tx:
        return [tuple(row) for row in tx.execute(select(*columns).order_by(table.id))]


def deadline() -> float:
    return time.monotonic() + 20


def test_a_row_has_the_caller_the_method_and_what_it_changed(
    coalescer: Coalescer[Send, int], database: Database
) -> None:
    before = database.query(now)

    coalescer.submit(Send(7, caller=ORDER_API, request_id="r"), deadline=deadline())

    assert rows(database) == [("acme", ORDER_API.name, "alice", METHOD, "r", '["7"]')]
    with database.read() as tx:
        at = tx.execute(select(AUDIT_LOG.table.c.at)).scalar_one()
    # SQLite's clock has milliseconds.
    assert before - timedelta(milliseconds=1) <= at <= database.query(now)


def test_a_batch_has_a_row_per_call_by_one_statement(coalescer: Coalescer[Send, int], database: Database) -> None:
    inserts: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO audit_log" in statement:
            inserts.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    commands = [
        Send(number, caller=(ALICE, BOB)[number % 2], request_id=None if number % 3 else f"r{number}")
        for number in range(2 * SHARED_WEIGHT_MAX)
    ]
    coalescer.submit_many(commands, deadline=deadline())

    assert len(inserts) == 1
    assert rows(database) == [
        ("acme", command.caller.name, command.caller.subject, METHOD, command.request_id, f'["{command.parcel}"]')
        for command in commands
    ]


def test_a_refused_call_has_no_row(coalescer: Coalescer[Send, int], database: Database) -> None:
    _, refusal, _ = coalescer.submit_many(
        [Send(1, caller=ALICE), Send(WEIGHT_MAX, caller=ALICE), Send(2, caller=ALICE)], deadline=deadline()
    )

    assert isinstance(refusal, TooHeavy)
    assert [row[-1] for row in rows(database)] == ['["1"]', '["2"]']


def test_a_change_that_is_rolled_back_has_no_row(coalescer: Coalescer[Send, int], database: Database) -> None:
    """The batch fails because of one parcel. The coalescer runs the other parcels again, in smaller batches."""
    coalescer.submit(Send(50, caller=ALICE), deadline=deadline())

    with pytest.raises(Exception, match=r"(?i)unique"):
        coalescer.submit_many([Send(parcel, caller=BOB) for parcel in range(40, 60)], deadline=deadline())

    expected = {(ALICE.name, '["50"]')} | {(BOB.name, f'["{parcel}"]') for parcel in range(40, 60) if parcel != 50}
    found = [(row[1], row[-1]) for row in rows(database)]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_there_is_no_change_without_its_row(coalescer: Coalescer[Send, int], database: Database) -> None:
    """If the row cannot be written, the change is rolled back."""
    with database.write() as tx:
        AUDIT_LOG.table.drop(tx)

    outcomes = coalescer.submit_many([Send(1, caller=ALICE), Send(2, caller=BOB)], deadline=deadline())

    assert [type(outcome) for outcome in outcomes] == [DatabaseNeedsRepair] * 2
    assert database.query(lambda tx: tx.execute(select(func.count()).select_from(PARCELS)).scalar_one()) == 0


def test_every_folded_call_has_a_row(database: Database) -> None:
    """The first batch runs until all other calls wait. Then the equal calls are folded."""
    may_run = threading.Event()

    def slow(tx: Connection, commands: Sequence[Send]) -> list[int | ShopError]:
        may_run.wait(30)
        return send(tx, commands)

    run = Coalescers(database, lambda reason, error: None, AUDIT_LOG)
    coalescer = run.writes(
        "send",
        slow,
        key=lambda command: command.request_id,
        audit=audit_of(Send, METHOD, lambda _, parcel: (str(parcel),)),
    )
    try:
        with ThreadPoolExecutor(6) as threads:
            first = threads.submit(coalescer.submit, Send(1, caller=BOB), deadline=deadline())
            eventually(lambda: coalescer._running_count == 1)
            equal = [
                threads.submit(coalescer.submit, Send(2, caller=ALICE, request_id="r"), deadline=deadline())
                for _ in range(5)
            ]
            eventually(lambda: len(coalescer._queue) == 5)
            may_run.set()
            assert [first.result(), *(each.result() for each in equal)] == [1, 2, 2, 2, 2, 2]
    finally:
        may_run.set()
        run.close()

    assert [row[1:] for row in rows(database)] == [
        (BOB.name, "bob", METHOD, None, '["1"]'),
        *[(ALICE.name, "alice", METHOD, "r", '["2"]')] * 5,
    ]


def test_a_name_is_cut_off() -> None:
    long = Caller("user:" + "x" * 1000, frozenset(), "x" * 1000)

    row = entry(long, METHOD, ())

    assert (len(row.caller), len(row.subject or "")) == (CHARACTERS_MAX, CHARACTERS_MAX)


def test_old_rows_are_deleted_oldest_first(database: Database) -> None:
    database.transact(lambda tx: AUDIT_LOG.append(tx, [entry(ALICE, METHOD, [str(each)]) for each in range(10)]))
    later = database.query(now) + timedelta(seconds=1)

    assert database.transact(lambda tx: AUDIT_LOG.purge(tx, later - timedelta(days=1), 100)) == 0
    assert database.transact(lambda tx: AUDIT_LOG.purge(tx, later, 4)) == 4
    assert [row[-1] for row in rows(database)] == [f'["{each}"]' for each in range(4, 10)]
    assert database.transact(lambda tx: AUDIT_LOG.purge(tx, later, 100)) == 6
    assert database.query(lambda tx: tx.execute(select(func.count()).select_from(AUDIT_LOG.table)).scalar_one()) == 0


@pytest.mark.parametrize(
    ("caller", "actor"),
    [
        (ALICE, "user:alice"),
        (ORDER_API, "user:alice"),
        (Caller(ORDER_API.name, ORDER_API.permissions), ORDER_API.name),
        (Caller("anyone", frozenset({"delegate"}), "alice"), None),
    ],
)
def test_the_actor_of_a_delegated_call_is_the_user(caller: Caller, actor: str | None) -> None:
    assert caller.actor == actor
